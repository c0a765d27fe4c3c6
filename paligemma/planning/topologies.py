"""Devices that are not there, to compile for: slices of TPUs, and GPUs."""

import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

import jax
from jax._src.lib import xla_client
from jax.experimental import topologies

from paligemma.planning.chips import CHIPS
from paligemma.planning.memory import GIB

# Without a GPU no kernel can be timed to choose the fastest.
GPU_OPTIONS = {"xla_gpu_autotune_level": 0}
_GPU_LIBRARY = "jax_plugins/xla_cuda13/xla_cuda_plugin.so"


def devices(
  name: str, gpu_compiler: str | os.PathLike | None = None
) -> Sequence[jax.Device]:
  """Describes a slice through libtpu, or GPUs through JAX's plug-in for CUDA.

  Programs can be compiled for a mesh of these devices, but not run. Away from a
  TPU, libtpu waits for a metadata server unless the environment has
  TPU_SKIP_MDS_QUERY=1, TPU_WORKER_HOSTNAMES=localhost and some
  TPU_ACCELERATOR_TYPE. The plug-in needs neither a GPU nor CUDA.

  Args:
    name: A chip of CHIPS and the sides of the slice, "v5e:4x4", "v5p:4x4x4", or
      the numbers of NVLink domains, of hosts in each and of GPUs in each host:
      "h200:1x1x8". One GPU is "h200".
    gpu_compiler: Folder into which pip has installed the plug-in, see
      `gpu_compiler_command`. Default: where Python finds it.

  Raises:
    ValueError: No such devices, or the compiler is not there or has changed.
  """
  chip, _, sides = name.partition(":")
  is_gpu = chip in CHIPS and CHIPS[chip].gpu is not None
  pattern = r"(\d+x\d+x\d+)?" if is_gpu else r"\d+x\d+(x\d+)?"
  if chip not in CHIPS or not re.fullmatch(pattern, sides):
    raise ValueError(
      f'unknown topology "{name}", expected a chip ({", ".join(CHIPS)}) and, '
      "behind a colon, its sides: v5e:4x4, v5p:4x4x4, h200:1x1x8; h200 is one"
    )
  if is_gpu:
    return _gpus(chip, sides or "1x1x1", gpu_compiler)
  try:
    return topologies.get_topology_desc(name, platform="tpu").devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'topology "{name}": {error}') from None
  except RuntimeError as error:
    raise ValueError(
      f'topology "{name}" needs the TPU compiler: pip install -e ".[plan]" '
      f"({error})"
    ) from None


def gpu_compiler_command(folder: str | os.PathLike) -> str:
  """Returns the command that installs the compiler of GPUs into a folder.

  Apart, because JAX takes the plug-in among its own packages for a GPU that
  does not work, and says so whenever it starts.
  """
  version = jax.__version__
  return (
    f"pip install --no-deps --target {folder} "
    f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
  )


def _gpus(chip, sides, folder):
  library = pathlib.Path(folder or "", _GPU_LIBRARY)
  if folder is None:
    spec = importlib.util.find_spec("jax_plugins")
    places = spec.submodule_search_locations if spec else ()
    found = [pathlib.Path(place).parent / _GPU_LIBRARY for place in places]
    library = next((path for path in found if path.exists()), library)
  if not library.exists():
    raise ValueError(
      f'topology "{chip}" needs the GPU compiler, which is not in '
      f"{folder or 'this environment'}: "
      f"{gpu_compiler_command(folder or 'FOLDER')}"
    )
  try:
    if not xla_client.pjrt_plugin_loaded("cuda"):
      xla_client.load_pjrt_plugin_dynamically("cuda", str(library))
    if not xla_client.pjrt_plugin_initialized("cuda"):
      xla_client.initialize_pjrt_plugin("cuda")
    # Not part of JAX's public interface: it may change with any version.
    topology = xla_client._xla.get_default_c_api_topology(
      "cuda",
      "",
      {"target_config": _target(chip), "topology": sides},
    )
    return topology._make_compile_only_devices()
  except (AttributeError, TypeError) as error:
    raise ValueError(
      f'topology "{chip}": jaxlib {jax.lib.__version__} describes GPUs in '
      f"another way than 0.10 and 0.11 do; pip install jax==0.10.2 ({error})"
    ) from None
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'topology "{chip}:{sides}": {error}') from None


def _target(chip):
  """Returns a GPU as XLA describes it, a GpuTargetConfigProto as text."""
  found = CHIPS[chip]
  gpu = found.gpu
  major, minor = gpu.capability
  info = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": gpu.shared,
    "shared_memory_per_block_optin": gpu.block,
    "threads_per_core_limit": gpu.threads,
    "core_count": gpu.cores,
    "fpus_per_core": gpu.fpus,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "memory_bandwidth": int(found.bandwidth),
    "l2_cache_size": gpu.l2,
    "clock_rate_ghz": gpu.clock,
    "device_memory_size": int((found.usable_gib + 0.5) * GIB),
  }
  fields = " ".join(f"{key}: {value}" for key, value in info.items())
  return (
    f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} "
    f'minor: {minor} }} }} platform_name: "CUDA" dnn_version_info {{ major: 9 '
    f'minor: 12 patch: 0 }} device_description_str: "{found.kinds[0]}"'
  )
