"""Which devices each of several runs on this machine uses."""

import os
import pathlib
import subprocess


def environments(count: int | None) -> list[dict[str, str]]:
  """Variables for each of the runs that go on at a time.

  Args:
    count: of runs; each has a GPU or a TPU chip to itself, and those on CPUs
      share all of them. None: as many as there are devices. 1: a run has all
      devices.

  Raises:
    ValueError: there are fewer devices, or none to count.
  """
  if count == 1:
    return [{}]
  devices = [] if os.environ.get("JAX_PLATFORMS") == "cpu" else _devices()
  if count is None and not devices:
    raise ValueError(
      "--parallel: found neither GPUs nor TPUs; on CPUs, give the number of "
      "runs at a time, such as --parallel 2"
    )
  count = count or len(devices)
  if devices and count > len(devices):
    raise ValueError(
      f"--parallel {count}: found {len(devices)} devices, one for each run"
    )
  return devices[:count] or [{} for _ in range(count)]


def _devices():
  if gpus := _gpus():
    return [{"CUDA_VISIBLE_DEVICES": name} for name in gpus]
  # One chip is then all that a process sees, a slice of its own.
  bounds = ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS")
  return [
    {"TPU_VISIBLE_CHIPS": f"{chip}", **dict.fromkeys(bounds, "1,1,1")}
    for chip in range(_count_tpu_chips())
  ]


def _gpus():
  """Names of the GPUs; JAX would take their memory if it counted them."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [name for name in visible.split(",") if name]
  try:
    listed = subprocess.run(
      ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True
    ).stdout
  except (OSError, subprocess.CalledProcessError):
    return []
  count = sum(line.startswith("GPU ") for line in listed.splitlines())
  return [str(i) for i in range(count)]


def _count_tpu_chips():
  folder = pathlib.Path("/dev")
  return len([*folder.glob("accel[0-9]*"), *folder.glob("vfio/[0-9]*")])
