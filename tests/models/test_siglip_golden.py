"""Files of big_vision's format give what PyTorch computed, see make_siglip."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma import tree
from paligemma.checkpoints import npz
from paligemma.training import contrastive

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/siglip"
BOUND = 1e-5
CASES = ("scan", "loop", "no_bias", "naflex")


def test_every_golden_file_has_a_test():
  assert {path.stem for path in GOLDENS.glob("*.npz")} == set(CASES)


def load(arrays, folder, what):
  """Model and parameters of the arrays below a name, read from a file."""
  leaves = {
    name.removeprefix(f"{what}/"): x.astype(np.float32)
    for name, x in arrays.items()
    if name.startswith(f"{what}/")
  }
  npz.save(folder / f"{what}.npz", leaves)
  return paligemma.load(folder / f"{what}.npz")


@pytest.mark.parametrize("case", CASES)
def test_same_embeddings_losses_and_gradients(case, tmp_path):
  with np.load(GOLDENS / f"{case}.npz") as file:
    arrays = dict(file)
  model, params = load(arrays, tmp_path, "params")
  image = tuple(arrays.get(x) for x in ("patches", "type", "yidx", "xidx"))
  if case != "naflex":
    image = arrays["image"].astype(np.float32)

  def compute(params):
    zimg, ztxt, out = model.apply({"params": params}, image, arrays["text"])
    t, b = out["t"][0], out.get("b", jnp.zeros(1))[0]
    found = {"zimg": zimg, "ztxt": ztxt, "logits": zimg @ ztxt.T * t + b}
    for kind, loss in contrastive.LOSSES.items():
      total, _ = loss(zimg, ztxt, t, b, jnp.ones(len(zimg), bool))
      found[f"{kind}_loss"] = total / len(zimg)
    return found["sigmoid_loss" if "b" in out else "softmax_loss"], found

  (_, found), grads = jax.jit(jax.value_and_grad(compute, has_aux=True))(params)
  for name, value in found.items():
    np.testing.assert_allclose(value, arrays[name], atol=BOUND, err_msg=name)
  # Gradients lie in a file as the parameters do.
  expected = tree.flatten(load(arrays, tmp_path, "grads")[1])
  grads = tree.flatten(grads)
  assert grads.keys() == expected.keys()
  for name, grad in grads.items():
    np.testing.assert_allclose(
      grad, expected[name], atol=BOUND, err_msg=name, rtol=BOUND
    )
