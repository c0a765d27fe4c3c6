import itertools
import time

import jax

from trainers import progress

SECONDS = "/jax/core/compile/backend_compile_duration"


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
  with progress.bar("val") as show:
    show(100, 1_250)
    assert lines(capsys) == ["val: 100 of 1,250 examples ..."]
    # An earlier start has done 100: 500 are done in 12 s, 650 are left.
    for done in (350, 600, 850, 1_250):
      show(done, 1_250)
  assert lines(capsys) == ["val: 600 of 1,250 examples, 00:15 left"]


def test_what_was_compiled_has_a_line_and_is_no_speed(capsys, monkeypatch):
  monkeypatch.setattr(time, "monotonic", itertools.count(0, 20).__next__)
  with progress.bar("val") as show:
    show(0, 100)
    jax.monitoring.record_event_duration_secs(SECONDS, 1.25)
    jax.monitoring.record_event_duration_secs(SECONDS, 2.5)
    for done in (20, 30, 100):
      show(done, 100)
  assert lines(capsys) == [
    "val: 0 of 100 examples ...",
    "val: compiled in 3.8 s",
    "val: 30 of 100 examples, 02:20 left",
  ]
  with progress.bar("val") as show:
    show(0, 100)
    jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
    jax.monitoring.record_event_duration_secs(SECONDS, 0.25)
    show(100, 100)
  assert lines(capsys)[1:] == ["val: compiled in 0.2 s, from the cache"]


def test_copied_bytes_have_a_speed(capsys, monkeypatch):
  monkeypatch.setattr(time, "monotonic", itertools.count(0, 10).__next__)
  monkeypatch.setattr(time, "perf_counter", itertools.count(0, 2.5).__next__)
  with progress.copying("weights") as show:
    for done in (0, 2, 6):
      show(done * 2**30, 6 * 2**30)
  assert lines(capsys) == [
    "weights: 0 of 6 GiB ...",
    "weights: 2 of 6 GiB, 00:20 left",
    "weights: 6 GiB, 2.4 GiB/s, 2.5 s",
  ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  with progress.bar("val") as show:
    show(0, 7)
    show(7, 7)
  said = capsys.readouterr().err
  assert "val: 100%" in said
  assert "| 7/7 [" in said
  with progress.copying("weights") as show:
    show(0, 5 * 2**30)
    show(2**30, 5 * 2**30)
  assert "1.00/5.00 [" in capsys.readouterr().err


def test_only_process_0_prints(capsys, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with progress.stage("weights"):
    progress.say(["hello"])
  for shown in (progress.bar("val"), progress.copying("weights")):
    with shown as show:
      show(1, 2)
  assert not lines(capsys)
