"""Several processes that are one program: how they find each other."""

import os

import jax

_ADDRESS = "JAX_COORDINATOR_ADDRESS"


def expected() -> bool:
  """Whether the environment names a coordinator for several processes."""
  return _ADDRESS in os.environ


def join() -> None:
  """Joins those that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID name, or what the cluster (TPU pod, SLURM) says."""
  count = os.environ.get("JAX_NUM_PROCESSES")
  index = os.environ.get("JAX_PROCESS_ID")
  jax.distributed.initialize(
    num_processes=count and int(count), process_id=index and int(index)
  )
