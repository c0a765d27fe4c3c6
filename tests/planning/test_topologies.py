import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from paligemma.planning import memory, topologies
from scripts import plan


def gpu_compiler_is_there():
  return (plan.GPU_COMPILER / topologies._GPU_LIBRARY).exists()


@pytest.mark.parametrize(
  "name", ["v5e", "v9:2x2", "v5e:4", "h100:1x1", "H100", "t4:8", ""]
)
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


def test_without_the_compiler_of_gpus(tmp_path):
  with pytest.raises(ValueError, match="needs the GPU compiler") as end:
    topologies.devices("h200", tmp_path)
  assert f"not in {tmp_path}: pip install --no-deps" in str(end.value)
  assert f"jax-cuda13-plugin=={jax.__version__}" in str(end.value)
  with pytest.raises(ValueError, match=r"this environment: .*--target FOLDER"):
    topologies.devices("h200")


def test_a_jaxlib_that_describes_gpus_otherwise(monkeypatch, tmp_path):
  library = tmp_path / topologies._GPU_LIBRARY
  library.parent.mkdir(parents=True)
  library.touch()
  # As a later jaxlib may be: without the functions that none promises.
  monkeypatch.setattr(topologies, "xla_client", object())
  with pytest.raises(
    ValueError, match=r"0\.10 and 0\.11 do; pip install jax=="
  ):
    topologies.devices("t4", tmp_path)


def test_compiles_for_gpus():
  if not gpu_compiler_is_there():
    pytest.skip(topologies.gpu_compiler_command(plan.GPU_COMPILER))
  found = topologies.devices("h200:1x1x8", plan.GPU_COMPILER)
  assert {device.device_kind for device in found} == {"NVIDIA H200"}
  assert len(found) == 8
  (device,) = topologies.devices("t4", plan.GPU_COMPILER)
  place = SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct((2**19, 2**10), jnp.float16, sharding=place)
  lowered = jax.jit(lambda x: x * 2).lower(x)
  compiled = lowered.compile(compiler_options=topologies.GPU_OPTIONS)
  assert memory.of(compiled).peak == 2**31  # in and out


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
