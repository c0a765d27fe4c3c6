"""The kernels, interpreted on the CPU, against the reference."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from paligemma.models import device as device_lib
from paligemma.models import linear
from paligemma.models.attention import flash, flash_gpu, masks
from paligemma.models.attention import reference as attention
from paligemma.planning import chips, roofline, topologies
from paligemma.training import sharding
from scripts import plan


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """Runs kernels on the CPU, with tiles of 128, the smallest there are."""
  interpret = functools.partial(flash.pl.pallas_call, interpret=True)
  monkeypatch.setattr(flash.pl, "pallas_call", interpret)
  monkeypatch.setattr(flash, "_LARGEST", 128)


def prefix_mask(length):
  """Ragged prefixes, padding inside and behind, frames, an empty row."""
  place = np.arange(length)
  prefix, end = [length // 2, 17, 1, 0], [length, length - 5, 29, 0]
  input_mask = place < np.array(end)[:, None]
  input_mask[0, length // 3 : length // 3 + 19] = False
  mask_ar = place >= np.array(prefix)[:, None]
  mask_ar[1, 17:] = place[17:] % 13 == 0  # blocks that see all of themselves
  return masks.make_mask(input_mask, mask_ar.astype(np.int32))


def packed_mask(length):
  """Rows of several texts, ragged prefixes in them, padding behind."""
  rng = np.random.default_rng(5)
  begins = rng.random((4, length)) < 0.05
  segment_ids = np.cumsum(begins, axis=1)
  mask_ar = begins | (rng.random((4, length)) < 0.5)
  input_mask = (
    np.arange(length) < np.array([length, length - 7, 101, 0])[:, None]
  )
  return masks.make_mask(input_mask, mask_ar.astype(np.int32), segment_ids)


def any_mask(queries, keys):
  """Blocks and positions in no order, padding here and there."""
  rng = np.random.default_rng(3)

  def draw(low, high, size):
    return jnp.asarray(rng.integers(low, high, (4, size)), jnp.int32)

  key_block = draw(0, 7, keys)
  return masks.Mask(
    query_block=draw(-1, 6, queries),
    key_block=jnp.where(key_block == 6, 2**31 - 1, key_block),
    query_position=draw(0, 41, queries),
    key_position=draw(0, 41, keys),
  )


def draw(heads, kv_heads, head_dim, queries, keys, dtype="float32"):
  rng = np.random.default_rng(0)
  sizes = [(queries, heads), (keys, kv_heads), (keys, kv_heads)]
  sizes.append((queries, heads))
  return [
    jnp.asarray(rng.standard_normal((4, *size, head_dim)), dtype)
    for size in sizes
  ]


def mix_and_gradients(attend, q, k, v, weights, mask, window, **settings):
  """What sees something, and the gradients of a sum of it by q, k and v."""
  sees = mask.dense(window).any(axis=2)[:, :, None, None]

  @jax.jit
  def run(q, k, v, window):
    def total(q, k, v):
      out = attend(q, k, v, mask, window=window, scale=0.3, **settings)
      out = jnp.where(sees, out, 0)
      return jnp.sum(out.astype(jnp.float32) * weights), out

    return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

  gradients, out = run(q, k, v, window)
  return [np.asarray(x, np.float32) for x in (out, *gradients)]


reference = functools.partial(attention.attend, implementation="reference")
both = pytest.mark.parametrize("kernel", [flash, flash_gpu])


@both
@pytest.mark.parametrize(
  ("heads", "head_dim", "cap", "window", "mask"),
  [
    ((8, 1), 11, None, None, prefix_mask(131)),
    ((3, 3), 72, 2.5, 7, prefix_mask(131)),
    ((6, 3), 13, 2.5, 23, any_mask(131, 269)),
    ((4, 2), 11, 2.5, 7, packed_mask(269)),
    ((4, 1), 11, None, None, packed_mask(269)),
    ((2, 1), 144, None, None, prefix_mask(131)),
  ],
  ids=["one_kv", "all_kv", "any_mask", "packed", "packed_no_window", "wide"],
)
def test_equals_reference(kernel, heads, head_dim, cap, window, mask):
  sizes = (mask.query_block.shape[1], mask.key_block.shape[1])
  q, *others = draw(*heads, head_dim, *sizes)
  arrays = q * 3 / head_dim**0.5, *others
  settings = {"mask": mask, "window": window, "logits_softcap": cap}
  found = mix_and_gradients(kernel.attend, *arrays, **settings)
  expected = mix_and_gradients(reference, *arrays, **settings)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@both
def test_bfloat16_is_as_near_to_float32_as_the_reference(kernel):
  mask = prefix_mask(131)
  arrays = draw(4, 2, 11, 131, 131, "bfloat16")
  settings = {"mask": mask, "window": 7, "logits_softcap": 2.5}
  exact = [x.astype(jnp.float32) for x in arrays]
  exact = mix_and_gradients(reference, *exact, **settings)
  found = mix_and_gradients(kernel.attend, *arrays, **settings)
  rounded = mix_and_gradients(reference, *arrays, **settings)
  for a, b, c in zip(found, rounded, exact, strict=True):
    assert np.abs(a - c).mean() < 1.1 * np.abs(b - c).mean()
    assert np.abs(a - c).max() < 2 * np.abs(b - c).max()


@both
def test_one_softmax_over_large_and_small_logits(kernel):
  # Of the first tile the weights vanish beside those of the second, and if the
  # largest logit were not taken off, they would overflow.
  q, k, v, weights = draw(1, 1, 3, 131, 257)
  arrays = (100 * q, k.at[:, 128:].multiply(100.0), v, weights)
  settings = {"mask": any_mask(131, 257), "window": None}
  found, *gradients = mix_and_gradients(kernel.attend, *arrays, **settings)
  expected, *_ = mix_and_gradients(reference, *arrays, **settings)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert all(np.isfinite(x).all() for x in gradients)


@both
def test_a_query_without_keys_gets_zeros_and_sends_none_back(kernel):
  mask = prefix_mask(131)
  blind = ~mask.dense().any(axis=2)
  assert blind.any()

  @jax.jit
  def run(q, k, v):
    def attend(*arrays):
      return kernel.attend(*arrays, mask, scale=1.0)

    out, pull_back = jax.vjp(attend, q, k, v)
    cotangent = jnp.where(blind[:, :, None, None], jnp.ones_like(out), 0.0)
    return out, pull_back(cotangent)

  out, gradients = run(*draw(2, 1, 5, 131, 131)[:3])
  assert not out[blind].any()
  assert out[~blind].any()
  assert not any(gradient.any() for gradient in gradients)


@both
def test_tiles_that_nobody_sees_are_passed_over(kernel):
  q, k, v, weights = draw(2, 1, 5, 257, 257)
  place = jnp.arange(257)[None].repeat(4, axis=0)
  # Text of one tile, then padding: were it computed with, 0 * NaN is NaN.
  mask = masks.make_mask(place < 128, place)
  arrays = (q, k.at[:, 128:].set(jnp.nan), v.at[:, 128:].set(jnp.nan), weights)
  mixed = mix_and_gradients(kernel.attend, *arrays, mask=mask, window=None)
  assert all(np.isfinite(x).all() for x in mixed)


@pytest.mark.parametrize(
  ("length", "tile"),
  [(131, 256), (512, 512), (513, 384), (1152, 384), (4224, 384), (4608, 512)],
)
def test_tiles(monkeypatch, length, tile):
  monkeypatch.undo()
  assert flash._tile(length) == tile


def gradient_step(length):
  """A function of (q, k, v, mask_ar), and the shapes that it takes."""

  policy = jax.checkpoint_policies.save_only_these_names(linear.PRODUCT)

  @functools.partial(jax.checkpoint, policy=policy)  # as a layer does
  def attend(q, k, v, mask):
    return attention.attend(
      jnp.sin(q), k, v, mask, scale=1.0, window=7, logits_softcap=5.0
    )

  def total(q, k, v, mask_ar):
    mask = masks.make_mask(mask_ar >= 0, mask_ar)
    return jnp.sum(attend(q, k, v, mask).astype(jnp.float32) ** 2)

  shapes = [(1, length, n, 72) for n in (2, 1, 1)]
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  arrays.append(jax.ShapeDtypeStruct((1, length), jnp.int32))
  return jax.value_and_grad(total, argnums=(0, 1, 2)), arrays


def largest_array(hlo):
  shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", hlo)
  return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_no_array_of_all_queries_and_keys(monkeypatch):
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**13)
  device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
  monkeypatch.setattr(device_lib, "current", lambda: device)
  step, arrays = gradient_step(509)
  hlo = jax.jit(step).lower(*arrays).compile().as_text()
  assert "509,72" in hlo.replace(" ", "")
  assert largest_array(hlo) < 509 * 509


@pytest.mark.parametrize("head_dim", [72, 256])
@pytest.mark.parametrize("name", ["l4", "a100-40", "h200"])
def test_compiles_for_gpus(monkeypatch, name, head_dim):
  monkeypatch.undo()
  if not (plan.GPU_COMPILER / topologies._GPU_LIBRARY).exists():
    pytest.skip(topologies.gpu_compiler_command(plan.GPU_COMPILER))
  mesh = sharding.make_mesh(devices=topologies.devices(name, plan.GPU_COMPILER))
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**13)
  step, arrays = gradient_step(1217)
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arrays = [
    jax.ShapeDtypeStruct(
      (*x.shape[:-1], head_dim) if x.ndim == 4 else x.shape,
      x.dtype,
      sharding=here,
    )
    for x in arrays
  ]
  with jax.set_mesh(mesh):
    compiled = jax.jit(step).lower(*arrays).compile(topologies.GPU_OPTIONS)
  hlo = compiled.as_text()
  # The backward pass does not attend again: what it needs is kept.
  assert hlo.count("__gpu$xla.gpu.triton") == 3
  assert largest_array(hlo) < 1217 * 1217
  found = roofline.analyse(hlo, chips.CHIPS[name])
  tiles, padded = -(-1217 // 64) * 64, {72: 128, 256: 256}[head_dim]
  if name == "l4" and head_dim == 256:  # half of the side
    tiles = -(-1217 // 32) * 32
  assert found.flops == 2 * (2 + 3 + 4) * 2 * tiles**2 * padded


@pytest.mark.parametrize("name", ["v4:1x1x1", "v5e:2x2"])
def test_compiles_for_tpus(monkeypatch, tmp_path, name):
  pytest.importorskip("libtpu")
  monkeypatch.undo()
  for variable, value in plan.WITHOUT_A_TPU.items():
    monkeypatch.setenv(variable, value)
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**13)
  devices = topologies.devices(name)
  if name.startswith("v4"):
    devices = devices[:1]  # one of two cores
  mesh = sharding.make_mesh(devices=devices)
  step, arrays = gradient_step(1217)
  # jaxlib cannot read all that libtpu writes, so not compiled.as_text().
  options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  arrays = [
    jax.ShapeDtypeStruct((len(devices), *x.shape[1:]), x.dtype, sharding=rows)
    for x in arrays
  ]
  with jax.set_mesh(mesh):
    jax.jit(step).lower(*arrays).compile(options)
  (text,) = pathlib.Path(tmp_path).glob("*.jit_*after_optimizations.txt")
  hlo = text.read_text()
  for kernel in ("mix", "queries", "keys"):
    assert f"flash_{kernel}_tile" in hlo
  assert largest_array(hlo) < 1217 * 1217


def test_no_memory_is_read_before_it_is_written(monkeypatch):
  """In the interpreter that has the memories of a TPU, empty ones of NaN."""
  monkeypatch.undo()
  monkeypatch.setattr(flash, "_LARGEST", 128)
  mask = jax.tree.map(lambda x: x[:1], prefix_mask(131))
  arrays = [x[:1] for x in draw(2, 1, 5, 131, 131)]
  settings = {"mask": mask, "window": 7, "logits_softcap": 2.5}
  simulator = pltpu.InterpretParams(uninitialized_memory="nan", random_seed=7)
  with pltpu.force_tpu_interpret_mode(simulator):
    found = mix_and_gradients(flash.attend, *arrays, **settings)
  expected = mix_and_gradients(reference, *arrays, **settings)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
