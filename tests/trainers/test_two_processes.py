"""Two real processes are one, also when both are told to stop and resume."""

import json
import os
import signal
import socket

import numpy as np
import pytest

from paligemma.checkpoints import npz

STOP_AFTER = 17


@pytest.fixture(scope="module")
def start_both(processes):
  """Starts a command as two processes of two virtual devices each."""

  def start(command):
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      address = f"localhost:{probe.getsockname()[1]}"
    return [
      processes.start(
        *command,
        "--distributed",
        environment={
          "JAX_COORDINATOR_ADDRESS": address,
          "JAX_NUM_PROCESSES": "2",
          "JAX_PROCESS_ID": str(index),
        },
      )
      for index in range(2)
    ]

  return start


@pytest.fixture(scope="module")
def finish_both(start_both, processes):
  """Runs a command as two processes, both to a good end."""

  def finish(command):
    for process in start_both(command):
      status, output = processes.finish(process)
      assert status == 0, output

  return finish


@pytest.fixture(scope="module")
def whole(uninterrupted, finish_both, tmp_path_factory):
  """The folder of a run of two processes that nothing interrupted."""
  folder = tmp_path_factory.mktemp("whole")
  finish_both((*uninterrupted.command, f"--workdir={folder}"))
  return folder


@pytest.fixture
def interrupt(uninterrupted, start_both, processes, tmp_path):
  """Sends a signal to one of two processes in the middle; returns both."""

  def interrupt(index, number):
    command = (*uninterrupted.command, f"--workdir={tmp_path}")
    command = (*command, "--config.evals={}", "--config.keep_best=")
    both = start_both(command)
    log = tmp_path / "metrics.jsonl"
    reached = f'"step": {STOP_AFTER}'
    processes.wait_until(
      both[0], lambda: log.exists() and reached in log.read_text()
    )
    both[index].send_signal(number)
    return both

  return interrupt


def test_two_processes_are_one(uninterrupted, whole, read_metrics):
  expected = npz.load(uninterrupted.folder / "final.npz")
  found = npz.load(whole / "final.npz")
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_allclose(
      found[name], array, rtol=0, atol=1e-5, err_msg=name
    )
  for line, other in zip(
    read_metrics(whole), read_metrics(uninterrupted.folder), strict=True
  ):
    assert line.keys() == other.keys()
    for name in ("step", "loss", "grad_norm", "num_tokens"):
      if name in line:
        assert line[name] == pytest.approx(other[name], rel=1e-4), line
  assert _predictions(whole) == _predictions(uninterrupted.folder)


def test_both_stop_if_one_is_told_and_resume_bit_for_bit(
  uninterrupted,
  whole,
  interrupt,
  finish_both,
  processes,
  read_metrics,
  tmp_path,
):
  for process in interrupt(1, signal.SIGTERM):  # the other hears of it
    status, output = processes.finish(process)
    assert status == os.EX_TEMPFAIL, output
  assert STOP_AFTER <= read_metrics(tmp_path)[-1]["step"] < 60
  assert not (tmp_path / "final.npz").exists()

  finish_both((*uninterrupted.command, f"--workdir={tmp_path}"))
  _check_same(tmp_path, whole, read_metrics)
  assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # one a start


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_and_both_are_started_again(
  uninterrupted,
  whole,
  interrupt,
  finish_both,
  processes,
  read_metrics,
  tmp_path,
  killed,
):
  both = interrupt(killed, signal.SIGKILL)
  status, output = processes.finish(both[1 - killed])
  assert status == 1
  assert not (tmp_path / "final.npz").exists()
  assert output.splitlines()[-1].startswith(
    "error: another process of this run ended, or cannot be reached"
  )

  finish_both((*uninterrupted.command, f"--workdir={tmp_path}"))
  _check_same(tmp_path, whole, read_metrics)


def _check_same(folder, whole, read_metrics):
  for name in ("final.npz", "best.npz", "best.json"):
    assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
  assert _predictions(folder) == _predictions(whole)
  losses = [
    [(line["step"], line["loss"]) for line in read_metrics(f) if "loss" in line]
    for f in (folder, whole)
  ]
  assert losses[0] == losses[1]


def _predictions(folder):
  lines = (folder / "val/predictions.jsonl").read_text().splitlines()
  predictions = [json.loads(line) for line in lines]
  return [(p["index"], p["where"], p["prediction"]) for p in predictions]
