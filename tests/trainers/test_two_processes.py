"""Two real processes are one, also when both are told to stop and resume."""

import json
import signal
import socket

import numpy as np
import pytest

from paligemma.checkpoints import npz

STOP_AFTER = 17


@pytest.fixture
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


def test_two_processes_are_one(
  uninterrupted, start_both, processes, read_metrics, tmp_path
):
  command = (*uninterrupted.command, f"--workdir={tmp_path}")
  both = start_both((*command, "--config.evals={}"))
  log = tmp_path / "metrics.jsonl"
  reached = f'"step": {STOP_AFTER}'
  processes.wait_until(
    both[0], lambda: log.exists() and reached in log.read_text()
  )
  both[1].send_signal(signal.SIGTERM)  # the other hears of it
  for process in both:
    status, output = processes.finish(process)
    assert status == 0, output
  stopped = read_metrics(tmp_path)[-1]["step"]
  assert STOP_AFTER <= stopped < 60
  assert not (tmp_path / "final.npz").exists()

  for process in start_both(command):
    status, output = processes.finish(process)
    assert status == 0, output
  expected = npz.load(uninterrupted.folder / "final.npz")
  found = npz.load(tmp_path / "final.npz")
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_allclose(
      found[name], array, rtol=0, atol=1e-5, err_msg=name
    )

  expected_lines = [
    line
    for line in read_metrics(uninterrupted.folder)
    if "loss" in line or line["step"] > stopped
  ]
  lines = [
    line
    for line in read_metrics(tmp_path)
    if "loss" in line or line["step"] > stopped
  ]
  assert [line["step"] for line in lines] == [
    line["step"] for line in expected_lines
  ]
  for line, other in zip(lines, expected_lines, strict=True):
    assert line.keys() == other.keys()
    for name in ("loss", "grad_norm", "num_tokens", "pplx/nll_per_token"):
      if name in line:
        assert line[name] == pytest.approx(other[name], rel=1e-4), line
  assert _predictions(tmp_path) == _predictions(uninterrupted.folder)
  assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # one a start


@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_is_killed_and_both_are_started_again(
  uninterrupted, start_both, processes, tmp_path, killed
):
  command = (
    *uninterrupted.command,
    "--config.evals={}",
    f"--workdir={tmp_path}",
  )
  both = start_both(command)
  log = tmp_path / "metrics.jsonl"
  reached = f'"step": {STOP_AFTER}'
  processes.wait_until(
    both[0], lambda: log.exists() and reached in log.read_text()
  )
  both[killed].send_signal(signal.SIGKILL)
  status, output = processes.finish(both[1 - killed])
  assert status != 0
  assert not (tmp_path / "final.npz").exists()
  if killed == 1:  # without process 0, which coordinates, JAX ends the others
    assert output.splitlines()[-1].startswith(
      "error: another process of this run ended, or cannot be reached ("
    )

  for process in start_both(command):
    status, output = processes.finish(process)
    assert status == 0, output
  expected = npz.load(uninterrupted.folder / "final.npz")
  found = npz.load(tmp_path / "final.npz")
  for name, array in expected.items():
    np.testing.assert_allclose(
      found[name], array, rtol=0, atol=1e-5, err_msg=name
    )


def _predictions(folder):
  lines = (folder / "val/predictions.jsonl").read_text().splitlines()
  predictions = [json.loads(line) for line in lines]
  return [(p["index"], p["where"], p["prediction"]) for p in predictions]
