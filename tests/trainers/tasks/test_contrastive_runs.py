"""Runs of contrastive training: data, processes, killed and resumed."""

import pathlib
import signal
import socket

import numpy as np
import pytest

from paligemma.checkpoints import npz
from scripts import make_shapes
from tests.trainers.conftest import load_module

CONFIG = pathlib.Path(__file__).parent / "siglip_config.py"
KILL_AFTER = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Thirteen pictures to train on, three to hold out."""
  folder = tmp_path_factory.mktemp("shapes") / "data"
  make_shapes.make_shapes(folder, num=13, num_val=3)
  return folder


def command(data, folder, *flags, **arguments):
  given = {"train": data / "train.jsonl", "val": "", "label": ""}
  arguments = given | arguments
  argument = ",".join(f"{name}={value}" for name, value in arguments.items())
  return f"--config={CONFIG}:{argument}", f"--workdir={folder}", *flags


def measured(lines):
  names = ("step", "loss", "accuracy", "temperature", "bias", "equal_texts")
  return [[line[name] for name in names] for line in lines if "loss" in line]


def test_a_killed_run_resumes_bit_for_bit(
  data, processes, read_metrics, tmp_path
):
  flags = "--config.checkpoint_steps=5", "--config.ema_decay=0.9"
  processes.run(*command(data, tmp_path / "whole", *flags, epochs=15))
  killed = command(data, tmp_path / "killed", *flags, epochs=15)
  process = processes.start(*killed)
  log = tmp_path / "killed/metrics.jsonl"
  processes.wait_until(
    process,
    lambda: log.exists() and f'"step": {KILL_AFTER}' in log.read_text(),
  )
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / "killed/final.npz").exists()
  processes.run(*killed)
  whole, resumed = (tmp_path / name for name in ("whole", "killed"))
  assert (whole / "final.npz").read_bytes() == (
    resumed / "final.npz"
  ).read_bytes()
  assert measured(read_metrics(whole)) == measured(read_metrics(resumed))


def test_two_processes_are_one_device(data, processes, read_metrics, tmp_path):
  """One step of plain gradient descent, so that weights show the gradient."""
  flags = (
    "--config.optimizer=sgd",
    "--config.optimizer_args={}",
    "--config.learning_rate=1.0",
    "--config.clip_norm=1e9",
    "--config.schedule=(('.*', {'decay': 'constant'}),)",
    "--config.total_steps=1",
  )
  processes.run(*command(data, tmp_path / "one", *flags), devices=1)
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  both = [
    processes.start(
      *command(data, tmp_path / "two", *flags, "--distributed"),
      environment={
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
      },
    )
    for index in range(2)
  ]
  for process in both:
    status, output = processes.finish(process)
    assert status == 0, output
  expected, found = (
    npz.load(tmp_path / name / "final.npz") for name in ("one", "two")
  )
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_allclose(
      found[name], array, rtol=1e-6, atol=1e-6, err_msg=name
    )
  one, two = (
    measured(read_metrics(tmp_path / name)) for name in ("one", "two")
  )
  np.testing.assert_allclose(one, two, rtol=1e-6)


def test_captions_that_cannot_be_used_end_in_one_line(data, main, tmp_path):
  lines = (data / "train.jsonl").read_text().splitlines()
  lines[3] = '{"image": "train/000003.png", "prefix": "caption en"}'
  path = data / "bad.jsonl"
  path.write_text("\n".join(lines))
  config = load_module(CONFIG).get_config(f"train={path},val=,label=")
  line = main(config, tmp_path / "run")
  assert line.endswith(
    "train.main: 1 of 13 examples looked at cannot be used, the first: "
    f'{path}:4: expected a caption under "suffix", or a list of captions under '
    '"captions", found image, prefix'
  )
  assert not (tmp_path / "run").exists()
  good = data / "train.jsonl"
  config = load_module(CONFIG).get_config(
    f"train={good},val=,label=,batch_size=1"
  )
  line = main(config, tmp_path / "run")
  assert "batch_size is 1, but a contrastive loss compares" in line
