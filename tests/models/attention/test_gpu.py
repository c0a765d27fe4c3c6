"""What kernels for GPUs are given, computed by other code of their packages."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from paligemma.models.attention import gpu as gpu_attention
from paligemma.models.attention import masks
from paligemma.models.attention import reference as attention

# Arrays whose last two axes are queries and keys: 509 of each, or 512.
ALL_PAIRS = re.compile(r"tensor<(\d+x)*5\d\dx5\d\dx\w+>")


@pytest.fixture
def tokamax(monkeypatch):
  """The package, which reads absl's flags as soon as it is used."""
  library = pytest.importorskip("tokamax")
  was_parsed = flags.FLAGS.is_parsed()
  monkeypatch.setattr(sys, "argv", ["test"])
  with jax.numpy_rank_promotion("allow"):  # its own code relies on it
    yield library
  if not was_parsed:
    flags.FLAGS.unparse_flags()


def draw(heads, kv_heads, dtype="float32"):
  rng = np.random.default_rng(0)
  sizes = [heads, kv_heads, kv_heads, heads]
  return [jnp.asarray(rng.standard_normal((3, 23, n, 8)), dtype) for n in sizes]


def prefix_mask():
  """A prefix with padding inside, one with padding behind, and frames."""
  place = np.arange(23)
  input_mask = place < np.array([23, 17, 22])[:, None]
  input_mask[0, 3:8] = False
  mask_ar = place >= np.array([11, 5, 2])[:, None]
  mask_ar[2] = place % 5 == 0
  return masks.make_mask(input_mask, mask_ar.astype(np.int32))


def mix_and_gradients(attend, q, k, v, weights, mask):
  sees = mask.query_block[:, :, None, None] >= 0

  @jax.jit
  def run(q, k, v):
    def total(q, k, v):
      out = jnp.where(sees, attend(q, k, v), 0)
      return jnp.sum(out.astype(jnp.float32) * weights), out

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients

  return run(q, k, v)


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_tokamax_reads_ranges_as_the_mask(monkeypatch, tokamax, cap, window):
  called = []

  def plain(*args, implementation, **how):
    called.append(implementation)
    assert how["mask"].shape == (3, 1, 1, 128)
    return attend(*args, implementation="xla", **how)

  attend = tokamax.dot_product_attention
  monkeypatch.setattr(tokamax, "dot_product_attention", plain)
  mask = prefix_mask()
  settings = {"mask": mask, "scale": 0.7, "logits_softcap": cap}
  settings["window"] = window
  arrays = draw(4, 2)
  found = mix_and_gradients(
    functools.partial(gpu_attention.tokamax, **settings), *arrays, mask
  )
  expected = mix_and_gradients(
    functools.partial(attention.attend, **settings), *arrays, mask
  )
  assert called == ["mosaic"]
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_tokamax_without_its_gpu(monkeypatch, tokamax):
  monkeypatch.setattr(attention, "_platform", lambda: "gpu")
  *arrays, _ = draw(4, 2, "bfloat16")
  with pytest.raises(ValueError, match=r'"tokamax" cannot .* "auto"'):
    attention.attend(
      *arrays, prefix_mask(), scale=1.0, implementation="tokamax"
    )


def test_tokamax_is_not_installed(monkeypatch):
  monkeypatch.setitem(sys.modules, "tokamax", None)
  *arrays, _ = draw(4, 2, "bfloat16")
  with pytest.raises(ValueError, match="pip install tokamax"):
    gpu_attention.tokamax(*arrays, prefix_mask(), scale=1.0)


@pytest.mark.filterwarnings("ignore:The out_shape and scratch_shapes")
def test_tokamax_lowers_for_hopper_without_all_pairs(monkeypatch, tokamax):
  """As if there were one: whether the GPU does it right is not known."""
  from tokamax._src import gpu_utils
  from tokamax._src.ops.attention import api

  attend = tokamax.dot_product_attention
  monkeypatch.setattr(
    tokamax,
    "dot_product_attention",
    lambda *args, implementation, **how: attend(
      *args, implementation=f"{implementation}_gpu", **how
    ),
  )
  assert "mosaic_gpu" in api.IMPLEMENTATIONS
  for name in ("has_mosaic_gpu_support", "is_sm90"):
    monkeypatch.setattr(gpu_utils, name, lambda *device: True)
  monkeypatch.setattr(gpu_utils, "is_sm100", lambda *device: False)
  monkeypatch.setattr(attention, "_platform", lambda: "gpu")

  def total(q, k, v, mask_ar):
    mask = masks.make_mask(mask_ar >= 0, mask_ar)
    out = attention.attend(
      q,
      k,
      v,
      mask,
      scale=1.0,
      window=7,
      logits_softcap=5.0,
      implementation="tokamax",
    )
    return jnp.sum(out.astype(jnp.float32))

  shapes = [(1, 509, heads, 256) for heads in (8, 1, 1)]
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  arrays.append(jax.ShapeDtypeStruct((1, 509), jnp.int32))
  step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  text = step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("custom_call @mosaic_gpu") >= 2
  assert not ALL_PAIRS.search(text)


def test_cudnn_lowers_for_cuda_without_all_pairs(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo as fused

  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(fused, "check_compute_capability", lambda *_: True)
  monkeypatch.setattr(attention, "_platform", lambda: "gpu")

  def total(q, k, v):
    out = attention.attend(q, k, v, scale=1.0, implementation="cudnn")
    return jnp.sum(out.astype(jnp.float32))

  shapes = [(1, 512, 16, 72)] * 3  # the image tower's heads
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  text = step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text
  assert not ALL_PAIRS.search(text)


def test_cudnn_is_given_heads_and_scale(monkeypatch):
  plain = functools.partial(jax.nn.dot_product_attention, implementation="xla")
  monkeypatch.setattr(
    jax.nn,
    "dot_product_attention",
    lambda *args, implementation, **how: plain(*args, **how),
  )
  monkeypatch.setattr(attention, "_refuse", lambda *_: None)
  *arrays, _ = draw(4, 2)
  out = attention.attend(*arrays, scale=0.7, implementation="cudnn")
  expected = attention.attend(*arrays, scale=0.7)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
