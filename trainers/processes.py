"""Several processes that are one program: how they find each other."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from paligemma import messages

_ADDRESS = "JAX_COORDINATOR_ADDRESS"


def expected() -> bool:
  """Whether the environment names a coordinator for several processes."""
  return _ADDRESS in os.environ


def start(distributed: bool) -> None:
  """What every program does before its first computation.

  Args:
    distributed: Whether to `join` others.
  """
  if distributed:
    join()
  if devices_wait_for_each_other():
    # What jaxlib 0.10.2 reads from there for CPUs communicates in another order
    # than what it compiles, and processes get what is meant for others.
    jax.config.update("jax_enable_compilation_cache", False)


def devices_wait_for_each_other() -> bool:
  """Whether these are CPU devices that share threads.

  With several programs in flight those of one may wait for threads that hold
  devices of another, and all for ever (jaxlib 0.10.2). GPUs and TPUs keep the
  order in which programs were started.
  """
  return jax.devices()[0].platform == "cpu" and jax.device_count() > 1


@contextlib.contextmanager
def lost_process_in_one_line() -> Iterator[None]:
  """Ends the process at once, with a line on it, if another one is lost."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    print(
      "error: another process of this run ended, or cannot be reached "
      f"({messages.one_line(error)}); see its last line, then start all again "
      "to resume",
      file=sys.stderr,
      flush=True,
    )
    # At a usual end it would wait for the other process.
    os._exit(1)


def join() -> None:
  """Joins those that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID name, or what the cluster (TPU pod, SLURM) says."""
  count = os.environ.get("JAX_NUM_PROCESSES")
  index = os.environ.get("JAX_PROCESS_ID")
  jax.distributed.initialize(
    num_processes=count and int(count), process_id=index and int(index)
  )
