"""The committed list of transfers is what the script writes."""

import json
import sys

import pytest

from scripts import list_transfers

README = list_transfers.FOLDER / "README.md"
SCORES = json.loads((list_transfers.FOLDER / "scores.json").read_text())


@pytest.fixture(scope="module")
def configs():
  return {name: config for name, _, config in list_transfers.transfers()}


def test_the_committed_file_is_what_the_script_writes(tmp_path, monkeypatch):
  out = tmp_path / "README.md"
  monkeypatch.setattr(sys, "argv", ["list_transfers", "--out", str(out)])
  list_transfers.main()
  assert out.read_text() == README.read_text(), (
    "run: python -m scripts.list_transfers"
  )


def test_prompts(configs):
  prompts = {name: list_transfers.prompt(c) for name, c in configs.items()}
  assert prompts["cococap"] == "caption en"
  assert prompts["coco35l"] == "caption {language}"
  assert prompts["docvqa"] == "{question}"
  assert prompts["nlvr2"] == "answer en {sentence}"
  assert prompts["ai2d"].startswith("answer en  {question} choose from: {a}")
  assert prompts["science_qa"].endswith(r"\nOptions: {options}\nAnswer:")
  assert prompts["detection"] == "detect all classes"


def test_durations(configs):
  assert list_transfers.duration(configs["scicap"]) == "80 epochs"
  assert list_transfers.duration(configs["coco35l"]) == "2,832,175 examples"
  assert list_transfers.duration(configs["pope"]) == "0 steps"


def test_every_score_can_be_found_again(configs):
  places = [
    (s["task"], s["split"], s["metric"], s["variant"], s["res"])
    for s in SCORES["scores"]
  ]
  assert len(set(places)) == len(places)
  for task, split, *_ in places:
    name = split.split(",")[0]
    evaluators = configs[task].evals.keys()
    of_video = configs[task].train.sources.get("train", {}).get("kind")
    assert of_video == "video_jsonl" or any(
      evaluator == name or evaluator.startswith(f"{name}_")
      for evaluator in evaluators
    ), (task, split)
  assert {s["task"] for s in SCORES["scores"]} == configs.keys()
  assert {s["source"] for s in SCORES["scores"]} == SCORES["sources"].keys()
  assert {s["variant"] for s in SCORES["scores"]} == (
    list_transfers.VARIANTS.keys()
  )


def score(task, split, metric, variant, res):
  (found,) = [
    s["score"]
    for s in SCORES["scores"]
    if (s["task"], s["split"], s["metric"]) == (task, split, metric)
    and (s["variant"], s["res"]) == (variant, res)
  ]
  return found


def test_some_scores():
  assert score("stvqa", "test, server", "anls", "paligemma_3b", 896) == 84.4
  assert score("ocrvqa", "test", "acc", "paligemma_3b", 448) == 75.6
  assert score("gqa", "testdev", "acc", "paligemma2_28b", 448) == 68.3
  assert score("rsvqa_hr", "test2", "acc_avg", "paligemma_3b", 448) == 90.54
  assert score("refcoco_seg", "refcocog_val", "miou", "paligemma_3b", 224) == (
    67.65
  )


def test_score_table():
  table = list_transfers.score_table(
    [
      {
        "split": "val",
        "metric": "acc",
        "variant": variant,
        "res": res,
        "score": value,
      }
      for variant, res, value in (
        ("paligemma2_3b", 448, 70.0),
        ("paligemma_3b", 896, 5.25),
      )
    ]
  )
  assert table.splitlines() == [
    "| split | metric | PaliGemma 3B, 896 | PaliGemma 2 3B, 448 | reached |",
    "| --- | --- | --- | --- | --- |",
    "| val | acc | 5.25 | 70 |  |",
  ]


def test_published(configs):
  config = configs["scicap"].copy_and_resolve_references()
  path = "configs/transfers/scicap.py"
  found = list_transfers.published(f"{path}:res=224", config, "test")
  expected = {
    metric: score("scicap", "test", metric, "paligemma_3b", 224) / 100
    for metric in ("bleu-4", "cider")
  }
  assert found == expected
  assert list_transfers.published(f"/repo/{path}", config, "test") == expected
  config.res = 448
  assert list_transfers.published(path, config, "test") != expected
  for other in ("my/scicap.py", "configs/transfers/digits.py", "scicap.py"):
    assert list_transfers.published(other, config, "test") == {}
  assert list_transfers.published(path, config, "val") == {}
  config.model.variant = "paligemma_tiny"
  assert list_transfers.published(path, config, "test") == {}
