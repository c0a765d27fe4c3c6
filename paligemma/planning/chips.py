"""The accelerators that runs are planned for: memory, peaks, and their names.

Peaks are those of the vendors' data sheets, dense.
"""

from typing import NamedTuple


class Gpu(NamedTuple):
  """What XLA has to know about a GPU to compile for it.

  Attributes:
    capability: CUDA compute capability.
    cores: Streaming multiprocessors.
    fpus: Float32 units of each.
    threads: The most threads on each.
    shared: Bytes of shared memory of each.
    block: The most bytes of them for one block.
    l2: Bytes of the level 2 cache.
    clock: GHz.
  """

  capability: tuple[int, int]
  cores: int
  fpus: int
  threads: int
  shared: int
  block: int
  l2: int
  clock: float


class Chip(NamedTuple):
  """One device.

  Attributes:
    usable_gib: GiB that a program may take. TPUs: the limit that their compiler
      names when a program exceeds it (libtpu 0.0.51). GPUs: 0.5 GiB less than
      CUDA reports (14.7, 22.0, 39.4, 79.1, 79.1 and 139.8 GiB); of a T4's
      16 GB, error correction takes some.
    flops: FLOP/s of products in bfloat16; of a T4, in float16.
    float32_flops: FLOP/s of products in float32 at JAX's default precision:
      TPUs round to bfloat16, GPUs since Ampere to TF32.
    bandwidth: Bytes/s of the main memory.
    kinds: What JAX calls it, `device.device_kind`.
    gpu: None for a TPU.
  """

  usable_gib: float
  flops: float
  float32_flops: float
  bandwidth: float
  kinds: tuple[str, ...]
  gpu: Gpu | None = None


_MIB = 2**20
_HOPPER = Gpu((9, 0), 132, 128, 2048, 233472, 232448, 50 * _MIB, 1.98)
_AMPERE = Gpu((8, 0), 108, 64, 2048, 167936, 166912, 40 * _MIB, 1.41)
_ADA = Gpu((8, 9), 58, 128, 1536, 102400, 101376, 48 * _MIB, 2.04)
_TURING = Gpu((7, 5), 40, 64, 1024, 65536, 65536, 4 * _MIB, 1.59)

# A device of a described slice of v4 is one of the two cores of a chip.
CHIPS = {
  "v4": Chip(15.25, 137.5e12, 137.5e12, 614e9, ()),
  "v5e": Chip(15.75, 197e12, 197e12, 819e9, ("TPU v5 lite",)),
  "v5p": Chip(95.73, 459e12, 459e12, 2765e9, ("TPU v5", "TPU v5p")),
  "v6e": Chip(31.24, 918e12, 918e12, 1640e9, ("TPU v6 lite",)),
  "t4": Chip(14.2, 65e12, 8.1e12, 320e9, ("Tesla T4",), _TURING),
  "l4": Chip(21.5, 121e12, 60e12, 300e9, ("NVIDIA L4",), _ADA),
  "a100-40": Chip(
    *(38.9, 312e12, 156e12, 1555e9, ("NVIDIA A100-SXM4-40GB",), _AMPERE)
  ),
  "a100-80": Chip(
    *(78.6, 312e12, 156e12, 2039e9, ("NVIDIA A100-SXM4-80GB",), _AMPERE)
  ),
  "h100": Chip(
    *(78.6, 989e12, 494e12, 3350e9, ("NVIDIA H100 80GB HBM3",), _HOPPER)
  ),
  "h200": Chip(139.3, 989e12, 494e12, 4800e9, ("NVIDIA H200",), _HOPPER),
}


def of_kind(device_kind: str) -> Chip | None:
  """Returns the chip that JAX calls so, None for another one (a CPU)."""
  if device_kind == "TPU v4":  # there, a device is a whole chip
    core = CHIPS["v4"]
    return core._replace(
      usable_gib=2 * core.usable_gib,
      flops=2 * core.flops,
      float32_flops=2 * core.float32_flops,
      bandwidth=2 * core.bandwidth,
    )
  found = (chip for chip in CHIPS.values() if device_kind in chip.kinds)
  return next(found, None)
