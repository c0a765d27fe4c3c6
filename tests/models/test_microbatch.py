"""Microbatches: the same result, and no example leaves its device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models import device, microbatch
from paligemma.planning import collectives, topologies
from paligemma.training import sharding
from scripts import plan


@pytest.mark.parametrize(
  ("rows", "at_once", "expected"),
  [(6, 6, 1), (6, 5, 2), (6, 2, 3), (6, 1, 6), (6, 0, 6), (7, 6, 7)],
)
def test_number_of_microbatches(rows, at_once, expected):
  assert microbatch.find_number(rows, at_once) == expected


def test_rows_of_one_device():
  assert microbatch.local_batch(24) == 24
  with jax.set_mesh(sharding.make_mesh(data=4, model=2)):
    assert jax.jit(lambda: microbatch.local_batch(24))() == 6
    assert microbatch.find_number(24, 2) == 3
    # What the devices do not share equally is not spread.
    assert microbatch.local_batch(7) == 7


@pytest.mark.parametrize("num_microbatches", [1, 2, 3])
def test_microbatches_make_a_batch(num_microbatches):
  x = np.arange(24.0).reshape(12, 2)
  numbers = []

  def double(_, arrays):
    number, x, others = arrays
    numbers.append(number)
    return (), 2 * x + others["a"][:, None] + number * 0

  _, out = microbatch.scan_microbatches(
    double, (), (x, {"a": np.arange(12.0)}), num_microbatches
  )
  np.testing.assert_array_equal(out, 2 * x + np.arange(12.0)[:, None])
  assert len(numbers) == 1


def test_scan_hands_on_its_carry():
  def add(carry, part):
    number, x = part
    return carry + x.sum(), x * 0 + number

  total, numbers = microbatch.scan_microbatches(
    add, jnp.zeros(()), (jnp.arange(6.0),), 3
  )
  assert total == 15
  np.testing.assert_array_equal(numbers, [0, 0, 1, 1, 2, 2])


@pytest.fixture
def mesh():
  mesh = sharding.make_mesh(data=4, model=2)
  with jax.set_mesh(mesh):
    yield mesh


@pytest.mark.parametrize("processes", [1, 2])
def test_every_device_has_its_rows(mesh, monkeypatch, processes):
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  place = sharding.batch_sharding(mesh)
  x = jax.device_put(np.arange(48.0).reshape(24, 2), place)

  def shift_and_sum(shift, x):
    assert microbatch.local_batch(len(x)) == len(x) == 6
    numbers, out = microbatch.scan_microbatches(
      lambda seen, part: (jnp.append(seen, part[0])[1:], part[1] + shift),
      jnp.zeros(3, jnp.int32),
      (x,),
      3,
    )
    sums = {"split": jnp.sum(x) + jnp.arange(8.0), "not": numbers}
    return sums, out

  def run(x):
    like = {"split": jnp.zeros(8), "not": jnp.zeros(3)}
    like = jax.eval_shape(lambda: like)
    return microbatch.on_each_device(shift_and_sum, jnp.float32(5), x, like)

  compiled = jax.jit(run).lower(x).compile()
  sums, out = compiled(x)
  np.testing.assert_array_equal(out, np.asarray(x) + 5)
  assert out.sharding.is_equivalent_to(place, 2)
  np.testing.assert_array_equal(sums["split"], x.sum() + 4 * np.arange(8))
  assert sums["split"].addressable_shards[0].data.shape == (2,)
  # Parts are numbered through: 0, 1, 2 of the first device, then 3, 4, 5, ...
  np.testing.assert_array_equal(sums["not"], [18, 22, 26])
  for exchange in ("all-gather", "all-to-all", "collective-permute"):
    assert exchange not in compiled.as_text()
  # That of Gloo, between CPU processes, is wrong at times.
  assert ("reduce-scatter" in compiled.as_text()) == (processes == 1)


def test_rows_that_the_devices_cannot_share_stay_together(mesh):
  del mesh

  def shift_and_sum(shift, x):
    return x.sum(), x + shift

  total, out = microbatch.on_each_device(shift_and_sum, 5.0, jnp.arange(7.0))
  assert total == 21
  np.testing.assert_array_equal(out, np.arange(7) + 5)


def gradient_step(x):
  """The product of two halves of the features, summed over all examples."""

  def multiply(_, x):
    return x[:, :256].T @ x[:, 256:], x

  like = jax.eval_shape(lambda: jnp.zeros((256, x.shape[1] - 256), x.dtype))
  return microbatch.on_each_device(multiply, (), x, like)[0]


def test_sums_are_split_in_turns(monkeypatch):
  tpu = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
  monkeypatch.setattr(device, "current", lambda: tpu)
  monkeypatch.setattr(microbatch, "_SCATTERED_AT_ONCE", 2)
  mesh = sharding.make_mesh(data=8)
  with jax.set_mesh(mesh):
    x = np.random.default_rng(0).standard_normal((16, 768)).astype(np.float32)
    x = jax.device_put(x, sharding.batch_sharding(mesh))
    compiled = jax.jit(gradient_step).lower(x).compile()
    total = compiled(x)
  expected = np.asarray(x)[:, :256].T @ np.asarray(x)[:, 256:]
  np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
  assert total.addressable_shards[0].data.shape == (256, 64)
  found = collectives.find(compiled.as_text())
  size = 256 * 512 * 4  # before the first turn, of 2 devices
  assert collectives.bytes_by_kind(found)["reduce-scatter"] == size + size // 2


def test_tpus_add_the_largest_last(monkeypatch):
  tpu = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
  monkeypatch.setattr(device, "current", lambda: tpu)
  mesh = sharding.make_mesh(data=8)
  like = {
    "large": jax.ShapeDtypeStruct((24,), jnp.float32),
    "next": jax.ShapeDtypeStruct((16,), jnp.float32),
    "small": jax.ShapeDtypeStruct((8,), jnp.float32),
  }

  def tile(_, x):
    tiled = {name: jnp.tile(x, sum.size) for name, sum in like.items()}
    return tiled, x

  def add(x):
    return microbatch.on_each_device(tile, (), x, like)[0]

  with jax.set_mesh(mesh):
    x = jnp.array([256, 1, 1, 1, 1, 1, 1, 1], jnp.bfloat16)
    x = jax.device_put(x, sharding.batch_sharding(mesh))
    lowered = jax.jit(add).lower(x)
    added = lowered.compile()(x)
  for name, total in added.items():  # in bfloat16, 256 + 1 is 256
    expected = np.full(like[name].shape, 263, np.float32)
    np.testing.assert_array_equal(total, expected, strict=True)
  before, after = lowered.as_text().split("optimization_barrier")
  assert before.count("reduce_scatter") == 2  # the small and the next one
  widened = "(tensor<24xbf16>) -> tensor<24xf32>"
  assert widened not in before and widened in after


@pytest.mark.parametrize("name", ["v5e:2x4", "v5e:4x4", "v5p:4x4x4"])
def test_tpus_split_sums_as_they_add(monkeypatch, tmp_path, name):
  pytest.importorskip("libtpu")
  for variable, value in plan.WITHOUT_A_TPU.items():
    monkeypatch.setenv(variable, value)
  mesh = sharding.make_mesh(devices=topologies.devices(name))
  rows = sharding.batch_sharding(mesh)
  x = jax.ShapeDtypeStruct((128, 256 + 8192), jnp.float32, sharding=rows)
  # jaxlib cannot read all that libtpu writes, so not compiled.as_text().
  options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
  with jax.set_mesh(mesh):
    jax.jit(gradient_step).lower(x).compile(options)
  (text,) = tmp_path.glob("*.jit_*after_optimizations.txt")
  found = collectives.bytes_by_kind(collectives.find(text.read_text()))
  assert found["reduce-scatter"] >= 256 * 8192 * 4
  assert found["all-reduce"] == 0


def test_a_batch_stays_split():
  mesh = sharding.make_mesh(data=8)

  def run(x):
    return microbatch.split_batch(x), microbatch.split_batch(x[:7])

  with jax.set_mesh(mesh):
    x = jax.device_put(np.zeros((8, 16)), sharding.replicated(mesh))
    split, rest = jax.jit(run)(x)
    assert split.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
    assert rest.sharding.is_fully_replicated
