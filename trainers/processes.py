"""Several processes that are one program: start, and loss of one of them."""

import argparse
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax

from paligemma import messages
from trainers import command_line, compilation_cache, gpu_memory

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
# Without a sign of life of a process for so long, the others end.
HEARTBEAT_SECONDS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what `prepare` takes: --compilation_cache and --distributed."""
  parser.add_argument(
    "--compilation_cache",
    default=compilation_cache.FOLDER,
    metavar="DIR",
    help='keeps compiled programs; "" for none; JAX_COMPILATION_CACHE_DIR, '
    "where it is set, comes first (default: %(default)s)",
  )
  command_line.add_switch(
    parser,
    "distributed",
    "several processes: those that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
    "and JAX_PROCESS_ID name, or what the cluster (TPU pod, SLURM) says",
    default=_ADDRESS in os.environ,
  )


def prepare(options: dict[str, Any]) -> None:
  """Takes what `add_arguments` adds out of the options, and sets up JAX."""
  gpu_memory.configure()
  compilation_cache.configure(options.pop("compilation_cache"))
  start(options.pop("distributed"))


def start(distributed: bool) -> None:
  """What every program does before its first computation.

  Args:
    distributed: whether to join the processes that JAX_COORDINATOR_ADDRESS,
      JAX_NUM_PROCESSES and JAX_PROCESS_ID name, or else those of the cluster
      (TPU pod, SLURM).

  Raises:
    ValueError: nothing names them, or a variable has no such value.
  """
  if distributed:
    address = os.environ.get(_ADDRESS)
    if address is not None and not re.fullmatch(r".+:\d+", address):
      _raise_value(_ADDRESS, "HOST:PORT")
    count, index = _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID")
    if jax.config.jax_platforms == "cpu":
      # Of jaxlib 0.10.2: else each process begins collectives that do not need
      # each other in an order of its own, and Gloo takes one for the other:
      # "distributed collective mismatch", in 3 of 4 runs of the digits demo in
      # two processes; with this in none of 6.
      flags = os.environ.get("XLA_FLAGS", "")
      os.environ["XLA_FLAGS"] = f"{flags} {_IN_ORDER}".strip()
    try:
      jax.distributed.initialize(
        num_processes=count,
        process_id=index,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      )
    except ValueError as error:
      raise ValueError(
        f"--distributed: {error} JAX finds the processes of TPU pods and of "
        f"srun; elsewhere, set {_ADDRESS}=HOST:PORT, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID in each"
      ) from None
  if devices_wait_for_each_other():
    # Of jaxlib 0.10.2 on CPUs: two processes that read the step of the tiny
    # model from there ended with "Gloo context initialization failed" after
    # 30 s, and those that compiled it did not (seen on a busy machine).
    jax.config.update("jax_enable_compilation_cache", False)


def _integer(name):
  text = os.environ.get(name)
  if text is not None and not re.fullmatch(r"\d+", text):
    _raise_value(name, "a number")
  return text and int(text)


def _raise_value(name, expected):
  text = messages.shown(os.environ[name])
  raise ValueError(f'{name} is "{text}", expected {expected}')


def devices_wait_for_each_other() -> bool:
  """Whether these are CPU devices that share threads.

  With several programs in flight, the devices of one may wait for threads that
  another one holds, until XLA ends the process after 40 s: "Termination timeout
  for all gather" (jaxlib 0.10.2). So it is a lack of threads, not of order. No
  test can show that it is mended: on 2 cores with 20 jobs 2 resumes of 4
  devices ended so, with 9 jobs none of 1,400 programs that were started ahead.
  GPUs and TPUs keep the order in which programs were started.
  """
  return jax.devices()[0].platform == "cpu" and jax.device_count() > 1


@contextlib.contextmanager
def lost_process_in_one_line() -> Iterator[None]:
  """Ends the process at once, with a line on it, if another one is lost.

  What fails first says so: a computation with the lost process, at once if it
  was killed, or JAX's own watch, which aborts, if it was process 0 or stands
  still for HEARTBEAT_SECONDS. A slow process is waited for.
  """
  if jax.process_count() == 1:
    yield
    return

  def aborted(number):
    del number
    _end(", and JAX gave up; see above, and its last line")

  # JAX aborts in another thread; a handler of Python's would run in the main
  # one, later.
  library = ctypes.CDLL(None)
  library.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  library.signal.restype = ctypes.c_void_p
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
  before = library.signal(signal.SIGABRT, handler)
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    # A ValueError where a computation fails while it is started.
    if isinstance(error, ValueError) and "Gloo" not in str(error):
      raise
    _end(f" ({messages.one_line(error)}); see its last line")
  finally:
    library.signal(signal.SIGABRT, before)


def _end(detail):
  print(
    f"error: another process of this run ended, or cannot be reached{detail}, "
    "then start all again to resume",
    file=sys.stderr,
    flush=True,
  )
  # A regular exit would wait for the other process.
  os._exit(1)
