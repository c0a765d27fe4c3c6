"""The models equal transformers' PaliGemma, run once by make_goldens.py."""

import json
import pathlib

import jax
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import gemma, paligemma, vit

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CASES = (
  "gemma",
  "gemma_multi_head",
  "gemma2",
  "gemma2_as_in_paligemma2",
)
# float32 against float64 over two towers; the logits are of order one.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def load(case):
  """The model, its parameters, the inputs and the expected outputs."""
  with np.load(GOLDENS / f"{case}.npz") as file:
    arrays = dict(file)
  config = json.loads(str(arrays.pop("config")))
  model = paligemma.Model(
    img=vit.Model(
      **config["img"],
      num_classes=config["llm"]["width"],
      remat_policy="none",
    ),
    llm=gemma.Model(**config["llm"], remat_policy="none"),
  )
  params = {
    name.removeprefix("params/"): arrays.pop(name).astype(np.float32)
    for name in list(arrays)
    if name.startswith("params/")
  }
  return model, params, arrays


def test_every_golden_file_has_a_test():
  assert {path.stem for path in GOLDENS.glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case):
  model, params, arrays = load(case)
  image = arrays["image"].astype(np.float32)
  text, mask_ar = arrays["text"], arrays["mask_ar"]
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, mask_ar)
  assert tree.compare(tree.flatten(shapes["params"]), params) == []

  logits, out = jax.jit(model.apply)(
    {"params": tree.unflatten(params)},
    image,
    text,
    mask_ar,
    input_mask=arrays["input_mask"],
  )

  np.testing.assert_allclose(
    out["img/zimg"], arrays["image_tokens"], **TOLERANCE
  )
  valid = arrays["input_mask"]
  expected = arrays["logits"][valid]
  assert 0.5 < expected.std() < 5
  np.testing.assert_allclose(np.asarray(logits)[valid], expected, **TOLERANCE)
