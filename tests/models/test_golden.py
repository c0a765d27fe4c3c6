"""The models equal transformers' PaliGemma, run once by make_goldens.py."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import gemma, paligemma, vit
from paligemma.training import losses

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CASES = (
  "gemma",
  "gemma_multi_head",
  "gemma2_2b",
  "gemma2_27b",
  "gemma2_as_in_paligemma2",
  "two_images",
)
# float32 against float64 over two towers; the logits are of order one.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@functools.lru_cache
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

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(weights):
    logits, out = model.apply(
      {"params": tree.unflatten({**params, **weights})},
      image,
      text,
      mask_ar,
      input_mask=arrays["input_mask"],
    )
    loss = losses.next_token(
      logits[:, :-1], text[:, 1:], arrays["mask_loss"][:, 1:]
    )
    return loss.mean(), (out["img/zimg"], logits, loss)

  weights = {
    name: x for name, x in params.items() if "llm/layers/attn/" in name
  }
  (_, (image_tokens, logits, loss)), grads = jax.jit(run)(weights)

  np.testing.assert_allclose(image_tokens, arrays["image_tokens"], **TOLERANCE)
  valid = arrays["input_mask"]
  expected = arrays["logits"][valid]
  assert 0.5 < expected.std() < 5
  np.testing.assert_allclose(np.asarray(logits)[valid], expected, **TOLERANCE)
  np.testing.assert_allclose(loss, arrays["loss"], **TOLERANCE)
  assert grads
  for name, grad in grads.items():
    expected = arrays[f"grads/{name}"]
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(grad, expected, err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_prefill_and_extend_equal_transformers(case):
  model, params, arrays = load(case)
  params = {"params": tree.unflatten(params)}
  is_prefix = arrays["input_mask"] & (arrays["mask_ar"] == 0)
  prompt_len = is_prefix.sum(axis=1)
  padded_len = prompt_len.max()  # the suffix follows behind the longest prompt
  steps = int((arrays["input_mask"] & ~is_prefix).sum(axis=1).min())
  rows = np.arange(len(prompt_len))[:, None]
  suffix = prompt_len[:, None] + np.arange(steps)

  @jax.jit
  def run(image, prompt, mask, suffix):
    (x, input_mask, mask_ar), _ = model.apply(
      params,
      image,
      prompt,
      input_mask=mask,
      mask_ar=jnp.zeros_like(prompt),
      method="embed_image_and_text",
    )
    first, cache = model.apply(
      params,
      x,
      input_mask,
      mask_ar,
      cache_size=x.shape[1] + steps,
      mutable=["cache"],
      method="prefill_cache",
    )

    def extend(cache, tokens):
      x, _ = model.apply(params, tokens[:, None], method="embed_text")
      logits, cache = model.apply(
        params | cache, x, mutable=["cache"], method="extend_cache"
      )
      return cache, logits[:, 0]

    _, rest = jax.lax.scan(extend, cache, suffix.T)
    return jnp.concatenate([first, jnp.swapaxes(rest, 0, 1)], axis=1)

  logits = run(
    arrays["image"].astype(np.float32),
    arrays["text"][:, :padded_len],
    is_prefix[:, :padded_len],
    arrays["text"][rows, suffix],
  )
  after = prompt_len[:, None] - 1 + np.arange(steps + 1)
  np.testing.assert_allclose(logits, arrays["logits"][rows, after], **TOLERANCE)
