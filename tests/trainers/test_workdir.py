import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from paligemma.checkpoints import npz
from paligemma.data import text_ops
from trainers import workdir


def make_config(**values):
  return ConfigDict(
    {
      "seed": 0,
      "schedule": ((".*", {"decay": "cosine"}),),
      "train": {"ops": (text_ops.Lower("prefix"),), "on_bad": "stop"},
      "log_steps": 10,
      **values,
    }
  )


def claim(folder, config):
  workdir.claim(workdir.check(folder, config), config)


def test_a_claimed_folder_is_free_for_the_same_config(tmp_path):
  folder = tmp_path / "a" / "b"
  assert workdir.check(folder, make_config()) == folder
  assert not folder.exists()  # a mistake found later leaves nothing behind
  claim(folder, make_config())
  written = (folder / "config.json").read_bytes()
  assert json.loads(written)["train"]["ops"] == ["Lower(key='prefix')"]
  claim(folder, make_config())
  assert (folder / "config.json").read_bytes() == written
  names = sorted(path.name for path in folder.iterdir())
  assert names == ["config.json", "fingerprints.json"]


def test_what_is_shown_and_kept_may_change(tmp_path):
  claim(tmp_path, make_config())
  config = make_config(log_steps=7, checkpoint_epochs=2, evals={"val": {}})
  config.train.on_bad = "skip"
  claim(tmp_path, config)
  assert json.loads((tmp_path / "config.json").read_text())["log_steps"] == 7


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"seed": 1}, "seed: found 0, given 1"),
    ({"lr": 0.1}, "lr: found nothing, given 0.1"),
    (
      {"schedule": ((".*", {"decay": "linear"}),)},
      r'schedule: found \[\[".\*", {"decay": "cosine"}\]\], given .*"linear"',
    ),
    (
      {"train": {"ops": (text_ops.Lower("suffix"),)}},
      r"train/ops: found \[\"Lower\(key='prefix'\)\"\], given .*'suffix'",
    ),
  ],
)
def test_another_config_is_refused(tmp_path, values, message):
  claim(tmp_path, make_config())
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match=message) as caught:
    workdir.check(tmp_path, make_config(**values))
  assert str(caught.value).startswith(f"{tmp_path}: belongs to another config")
  assert "\n" not in str(caught.value)
  assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  "values",
  [
    {"mesh": {"data": 1, "model": 1}},
    {"sharding": ((".*", "replicate"),)},
    {"checkpoint_steps": 5, "keep_checkpoints": 3},
    {"evals": {"val": {"every_steps": 3}}},
    {"model": {"llm": {"remat_policy": "none"}}},
    {"clip_norm": None},  # as if it were not there
  ],
)
def test_what_changes_no_step_may_change(tmp_path, values):
  claim(tmp_path, make_config(mesh={"data": -1, "model": 1}))
  claim(tmp_path, make_config(**values))


def moved(tmp_path, source="1\n", tokenizer=b"model", init=2.0):
  """A config whose files lie in a new folder."""
  folder = tmp_path / f"files{len(list(tmp_path.iterdir()))}"
  folder.mkdir()
  (folder / "train.jsonl").write_text(source)
  (folder / "t.model").write_bytes(tokenizer)
  npz.save(folder / "init.npz", {"w": np.full(3, init)})
  return make_config(
    init=f"{folder}/init.npz",
    tokenizer=f"{folder}/t.model",
    train={"sources": {"main": {"path": f"{folder}/train.jsonl"}}},
  )


def test_the_same_bytes_may_lie_elsewhere(tmp_path):
  run = tmp_path / "run"
  claim(run, moved(tmp_path))
  shutil.rmtree(tmp_path / "files0")  # what it was compared with need not stay
  again = moved(tmp_path)
  claim(run, again)
  for name, changes in (
    ("train/sources/main/path", {"source": "2\n"}),
    ("tokenizer", {"tokenizer": b"other"}),
    ("init", {"init": 3.0}),
  ):
    with pytest.raises(ValueError, match=f"another config .{name}: found "):
      workdir.check(run, moved(tmp_path, **changes))
  # At its place a file may be mended; the data says if it has other examples.
  with open(again.train.sources.main.path, "w") as file:
    file.write("mended\n")
  workdir.check(run, again)


def test_other_values_are_written_into_the_history(tmp_path):
  claim(tmp_path, make_config(total_epochs=2.0))
  assert not (tmp_path / "history.jsonl").exists()
  longer = make_config(total_epochs=5.0, batch_size=4, log_steps=3)
  with pytest.raises(
    ValueError, match=r"total_epochs: found 2.0, given 5.0.*; "
  ):
    workdir.check(tmp_path, longer)
  with pytest.raises(ValueError, match="resume with the changes by --overrid"):
    workdir.check(tmp_path, longer)
  folder = workdir.check(tmp_path, longer, override=True)
  changes = workdir.claim(folder, longer, step=7)
  assert changes == {
    "batch_size": [32, 4],
    "log_steps": [10, 3],
    "total_epochs": [2.0, 5.0],
  }
  assert workdir.describe(changes) == (
    "resumed with changes: batch_size: 32 -> 4; log_steps: 10 -> 3; "
    "total_epochs: 2.0 -> 5.0"
  )
  claim(tmp_path, longer)  # once
  (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
  assert json.loads(line) == {"step": 7, "changes": changes}


@pytest.mark.parametrize(
  "content",
  ["", "{", "[" * 100_000, "[1]", "3", '{"a": "\x00"}', "\ufeff\x00", '"x"'],
)
@pytest.mark.parametrize("name", ["config.json", "fingerprints.json"])
def test_a_damaged_file_is_named(tmp_path, name, content):
  claim(tmp_path, make_config())
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError) as caught:
    workdir.check(tmp_path, make_config(seed=1))
  assert str(caught.value).startswith(f"{tmp_path / name}:1: ")
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 300


def test_the_damaged_line_is_named(tmp_path):
  claim(tmp_path, make_config())
  file = tmp_path / "config.json"
  lines = file.read_text().splitlines()
  file.write_text("\n".join(lines[:-1]))
  with pytest.raises(
    ValueError, match=rf"config.json:{len(lines) - 1}: damaged, Expecting"
  ):
    workdir.check(tmp_path, make_config())


def test_a_plain_function_is_the_same_in_another_process(tmp_path):
  def make_op():
    def upper(example, rng):
      return example

    return upper

  first = make_config(train={"ops": (make_op(),)})
  second = make_config(train={"ops": (make_op(),)})
  assert repr(first.train.ops) != repr(second.train.ops)  # another address
  claim(tmp_path, first)
  workdir.check(tmp_path, second)
  assert "upper" in (tmp_path / "config.json").read_text()


def test_a_run_of_before_goes_on(tmp_path):
  """Its config has no keys that came later, and all ops in one list."""
  config = make_config(res=56)
  source = {"kind": "jsonl", "path": "a.jsonl"}
  config.train.sources = {"a": source, "b": source | {"weight": 2.0}}
  config.train.ops = tuple(map(text_ops.Lower, "xyz"))
  claim(tmp_path, config)
  first, second, third = config.train.ops
  now = common.complete(make_config(res=56))
  now.train.sources = {
    "a": source | {"ops": (first,)},
    "b": source | {"ops": (first,), "weight": 2.0},
  }
  now.train.augment, now.train.ops = (second,), (third,)
  workdir.check(tmp_path, common.complete(now))
  now.train.sources.b.ops = ()
  with pytest.raises(ValueError, match="train/sources/b/ops: found nothing, g"):
    workdir.check(tmp_path, now)
