"""The checks of a GPU, with a tiny model on the CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from scripts import gpu_check
from trainers import command_line

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs a command line on a GPU of so many GiB; returns what it prints."""
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "")

  def run(*arguments, gib=None):
    monkeypatch.setattr(gpu_check, "_gpu_gib", lambda: gib)
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    gpu_check.main()
    return capsys.readouterr().out

  return run


def test_a_dry_run(run):
  given = ("train_float16", "decode_1_int8", "--dry_run")
  training, decoding = map(json.loads, run(*given).splitlines())
  assert training["check"] == "train_float16"
  assert training["frozen_dtype"] == "float16"
  assert 0 < training["measured"]["loss"] < 20
  assert training["step_ms"] > 0
  assert training["mfu"] is None  # a CPU has no peak
  assert decoding["check"] == "decode_1_int8"
  assert decoding["frozen_dtype"] == "int8"
  assert decoding["first_token_ms"] > 0
  for found in (training, decoding):
    assert found["device"] == "cpu"
    assert 0 < found["planned_peak_gib"] < 1


def test_a_dry_run_of_attention(run):
  found = json.loads(run("attention_decoder", "--dry_run"))
  assert found["sizes"] == [2, 40, 2, 1, 16]
  assert found["reference_ms"] > 0 and found["chunked_ms"] > 0
  assert 0 < found["difference"] < 0.02  # of bfloat16


def test_a_small_gpu_has_checks_of_its_own(run):
  assert run("--list", gib=14.7).split() == list(gpu_check.SMALL)
  assert run("--list", gib=140.4).split() == list(gpu_check.LARGE)


def test_a_check_with_a_cap(run, monkeypatch):
  monkeypatch.setattr(gpu_check, "measure", lambda check, dry_run: {})
  run("cap_15_gib", gib=140.4)
  share = float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
  assert share == pytest.approx(15 / 140.4)


@pytest.mark.parametrize("checks", [gpu_check.LARGE, gpu_check.SMALL])
def test_every_check_is_a_config(checks):
  for check in checks.values():
    arguments = f"variant=paligemma_3b,{check.arguments}"
    command_line.load_config(f"configs/transfers/forkme.py:{arguments}")


def test_mistakes(run):
  with pytest.raises(ValueError, match=r"no GPU found .*--dry_run needs none"):
    run()
  with pytest.raises(ValueError, match=r"unknown checks train, .*_224"):
    run("train", "--dry_run")


def test_the_script_runs_each_check_and_says_what_failed(tmp_path):
  fake = tmp_path / "python"
  fake.write_text(
    '#!/bin/sh\ncase "$*" in\n*--list*) echo one two;;\n*two*) exit 3;;\n'
    '*) echo "ran $*";;\nesac\n'
  )
  fake.chmod(0o755)
  done = subprocess.run(
    ["bash", "scripts/gpu_check.sh"],
    cwd=ROOT,
    env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  ran, failed = done.stdout.splitlines()
  assert ran == "ran -m scripts.gpu_check one"
  assert json.loads(failed) == {"check": "two", "failed": 3}
