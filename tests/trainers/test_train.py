"""Whole runs: stopped and resumed, on any mesh, with any choice."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from configs import tuning
from paligemma import tree
from paligemma.checkpoints import npz
from paligemma.training import sharding
from trainers import loop, run_files, train

TOTAL = 60
# What may differ between two runs; their commands do.
SPEED = ("examples_per_second", "tokens_per_second", "waited_for_data")
SPEED += ("bundle",)


def without_speed(lines):
  return [
    {name: value for name, value in line.items() if name not in SPEED}
    for line in lines
  ]


def saved_steps(folder):
  """Steps of the checkpoints that are wholly written."""
  if not (folder / "checkpoints").exists():
    return []
  names = (path.name for path in (folder / "checkpoints").iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def assert_same_files(folder, uninterrupted, names=("final.npz",)):
  for name in names:
    expected = uninterrupted.folder / name
    assert (folder / name).read_bytes() == expected.read_bytes(), name


def test_a_run_leaves_what_it_promises(uninterrupted, tiny, read_metrics):
  folder = uninterrupted.folder
  lines = read_metrics(folder)
  trained = [line for line in lines if "loss" in line]
  assert [line["step"] for line in trained] == list(range(1, TOTAL + 1))
  for name in ("pplx/perplexity", "pplx/ema/perplexity", "val/exact_match"):
    at = [line["step"] for line in lines if name in line]
    assert at == [0, 15, 30, 45, 60]
  assert trained[-1]["loss"] < trained[0]["loss"]
  assert {line["num_examples"] for line in trained} == {8}
  assert saved_steps(folder) == [55, 60]

  for name in ("val", "val/ema"):
    predictions = (folder / name / "predictions.jsonl").read_text()
    assert len(predictions.splitlines()) == 5
    kept = {path.name for path in (folder / name).glob("predictions-*")}
    assert kept == {f"predictions-{step}.jsonl" for step in at}
    last = folder / name / f"predictions-{TOTAL}.jsonl"
    assert last.read_text() == predictions
  ended = f"step {TOTAL} of {TOTAL}, 100%: finished"
  assert str(run_files.read(folder).status) == ended
  assert ended in (folder / "report.html").read_text()
  before = npz.load(tiny.folder / "paligemma_tiny.npz")
  after = npz.load(folder / "final.npz")
  assert not tree.compare(before, after)
  changed = {name for name in after if (before[name] != after[name]).any()}
  assert changed == {name for name in after if name.startswith("llm/")}
  # The last are the averages' best too, and these are what is written.
  found = json.loads((folder / "best.json").read_text())
  score = "pplx/ema/perplexity"
  last = next(x for x in lines if x["step"] == TOTAL and score in x)
  assert found == {"score": score, "value": last[score], "step": TOTAL}
  assert (folder / "best.npz").read_bytes() == (
    folder / "final.npz"
  ).read_bytes()


def test_killed_and_resumed(uninterrupted, processes, read_metrics, tmp_path):
  command = (*uninterrupted.command, f"--workdir={tmp_path}")
  process = processes.start(*command)
  # Step 15 is also evaluated: before or after this, as it comes.
  processes.wait_until(process, lambda: saved_steps(tmp_path)[-1:] >= [15])
  process.send_signal(signal.SIGKILL)
  status, _ = processes.finish(process)
  assert status == -signal.SIGKILL
  step = saved_steps(tmp_path)[-1]
  assert step < TOTAL
  assert not (tmp_path / "final.npz").exists()
  known = run_files.read(tmp_path).status
  assert known.state == "killed" and 15 <= known.step < known.total_steps
  said = processes.run(*command)
  for stage in (
    f"restoring the checkpoint of step {step}",
    f"writing {tmp_path}/final.npz",
  ):
    begin, end = (line for line in said.splitlines() if line.startswith(stage))
    assert begin.endswith(" ...")
    assert end.endswith(" s")
  names = ("final.npz", "best.npz", "best.json")
  assert_same_files(tmp_path, uninterrupted, names)
  found = without_speed(read_metrics(tmp_path))
  assert found == without_speed(read_metrics(uninterrupted.folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_terminated_and_resumed(
  uninterrupted, processes, read_metrics, tmp_path, number
):
  # Evaluations are no part of the training, nor are data workers, who get a
  # Ctrl-C too.
  command = (*uninterrupted.command, "--config.evals={}")
  command = (*command, "--config.keep_best=")
  command = (*command, f"--workdir={tmp_path}", "--config.train.num_workers=1")
  process = processes.start(*command)
  log = tmp_path / "metrics.jsonl"
  processes.wait_until(
    process, lambda: log.exists() and '"step": 17' in log.read_text()
  )
  os.killpg(process.pid, number)
  status, output = processes.finish(process)
  assert status == os.EX_TEMPFAIL, output
  assert "Traceback" not in output
  stopped = saved_steps(tmp_path)[-1]
  assert f"stopped at step {stopped}: saved, start again to resume" in output
  assert stopped == read_metrics(tmp_path)[-1]["step"] < TOTAL
  known = (
    f"step {stopped} of {TOTAL}, {stopped / TOTAL:.0%}: stopped, as it was"
  )
  assert known in (tmp_path / "report.html").read_text()
  assert not (tmp_path / "final.npz").exists()
  processes.run(*command)
  assert_same_files(tmp_path, uninterrupted)
  found = without_speed(read_metrics(tmp_path))
  expected = without_speed(read_metrics(uninterrupted.folder))
  assert found == [line for line in expected if "loss" in line]


STYLES = {
  "gemma1": dict(variant="paligemma_tiny", tune="full"),
  "gemma2": dict(variant="paligemma2_tiny", tune="decoder"),
}


def trained(config, folder):
  train.train(config, folder)
  return npz.load(folder / "final.npz")


def three_steps(tiny, style):
  values = {"optimizer_args": {"momentum": 0.9}, "evals": {}}
  return tiny.config(values, epochs=24 / 13, **STYLES[style])


@pytest.fixture(scope="module")
def on_one_device(tiny, tmp_path_factory):
  """style -> parameters after three steps."""
  found = {}
  with pytest.MonkeyPatch.context() as patch:
    devices = jax.devices
    patch.setattr(jax, "devices", lambda: devices()[:1])
    for style in STYLES:
      folder = tmp_path_factory.mktemp(style)
      found[style] = trained(three_steps(tiny, style), folder)
  return found


@pytest.mark.parametrize(
  ("style", "data", "model", "strategy", "accumulate_steps"),
  [
    ("gemma1", 8, 1, "fsdp", 1),
    ("gemma1", 4, 2, "fsdp", 2),
    ("gemma2", 4, 2, "fsdp", 1),
    ("gemma2", 8, 1, "replicate", 1),
  ],
)
def test_eight_devices_are_one(
  tiny,
  on_one_device,
  tmp_path,
  monkeypatch,
  style,
  data,
  model,
  strategy,
  accumulate_steps,
):
  monkeypatch.setattr(sharding, "MIN_FSDP_SIZE", 8)  # split all that can be
  config = three_steps(tiny, style)
  config.mesh = dict(data=data, model=model)
  config.sharding = ((".*", strategy),)
  config.accumulate_steps = accumulate_steps
  found = trained(config, tmp_path)
  before = npz.load(config.init)
  name = "llm/layers/attn/q_einsum/w"
  assert np.abs(found[name] - before[name]).max() > 1e-3
  for name, expected in on_one_device[style].items():
    np.testing.assert_allclose(
      found[name], expected, rtol=0, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize(
  ("tune", "values"),
  [
    ("full", {"optimizer": "adam", "learning_rate": 1e-3}),
    ("decoder", {"optimizer": "adafactor", "learning_rate": 1e-3}),
    ("image", {"optimizer": "lion", "learning_rate": 1e-3}),
    ("head", {"optimizer_args": {"momentum": 0.9, "nesterov": True}}),
    (
      "attention",
      {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "schedule": (
          (".*/q_einsum/w", {"decay": "rsqrt", "mult": 0.1}),
          (".*/kv_einsum/w", None),
          (".*", {"decay": "linear", "warmup_examples": 8}),
        ),
      },
    ),
  ],
)
def test_every_choice_of_what_trains_and_how(
  tiny, tmp_path, read_metrics, tune, values
):
  config = tiny.config({"evals": {}, **values}, epochs=16 / 13, tune=tune)
  if "schedule" not in values:
    config.schedule = ((".*", {"decay": "cosine"}),)
  after = trained(config, tmp_path)
  before = npz.load(config.init)
  changed = {name for name in after if (after[name] != before[name]).any()}
  trains = tree.match_any(tuning.METHODS[tune].trainable, after)
  moves = {name for name, yes in trains.items() if yes}
  assert changed == {n for n in moves if tune != "attention" or "kv_" not in n}
  assert all(np.isfinite(array).all() for array in after.values())
  lines = read_metrics(tmp_path)
  assert [line["step"] for line in lines] == [1, 2]
  if tune == "attention":
    q_rate = lines[1]["learning_rate/.*/q_einsum/w"]
    assert q_rate == pytest.approx(0.003, rel=1e-3)  # rsqrt has begun
    assert lines[1]["learning_rate"] == pytest.approx(0.03)


@pytest.mark.parametrize(
  ("every", "total", "expected"),
  [
    (25, 100, [25, 50, 75, 100]),
    (25, 112, [25, 50, 75, 112]),  # 100 would be just before the end
    (25, 113, [25, 50, 75, 100, 113]),
    (1, 3, [1, 2, 3]),
    (None, 7, [7]),
    (0, 7, [7]),
  ],
)
def test_every_so_often_and_at_the_end(every, total, expected):
  steps = range(1, total + 1)
  assert [s for s in steps if loop._due(s, every, total)] == expected
