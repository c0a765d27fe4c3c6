import json

import pytest
from ml_collections import ConfigDict

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
  assert [path.name for path in folder.iterdir()] == ["config.json"]


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
