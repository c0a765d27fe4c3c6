import itertools
import time

import jax

from trainers import progress


def lines(capsys):
  return capsys.readouterr().err.splitlines()


def test_a_stage_says_that_it_begins_and_how_long_it_took(capsys, monkeypatch):
  monkeypatch.setattr(time, "perf_counter", itertools.count(0, 2.5).__next__)
  with progress.stage("weights") as details:
    assert lines(capsys) == ["weights ..."]
    details.append("5.44 GiB")
  assert lines(capsys) == ["weights: 5.44 GiB, 2.5 s"]


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(
  capsys, monkeypatch
):
  monkeypatch.setattr(time, "monotonic", itertools.count(0, 6).__next__)
  show = progress.bar("val")
  # An earlier start has done 100: 50 are done in 12 s, 100 are left.
  for done in (100, 125, 150, 175, 250):
    show(done, 250)
  assert lines(capsys) == ["val: 150 of 250 examples, 00:24 left"]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  show = progress.bar("val")
  show(0, 7)
  show(7, 7)
  with progress.byte_bar("weights", 5 * 2**30) as bar:
    bar.update(2**30)
  assert "val: 100%" in capsys.readouterr().err


def test_only_process_0_prints(capsys, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with progress.stage("weights"):
    progress.say(["hello"])
    progress.bar("val")(1, 2)
  assert not lines(capsys)
