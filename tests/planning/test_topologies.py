import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from paligemma.planning import memory, topologies
from scripts import plan


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:4", "H100:1x1", ""])
def test_a_name_that_is_none(name):
  with pytest.raises(ValueError, match=f'topology "{name}", .* v5e:4x4') as end:
    topologies.devices(name)
  assert "\n" not in str(end.value)


def test_without_the_compiler(monkeypatch):
  def refuse(*arguments, **more):
    raise RuntimeError("JAX TPU support not installed")

  monkeypatch.setattr(topologies.topologies, "get_topology_desc", refuse)
  with pytest.raises(ValueError, match=r"pip install -e \"\.\[plan\]\""):
    topologies.devices("v5e:2x2")


def test_compiles_for_a_slice(monkeypatch):
  pytest.importorskip("libtpu")
  for name, value in plan.WITHOUT_A_TPU.items():
    monkeypatch.setenv(name, value)
  assert len(topologies.devices("v5e:4x4")) == 16
  assert len(topologies.devices("v5p:4x4x4")) == 64
  with pytest.raises(ValueError, match=r'topology "v5e:3x3": .*not divisible'):
    topologies.devices("v5e:3x3")
  (device,) = topologies.devices("v5e:1x1")
  place = SingleDeviceSharding(device)

  def needs(rows):
    x = jax.ShapeDtypeStruct((rows, 2**10), jnp.bfloat16, sharding=place)
    return memory.of(jax.jit(lambda x: x * 2).lower(x).compile())

  assert needs(2**19).peak == 2**31  # in and out
  with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
    needs(2**24)
  assert memory.wanted(refusal.value) == 64 * 2**30
