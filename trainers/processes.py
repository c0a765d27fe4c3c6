"""Several processes that are one program: how they find each other."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

import jax

from paligemma import messages

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
# Without a sign of life of a process for so long, the others end.
HEARTBEAT_SECONDS = 100


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
    # Of jaxlib 0.10.2 on CPUs: two processes that read the step of the tiny
    # model from there ended with "Gloo context initialization failed" after
    # 30 s, and those that compiled it did not (seen on a busy machine).
    jax.config.update("jax_enable_compilation_cache", False)


def devices_wait_for_each_other() -> bool:
  """Whether these are CPU devices that share threads.

  All devices are handed the same programs in the same order, by one thread, but
  may be at different ones. With several in flight those of one program may wait
  for threads that another one holds, and all of them until XLA ends the process
  after 40 s: "Termination timeout for all gather", with participants that wait
  at different operations (jaxlib 0.10.2). So it is a lack of threads, not of
  order. No test can show that it is mended: on 2 cores with 20 jobs 2 resumes
  of 4 devices ended so, with 9 jobs none of 1,400 programs that were handed
  over ahead. GPUs and TPUs keep the order in which programs were started.
  """
  return jax.devices()[0].platform == "cpu" and jax.device_count() > 1


@contextlib.contextmanager
def lost_process_in_one_line() -> Iterator[None]:
  """Ends the process at once, with a line on it, if another one is lost.

  What fails first says so: a computation with the lost process, at once if it
  was killed, or JAX's own watch, which aborts, if it was process 0 or stands
  still for HEARTBEAT_SECONDS. A slow process is waited for.
  """
  with _aborts(_end_after_abort):
    try:
      yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
      # A ValueError where a computation fails while it is handed over.
      is_lost = not isinstance(error, ValueError) or "Gloo" in str(error)
      if jax.process_count() == 1 or not is_lost:
        raise
      _end(f" ({messages.one_line(error)}); see its last line")


@contextlib.contextmanager
def _aborts(handle):
  """Calls a function of the number of the signal where C++ code aborts.

  A handler of Python's would run in the main thread, later, and JAX aborts in
  another one.
  """
  if jax.process_count() == 1:
    yield
    return
  library = ctypes.CDLL(None)
  library.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  library.signal.restype = ctypes.c_void_p
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  before = library.signal(signal.SIGABRT, handler)
  try:
    yield
  finally:
    library.signal(signal.SIGABRT, before)


def _end_after_abort(number):
  del number
  _end(", and JAX gave up; see above, and its last line")


def _end(detail):
  print(
    f"error: another process of this run ended, or cannot be reached{detail}, "
    "then start all again to resume",
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
    num_processes=count and int(count),
    process_id=index and int(index),
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
  )
