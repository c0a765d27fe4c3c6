"""Masks by whole matrices; RoPE and attention against float64 loops."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models import device as device_lib
from paligemma.models import linear
from paligemma.models.attention import chunked, flash, flash_gpu, masks
from paligemma.models.attention import reference as attention
from paligemma.training import sharding


def matrix(picture):
  """bool[lines, marks]: "x" is True, "." is False."""
  lines = picture.strip().split("\n")
  return np.array([[mark == "x" for mark in line.split()] for line in lines])


CAUSAL = """
x . . . .
x x . . .
x x x . .
x x x x .
x x x x x"""
PREFIX = """
x x x . .
x x x . .
x x x . .
x x x x .
x x x x x"""
BLOCKS = """
x x . . .
x x . . .
x x x x .
x x x x .
x x x x x"""
PADDED_END = """
x x x . .
x x x . .
x x x . .
x x x x .
. . . . ."""
PADDED_MIDDLE = """
x x . . .
x x . . .
. . . . .
x x . x .
x x . x x"""


@pytest.mark.parametrize(
  ("input_mask", "mask_ar", "golden"),
  [
    ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], CAUSAL),
    ([1, 1, 1, 1, 1], [0, 1, 1, 1, 1], CAUSAL),
    ([1, 1, 1, 1, 1], [0, 0, 0, 1, 1], PREFIX),
    ([1, 1, 1, 1, 1], [1, 0, 1, 0, 1], BLOCKS),
    ([1, 1, 1, 1, 0], [0, 0, 0, 1, 1], PADDED_END),
    ([1, 1, 0, 1, 1], [0, 0, 0, 1, 1], PADDED_MIDDLE),
    ([1, 1, 0, 1, 1], [0, 0, 1, 1, 1], PADDED_MIDDLE),
  ],
  ids=[
    "causal",
    "causal_from_zero",
    "prefix",
    "blocks",
    "padded_end",
    "padded_middle",
    "padded_middle_with_new_block",
  ],
)
def test_make_mask(input_mask, mask_ar, golden):
  # A second, causal row: rows of a batch must not influence each other.
  mask = masks.make_mask(
    jnp.asarray([input_mask, [1] * 5], bool), jnp.asarray([mask_ar, [1] * 5])
  ).dense()
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask[0], matrix(golden))
  np.testing.assert_array_equal(mask[1], matrix(CAUSAL))


SEGMENTS = [1, 1, 1, 2, 2, 2, 0]
TWO_TEXTS = """
x . . . . . .
x x . . . . .
x x x . . . .
. . . x . . .
. . . x x . .
. . . x x x .
. . . . . . ."""
# The second begins with a prefix of two tokens; a window of 2.
PREFIX_AND_WINDOW = """
x . . . . . .
x x . . . . .
. x x . . . .
. . . x x . .
. . . x x . .
. . . . x x .
. . . . . . ."""


@pytest.mark.parametrize(
  ("mask_ar", "window", "golden"),
  [
    ([1] * 7, None, TWO_TEXTS),
    ([1, 1, 1, 1, 0, 1, 1], 2, PREFIX_AND_WINDOW),
  ],
  ids=["causal", "prefix_and_window"],
)
def test_texts_of_a_row_do_not_see_each_other(mask_ar, window, golden):
  mask = masks.make_mask(
    jnp.asarray([SEGMENTS], bool), jnp.asarray([mask_ar]), np.array([SEGMENTS])
  )
  np.testing.assert_array_equal(mask.dense(window)[0], matrix(golden))
  np.testing.assert_array_equal(mask.query_position, [[0, 1, 2, 0, 1, 2, 0]])


@pytest.mark.parametrize(
  ("window", "mask_ar", "golden"),
  [
    (1, [1] * 5, "x . . . .\n. x . . .\n. . x . .\n. . . x .\n. . . . x"),
    (2, [1] * 5, "x . . . .\nx x . . .\n. x x . .\n. . x x .\n. . . x x"),
    (5, [1] * 5, CAUSAL),
    (
      2,
      [0, 0, 0, 1, 1],
      "x x x . .\nx x x . .\nx x x . .\n. . x x .\n. . . x x",
    ),
    (
      1,
      [1, 0, 1, 1, 0],
      "x x . . .\nx x . . .\n. . x . .\n. . . x x\n. . . x x",
    ),
  ],
  ids=["1", "2", "5", "prefix", "blocks"],
)
def test_window(window, mask_ar, golden):
  mask = masks.make_mask(jnp.ones((1, 5), bool), jnp.asarray([mask_ar]))
  np.testing.assert_array_equal(mask.dense(window)[0], matrix(golden))
  # A number that is only known when the program runs.
  dense = jax.jit(lambda mask, window: mask.dense(window))
  np.testing.assert_array_equal(dense(mask, window)[0], matrix(golden))


def test_window_goes_by_position_not_by_place():
  mask = masks.make_next_mask(
    jnp.ones((2, 5), bool),
    jnp.asarray([[4, 5, 6, 7, 7], [0, 1, 2, 2, 3]]),
    jnp.asarray([[7], [3]]),
  )
  seen = mask.dense(3)[:, 0]
  np.testing.assert_array_equal(seen, matrix(". x x x x\n. x x x x"))


def rope_loop(x, positions, max_wavelength):
  """Each pair (x[i], x[i + H / 2]) is a complex number that turns."""
  out = np.empty(x.shape, np.float64)
  half = x.shape[-1] // 2
  for b, t, n in np.ndindex(x.shape[:3]):
    for i in range(half):
      turn = np.exp(1j * positions[b, t] / max_wavelength ** (i / half))
      turned = (float(x[b, t, n, i]) + 1j * float(x[b, t, n, i + half])) * turn
      out[b, t, n, i] = turned.real
      out[b, t, n, i + half] = turned.imag
  return out


@pytest.mark.parametrize("max_wavelength", [10_000, 17])
def test_apply_rope_equals_complex_rotation(max_wavelength):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 5, 3, 14)).astype(np.float32)
  # A float32 angle of 911 radians is exact to 3e-5.
  positions = np.array([[0, 1, 2, 3, 911], [0, 0, 7, 13, 89]])
  rotated = attention.apply_rope(
    jnp.asarray(x), jnp.asarray(positions), max_wavelength=max_wavelength
  )
  expected = rope_loop(x, positions, max_wavelength)
  np.testing.assert_allclose(rotated, expected, rtol=0, atol=1e-4)
  np.testing.assert_array_equal(rotated[1, :2], x[1, :2])


def test_apply_rope_is_float32_inside():
  x = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
  # bfloat16 cannot tell 1000 from 1001: one radian would be lost.
  rotated = attention.apply_rope(x, jnp.asarray([[1000, 1001]]))
  assert rotated.dtype == jnp.bfloat16
  first, second = (np.asarray(r, np.float32) for r in rotated[0, :, 0])
  assert np.dot(first, second) / 2 == pytest.approx(np.cos(1), abs=0.01)


def attend_loop(q, k, v, mask, scale, cap):
  """Attention one query, one head, one key at a time."""
  batch, queries, heads, _ = q.shape
  group = heads // k.shape[2]
  out = np.zeros(q.shape, np.float64)
  for b in range(batch):
    for n in range(heads):
      for t in range(queries):
        weights = []
        for s in range(k.shape[1]):
          logit = scale * np.dot(q[b, t, n], k[b, s, n // group])
          if cap is not None:
            logit = cap * np.tanh(logit / cap)
          weights.append(np.exp(logit) if mask[b, t, s] else 0.0)
        for s, weight in enumerate(weights):
          out[b, t, n] += weight / sum(weights) * v[b, s, n // group]
  return out


def random_qkv(*, heads=6, kv_heads=3, queries=5, keys=7, head_dim=11, seed=0):
  rng = np.random.default_rng(seed)
  q = rng.standard_normal((2, queries, heads, head_dim))
  k = rng.standard_normal((2, keys, kv_heads, head_dim))
  v = rng.standard_normal((2, keys, kv_heads, head_dim))
  key_block = rng.integers(0, 6, (2, keys))
  key_block[:, 2] = 0  # every query has a key
  mask = masks.Mask(
    *(jnp.asarray(x) for x in (rng.integers(0, 6, (2, queries)), key_block)),
    *(jnp.asarray(rng.integers(0, 9, (2, n))) for n in (queries, keys)),
  )
  return q, k, v, mask


def without_keys(mask, row, query):
  return mask.replace(query_block=mask.query_block.at[row, query].set(-1))


@pytest.mark.parametrize("how", ["auto", "reference", "chunked"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 3), (3, 1), (5, 5)])
def test_attend_equals_loop(heads, kv_heads, cap, masked, how):
  q, k, v, mask = random_qkv(heads=heads, kv_heads=kv_heads)
  seen = np.asarray(mask.dense()) | (not masked)
  assert seen.mean() < 0.8 or not masked
  expected = attend_loop(q, k, v, seen, 0.7, cap)
  out = attention.attend(
    *(jnp.asarray(x, jnp.float32) for x in (q, k, v)),
    mask if masked else None,
    scale=0.7,
    logits_softcap=cap,
    implementation=how,
    num_chunks=2,
  )
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_attend_softmax_is_float32_inside(dtype):
  # The logits are 90000.0 and 90000.6: infinite in float16, and in bfloat16
  # steps are 512 wide there.
  q = jnp.full((1, 1, 1, 2), 300.0, dtype)
  k = jnp.asarray([[300.0, 0.0], [300.0, 2**-9]], dtype)[None, :, None, :]
  v = jnp.asarray([[0.0, 0.0], [1.0, 1.0]], dtype)[None, :, None, :]
  out = attention.attend(q, k, v, scale=1.0)
  assert out.dtype == dtype
  weight = 1 / (1 + np.exp(-300 / 2**9))
  np.testing.assert_allclose(np.asarray(out, np.float32), weight, rtol=2**-8)


@pytest.mark.parametrize("how", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_attend_in_half_precision_is_near_float32(dtype, how):
  q, k, v, mask = random_qkv(seed=1)
  # Rounded first, so that only the computation differs.
  arrays = [jnp.asarray(x, dtype) for x in (q, k, v)]
  pushed = jnp.asarray(random_qkv(seed=3)[0], dtype)

  def value_and_gradients(how, arrays, pushed):
    def attend(q, k, v):
      return attention.attend(
        q, k, v, mask, scale=0.3, implementation=how, num_chunks=2
      )

    out, pull = jax.vjp(attend, *arrays)
    return out, *pull(pushed)

  expected = value_and_gradients(
    "reference",
    [x.astype(jnp.float32) for x in arrays],
    pushed.astype(jnp.float32),
  )
  found = value_and_gradients(how, arrays, pushed)
  # Weights, result and gradients are each rounded once, values are up to about
  # 3, sums of them for keys and values up to about 10.
  step = float(jnp.finfo(dtype).eps)
  for a, b, steps in zip(found, expected, (4, 8, 16, 16), strict=True):
    assert a.dtype == dtype
    np.testing.assert_allclose(
      np.asarray(a, np.float32), b, rtol=0, atol=steps * step
    )


def test_attend_without_any_key_averages():
  q, k, v, mask = random_qkv()
  out = attention.attend(
    *(jnp.asarray(x, jnp.float32) for x in (q, k, v)),
    without_keys(mask, 1, 3),
    scale=1.0,
    logits_softcap=2.0,
  )
  average = np.repeat(v[1].mean(axis=0), 2, axis=0)
  np.testing.assert_allclose(out[1, 3], average, rtol=1e-5, atol=1e-5)


def test_soft_cap():
  z = jnp.asarray([-1e4, -1.0, 0.0, 0.001, 3.0, 1e4])
  capped = attention.soft_cap(z, 5.0)
  expected = [-5.0, -5 * np.tanh(0.2), 0.0, 0.001, 5 * np.tanh(0.6), 5.0]
  np.testing.assert_allclose(capped, expected, rtol=1e-6)
  assert attention.soft_cap(z, None) is z
  assert attention.soft_cap(z, 0) is z  # big_vision's configs write 0


@pytest.mark.parametrize("how", ["reference", "chunked"])
def test_masked_logit_vanishes_and_keeps_gradients_finite(how):
  q, k, v, mask = random_qkv()
  mask = without_keys(mask, 0, 1)

  def total(q, k, v):
    return jnp.sum(
      attention.attend(q, k, v, mask, scale=1.0, implementation=how)
    )

  grads = jax.grad(total, argnums=(0, 1, 2))(
    *(jnp.asarray(x, jnp.float32) for x in (q, k, v))
  )
  assert all(jnp.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_chunks", [2, 3, 5, 7])
def test_chunks_change_neither_value_nor_gradient(num_chunks, packed):
  q, k, v, mask = random_qkv(queries=5, keys=7)
  if packed:  # every query still has the key of block 5
    mask = masks.Mask(
      jnp.maximum(mask.query_block, 5).at[:, 0].set(6),
      mask.key_block.at[:, 2].set(5),
      mask.query_position,
      mask.key_position,
      query_first=jnp.asarray([[3, 5, 0, 1, 4], [2, 0, 5, 5, 1]]),
    )
  weights = jnp.asarray(random_qkv(seed=3)[0], jnp.float32)

  @functools.partial(jax.jit, static_argnums=3)
  def value_and_grad(q, k, v, num_chunks):
    def total(q, k, v):
      out = attention.attend(
        q,
        k,
        v,
        mask,
        scale=0.7,
        logits_softcap=2.0,
        window=3,
        implementation="chunked" if num_chunks else "reference",
        num_chunks=num_chunks,
      )
      return jnp.sum(out * weights)

    return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)

  arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  expected = value_and_grad(*arrays, None)
  found = value_and_grad(*arrays, num_chunks)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    expected,
  )


def largest_array(hlo):
  """Elements of the largest array in the text of a program."""
  shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", hlo)
  return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def compile_gradient(how, *, batch, tokens, heads, head_dim):
  """The optimized program of value and gradient, as text."""
  shapes = [(batch, tokens, n, head_dim) for n in (heads, 1, 1)]
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  marks = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)

  def total(q, k, v, mask_ar):
    mask = masks.make_mask(mask_ar >= 0, mask_ar)
    out = attention.attend(
      q, k, v, mask, scale=1.0, window=7, logits_softcap=5.0, implementation=how
    )
    return jnp.sum(out * out)

  step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
  return step.lower(*arrays, marks).compile().as_text()


@pytest.mark.parametrize("how", ["reference", "chunked", "auto"])
def test_no_array_of_all_queries_and_keys(monkeypatch, how):
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**13)
  monkeypatch.setattr(attention, "_LOGITS_IN_CACHE", 2**13)
  hlo = compile_gradient(how, batch=2, tokens=211, heads=3, head_dim=5)
  holds_all = largest_array(hlo) >= 211 * 211
  assert holds_all == (how == "reference")


def test_chunks_are_not_attended_to_again():
  policy = jax.checkpoint_policies.save_only_these_names(linear.PRODUCT)

  @functools.partial(jax.checkpoint, policy=policy)  # as a layer does
  def attend(q, k, v):
    return attention.attend(
      jnp.sin(q), k, v, None, scale=1.0, implementation="chunked"
    )

  arrays = small("float32")[:3]
  step = jax.grad(lambda *x: jnp.sum(attend(*x) ** 2), argnums=(0, 1, 2))
  text = str(jax.make_jaxpr(step)(*arrays))
  assert text.count("dot_general[") == 2 + 5


@pytest.mark.parametrize("how", ["reference", "auto"])
def test_no_array_of_all_queries_and_keys_at_896_pixels(how):
  """4096 patches and 512 tokens of text; the program is not run."""
  hlo = compile_gradient(how, batch=1, tokens=4608, heads=8, head_dim=8)
  holds_all = "4608,4608]" in hlo
  assert holds_all == (how == "reference")
  assert (largest_array(hlo) > 2**25) == (how == "reference")


def small(dtype=jnp.bfloat16, length=131):
  x = jnp.zeros((1, length, 1, 8), dtype)
  tokens = jnp.ones((1, length), jnp.int32)
  return (x, x, x, masks.make_mask(tokens == 1, tokens))


KINDS = {
  "cpu": "cpu",
  "tpu": "TPU v5 lite",
  "gpu": "NVIDIA H200",
  "turing": "Tesla T4",
}


def device(name):
  platform = name if name in ("cpu", "tpu") else "gpu"
  return jax.sharding.AbstractDevice(KINDS[name], 1, platform)


@pytest.mark.parametrize(
  ("how", "name", "dtype", "message"),
  [
    ("flahs", "tpu", "bfloat16", 'unknown attention "flahs".*flash'),
    ("flash", "cpu", "bfloat16", "runs on a TPU or a GPU, found CPU"),
    ("flash", "tpu", "float16", "float32 or bfloat16 there, found float16"),
    ("flash", "gpu", "float32", "bfloat16 or float16 there, found float32"),
    ("flash", "turing", "float16", "GPU since Ampere, found Tesla T4"),
  ],
)
def test_what_an_implementation_cannot_do(
  monkeypatch, how, name, dtype, message
):
  monkeypatch.setattr(device_lib, "current", lambda: device(name))
  with pytest.raises(ValueError, match=message) as error:
    attention.attend(*small(dtype), scale=1.0, implementation=how)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("kind", "takes"),
  [
    ("NVIDIA A100-SXM4-40GB", True),
    ("NVIDIA GeForce RTX 4090", True),
    ("NVIDIA GeForce RTX 2080 Ti", False),
    ("NVIDIA TITAN V", False),
    ("Tesla V100-SXM2-16GB", False),
    ("AMD Instinct MI300X", False),
  ],
)
def test_gpus_that_take_triton(monkeypatch, kind, takes):
  found = jax.sharding.AbstractDevice(kind, 1, "gpu")
  monkeypatch.setattr(device_lib, "current", lambda: found)
  assert device_lib.takes_triton() == takes


@pytest.mark.parametrize(
  ("platform", "dtype", "length", "logits", "model", "chosen"),
  [
    ("cpu", "bfloat16", 131, 2**25, 1, "reference"),
    ("tpu", "bfloat16", 131, 2**25, 1, "reference"),
    ("cpu", "bfloat16", 131, 2**13, 1, "chunked"),
    ("gpu", "bfloat16", 131, 2**13, 1, "flash_gpu"),
    ("gpu", "float16", 131, 2**13, 1, "flash_gpu"),
    ("gpu", "float32", 131, 2**13, 1, "chunked"),
    ("turing", "float16", 131, 2**13, 1, "chunked"),
    ("tpu", "bfloat16", 131, 2**13, 1, "flash"),
    ("tpu", "float32", 131, 2**13, 1, "flash"),
    ("tpu", "float16", 131, 2**13, 1, "chunked"),
    ("tpu", "bfloat16", 113, 2**13, 1, "chunked"),
    ("tpu", "bfloat16", 131, 2**13, 2, "chunked"),
  ],
)
def test_auto(monkeypatch, platform, dtype, length, logits, model, chosen):
  monkeypatch.setattr(device_lib, "current", lambda: device(platform))
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", logits)
  monkeypatch.setattr(attention, "_LOGITS_IN_CACHE", logits)
  called = []

  def record(name, q, *_, **__):
    called.append(name)
    return q

  for name, where, path in (
    ("reference", attention, "_attend"),
    ("chunked", chunked, "attend"),
    ("flash", flash, "attend"),
    ("flash_gpu", flash_gpu, "attend"),
  ):
    monkeypatch.setattr(where, path, functools.partial(record, name))
  with jax.set_mesh(sharding.make_mesh(1, model, jax.devices()[:model])):
    attention.attend(*small(dtype, length), scale=1.0)
  assert called == [chosen]


def test_auto_leaves_the_kernel_where_no_mesh_says_how_devices_share(
  monkeypatch,
):
  monkeypatch.setattr(device_lib, "current", lambda: device("tpu"))
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**13)
  q, k, *_ = small("bfloat16", 131)
  choose = functools.partial(attention._choose, q, k, None, None)
  assert choose() == "chunked"
  with jax.set_mesh(sharding.make_mesh(8)):
    assert choose() == "flash"
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert choose() == "flash"


@pytest.mark.parametrize("how", ["flash", "chunked"])
def test_a_single_query_takes_the_reference(how):
  q, k, v, mask = random_qkv(queries=1)
  arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  out = attention.attend(*arrays, mask, scale=0.7, implementation=how)
  expected = attend_loop(q, k, v, np.asarray(mask.dense()), 0.7, None)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_the_device_is_that_of_the_mesh():
  assert device_lib.current().platform == "cpu"
  with jax.set_mesh(sharding.make_mesh(8)):
    assert device_lib.current().platform == "cpu"
  device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
  mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert device_lib.current() == device
