"""The command that prepares published data sets."""

import sys

import pytest

from scripts import prepare
from scripts.datasets import catalog
from tests.scripts.datasets import publishers


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
  """Runs the command in a folder of its own; returns what it prints."""
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    prepare.main()
    return capsys.readouterr()

  return run


def test_a_data_set_is_prepared_and_compared_with_what_was_published(
  run, tmp_path
):
  publishers.write_all(tmp_path / "raw", publishers.vqav2().files)
  said = run("vqav2", "--raw", "raw", "--jobs", "1")
  assert said.out.splitlines() == [
    "split       examples  left out  published  pictures",
    "train       24                  443,757    8",
    "validation  24                  214,354    8",
    "test        47                  447,793    16",
    "test-dev    24                  107,394    8",
  ]
  assert (
    "differs: data/vqav2/train.jsonl: 24 examples, 443,757 were published: "
    "443,733 less; is it another release?\n"
  ) in said.err
  with pytest.raises(ValueError, match="data/vqav2: 1 differences, see above"):
    run("vqav2", "--check", "--jobs", "1", "--splits", "train")
  (tmp_path / "raw/v2_mscoco_val2014_annotations.json").unlink()
  said = run(
    *("vqav2", "--raw", "raw", "--out", "other", "--skip_bad", "--jobs", "1")
  )
  assert "validation: left out: raw: holds no v2_mscoco_val2014" in said.err
  assert "validation  missing             214,354" in said.out
  said = run("vqav2", "--raw", "raw", "--splits", "test", "--pack")
  assert (tmp_path / "data/vqav2/test.jsonl/index.json").exists()
  assert "test   47                  447,793    16" in said.out


def test_what_to_download_is_listed(run):
  said = run("--list").out.splitlines()
  assert [line.split()[0] for line in said[1:]] == list(catalog.DATA_SETS)
  said = run("okvqa", "--list").out
  assert "mscoco_val2014_annotations.json" in said
  assert "http://images.cocodataset.org/zips/train2014.zip (13 GB)" in said
  assert "  train.jsonl  9,009" in said
  assert max(map(len, run("--list").out.splitlines())) < 120


def test_what_is_wrong_is_one_line(run, tmp_path):
  for arguments, message in [
    ((), "expected the name of a data set; --list shows all"),
    (("okvqa",), "--raw: expected the folder of what was downloaded"),
    (("okvqa", "--raw", "no"), "no: no such folder"),
    (("okvq", "--list"), 'unknown data set "okvq".*Did you mean "okvqa"'),
    (
      ("okvqa", "--raw", ".", "--splits", "train+vall"),
      'unknown split of okvqa "vall".*Did you mean "val"',
    ),
    (
      ("okvqa", "--raw", ".", "--jobs", "1"),
      r"\.: holds no mscoco_train2014_annotations.json, which comes from "
      r"https://okvqa.allenai.org/\S*zip$",
    ),
  ]:
    with pytest.raises(ValueError, match=message) as caught:
      run(*arguments)
    assert "\n" not in str(caught.value)
  assert not list(tmp_path.rglob("*.jsonl"))
