"""Processes that lose one end with a line on it; for a slow one they wait."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from unittest import mock

import pytest
from jax._src import distributed

from trainers import processes

# Sums over all processes for ever; lines of process 0 count the sums.
SCRIPT = """
import jax, numpy as np
from jax.experimental import multihost_utils
from trainers import processes
processes.HEARTBEAT_SECONDS = 10
processes.start(distributed=True)
expected = sum(range(jax.process_count()))
with processes.lost_process_in_one_line():
  while True:
    ranks = multihost_utils.process_allgather(np.int32(jax.process_index()))
    assert ranks.sum() == expected
    print("summed", flush=True)
"""
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
LOST = "error: another process of this run ended, or cannot be reached"


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    (
      {},
      "--distributed: coordinator_address should be defined. JAX finds the "
      "processes of TPU pods and of srun; elsewhere, set JAX_COORDINATOR_"
      "ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each",
    ),
    (
      {"ADDRESS": "localhost:1", "PROCESSES": "2"},
      "--distributed: The process id of the current process must be defined. ",
    ),
    (
      {"ADDRESS": "localhost:1", "PROCESSES": "2", "ID": "2"},
      "Got process_id=2, num_processes=2. JAX finds",
    ),
    ({"ADDRESS": "here"}, 'ADDRESS is "here", expected HOST:PORT'),
    (
      {"ADDRESS": "localhost:1", "PROCESSES": "two"},
      'JAX_NUM_PROCESSES is "two", expected a number',
    ),
    ({"ID": "-1"}, 'JAX_PROCESS_ID is "-1", expected a number'),
  ],
)
def test_processes_that_cannot_be_found(variables, message, monkeypatch):
  names = {
    "ADDRESS": "JAX_COORDINATOR_ADDRESS",
    "PROCESSES": "JAX_NUM_PROCESSES",
    "ID": "JAX_PROCESS_ID",
  }
  for name, variable in names.items():
    monkeypatch.delenv(variable, raising=False)
    if name in variables:
      monkeypatch.setenv(variable, variables[name])
  # This process has used JAX, which `initialize` would not allow.
  monkeypatch.setattr(
    processes.jax.distributed, "initialize", distributed.State().initialize
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    processes.start(distributed=True)


@pytest.mark.parametrize(
  ("platforms", "given", "expected"),
  [
    ("cpu", None, f"{IN_ORDER}"),
    ("cpu", "--xla_dump_to=a", f"--xla_dump_to=a {IN_ORDER}"),
    ("cuda", "--xla_dump_to=a", "--xla_dump_to=a"),
  ],
)
def test_cpus_run_collectives_in_one_order(
  platforms, given, expected, monkeypatch
):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  if given is not None:
    monkeypatch.setenv("XLA_FLAGS", given)
  monkeypatch.setattr(processes, "jax", mock.MagicMock())
  processes.jax.config.jax_platforms = platforms
  processes.jax.device_count.return_value = 1
  processes.start(distributed=True)
  processes.jax.distributed.initialize.assert_called_once()
  assert os.environ["XLA_FLAGS"] == expected


@pytest.fixture
def start():
  """Starts so many processes of the script, which have summed once."""
  with contextlib.ExitStack() as stack:

    def start(count):
      with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
      environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
      }
      started = []
      for index in range(count):
        process = subprocess.Popen(
          [sys.executable, "-c", SCRIPT],
          env={**environment, "JAX_PROCESS_ID": str(index)},
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
        )
        started.append(process)
        stack.callback(process.communicate)
        stack.callback(process.kill)
      for process in started:
        wait_for_sum(process)
      return started

    yield start


def wait_for_sum(process):
  said = []
  while "summed\n" not in said:
    said.append(process.stdout.readline())
    assert said[-1], said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("count", "lost"), [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_the_last_line_of_all_others_names_the_cause(
  start, count, lost, number
):
  started = start(count)
  started.pop(lost).send_signal(number)
  for process in started:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert said.splitlines()[-1].startswith(LOST), said
    assert said.endswith("then start all again to resume\n"), said


def test_a_slow_process_is_waited_for(start):
  first, second = start(2)
  second.send_signal(signal.SIGSTOP)
  with pytest.raises(subprocess.TimeoutExpired):
    first.wait(5)
  second.send_signal(signal.SIGCONT)
  for process in (first, second):
    wait_for_sum(process)
