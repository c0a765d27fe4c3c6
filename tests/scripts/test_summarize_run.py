"""What a run changed and scored, read off its files."""

import json

import numpy as np
import pytest

from paligemma.checkpoints import npz
from scripts import summarize_run

ATTENTION = [r"llm/layers/attn/.*"]


def params():
  rng = np.random.default_rng(0)
  return {
    "img/head/kernel": rng.normal(size=(3, 5)).astype(np.float32),
    "llm/layers/attn/kv_einsum/w": rng.normal(size=(2, 7)).astype(np.float32),
    "llm/layers/attn/q_einsum/w": rng.normal(size=(2, 3)).astype(np.float32),
  }


@pytest.fixture
def run(tmp_path):
  """A finished run that has trained the attention leaves."""
  before, after = params(), params()
  for name in after:
    if "attn" in name:
      after[name] += 1e-3
  after["img/head/kernel"] = after["img/head/kernel"].astype(np.float16)
  npz.save(tmp_path / "init.npz", before)
  npz.save(tmp_path / "run/final.npz", after)
  config = {"init": str(tmp_path / "init.npz"), "trainable": ATTENTION}
  (tmp_path / "run/config.json").write_text(json.dumps(config))
  lines = [
    {"step": 0, "val/exact_match": 0.25, "val/num_examples": 7.0},
    {"step": 5, "loss": 1.0},
    {"step": 9, "val/exact_match": 0.75, "val/num_examples": 7.0},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "run/metrics.jsonl").write_text(text)
  return tmp_path / "run"


def test_last_line_has_the_scores(run, monkeypatch, capsys):
  arguments = [str(run), "val/exact_match"]
  monkeypatch.setattr("sys.argv", ["summarize_run", *arguments])
  summarize_run.main()
  first, last = capsys.readouterr().out.splitlines()
  assert first == (
    "changed 2 of 3 parameters: llm/layers/attn/kv_einsum/w, "
    "llm/layers/attn/q_einsum/w"
  )
  assert last == "demo: exact_match before=0.250 after=0.750 n=7"


def test_a_frozen_leaf_that_moved_is_found():
  with pytest.raises(ValueError, match=r"img/head/kernel changed, trainable"):
    summarize_run.check_changed(list(params()), list(params()), ATTENTION)


def test_a_leaf_that_did_not_train_is_found():
  changed = ["llm/layers/attn/q_einsum/w"]
  with pytest.raises(ValueError, match=r"kv_einsum/w did not change"):
    summarize_run.check_changed(changed, list(params()), ATTENTION)


def test_other_shapes_are_refused(tmp_path):
  before, after = tmp_path / "before.npz", tmp_path / "after.npz"
  npz.save(before, params())
  npz.save(after, params() | {"img/head/kernel": np.zeros((5, 3))})
  with pytest.raises(
    ValueError, match=r"img/head/kernel: found shape \(5, 3\)"
  ):
    summarize_run.changed_leaves(before, after)


def test_a_metric_that_is_not_there_is_an_error(run):
  with pytest.raises(ValueError, match="holds no val/cider"):
    summarize_run.scores(run / "metrics.jsonl", "val/cider")


@pytest.mark.parametrize("damage", ['{"step": 9, "val', "[" * 9, "7", "\x00"])
def test_a_damaged_line_is_told_and_left_out(run, damage, capsys):
  file = run / "metrics.jsonl"
  lines = file.read_text().splitlines()
  file.write_text("\n".join([*lines[:2], damage, lines[2]]))
  assert summarize_run.scores(file, "val/exact_match") == (0.25, 0.75, 7)
  assert capsys.readouterr().err == f"{file}:3: damaged, left out\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", r"config.json:1: damaged, Expecting"),
    ('{\n"init": 3,,', r"config.json:2: damaged, "),
    ("[]", r"config.json:1: holds no object"),
    ("{}", r"run: has no config.json of a run with init, trainable"),
    (None, r"run: has no config.json of a run with init, trainable"),
  ],
)
def test_a_config_that_is_damaged_is_one_line(
  run, content, message, monkeypatch
):
  (run / "config.json").unlink()
  if content is not None:
    (run / "config.json").write_text(content)
  monkeypatch.setattr("sys.argv", ["summarize_run", str(run), "val/loss"])
  with pytest.raises(ValueError, match=message) as info:
    summarize_run.main()
  assert "\n" not in str(info.value)
