"""The table of published scores and of those reached."""

import json

import pytest

from scripts import list_transfers, reached


def evaluation(trained_on=False, bundle="b1", **scores):
  return {
    "examples": 10,
    "scores": {
      name: {"value": value, "low": value - 0.1, "high": value + 0.2}
      for name, value in scores.items()
    },
    "bundle": bundle,
    "trained_on": trained_on,
  }


@pytest.fixture
def run(tmp_path):
  """Writes a run; returns its lines."""

  def write(task, evaluations, variant="paligemma_3b", budget="", note=""):
    folder = tmp_path / f"{task}{budget}"
    (folder / reached.EVALUATIONS).mkdir(parents=True)
    about = {"task": task, "variant": variant, "res": 224}
    about |= {"budget": budget, "note": note}
    (folder / reached.RUN).write_text(json.dumps(about))
    for name, content in evaluations.items():
      file = folder / reached.EVALUATIONS / f"{name}.json"
      file.write_text(json.dumps(content))
    return reached.rows(folder)

  return write


def shown(rows):
  return [reached.cells([row])[1][2:] for row in rows]


def test_a_split_beside_its_published_score(run):
  rows = run(
    "okvqa",
    {
      "val": evaluation(acc=0.62, num=3.0),
      "minival": evaluation(trained_on=True, acc=0.8),
    },
  )
  assert shown(rows) == [
    [
      *("val", "acc", "63.54", "62.00", "[52.00, 82.00]", "-1.54", "b1", ""),
    ],
    [
      *("minival", "acc", "", "80.00", "[70.00, 100.00]", "", "b1"),
      "trained on",
    ],
  ]
  assert [row.is_final for row in rows] == [True, False]


def test_a_score_of_a_server_names_its_file(run):
  rows = run("docvqa", {"val": evaluation(anls=0.4), "test": evaluation()})
  assert shown(rows)[0] == [
    *("test, server", "anls", "43.74", "", "", "", ""),
    "submit submissions/test.json",
  ]
  assert [row.split for row in rows] == ["test, server", "val"]
  # That of PaliGemma 2 is of val; there is a server all the same.
  rows = run(
    "textvqa",
    {"val": evaluation(acc=0.4), "test": evaluation()},
    "paligemma2_3b",
  )
  assert [(row.split, row.published) for row in rows] == [
    ("val", 59.6),
    ("test, server", None),
  ]


def test_means_of_several_evaluations(run):
  codes = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
  evaluations = {
    f"xgqa_{code}": evaluation(bundle=f"b{i > 3}", acc=i / 10)
    for i, code in enumerate(codes)
  }
  rows = run("gqa", evaluations)
  by_split = {row.split: row for row in rows}
  mean = by_split["xgqa, mean of 8"]
  assert mean.score == pytest.approx(35)
  assert (mean.low, mean.high) == pytest.approx((25, 55))
  assert mean.bundle == "bFalse, bTrue"
  assert "xgqa_de" not in by_split
  # Of one variant the mean is without English; and one may be missing.
  assert reached.averaged("xgqa, mean of 7 but en", evaluations) == [
    f"xgqa_{code}" for code in codes if code != "en"
  ]
  del evaluations["xgqa_bn"]
  assert reached.averaged("xgqa, mean of 8", evaluations) == []
  both = {"test_human", "test_augmented", "val_human"}
  split = "test, mean of human and augmented"
  assert len(reached.averaged(split, both)) == 2


def test_every_published_split_is_an_evaluation_or_a_mean_of_some():
  """Of those whose answers are public; videos have val and test."""
  configs = {name: c for name, _, c in list_transfers.transfers()}
  for score in list_transfers.published_scores():
    evaluated = {*configs[score["task"]].evals, "test"}
    at_server = score["split"].removesuffix(", server")
    assert reached.averaged(at_server, evaluated), score


def test_the_page_of_all_runs(run, tmp_path):
  run("okvqa", {"val": evaluation(acc=0.62)})
  run("okvqa", {"val": evaluation(acc=0.2)}, budget="steps=2")
  run("tallyqa", {"test": evaluation(acc=0.2)}, note="data: 2 differences")
  rows = reached.write(tmp_path)
  page = (tmp_path / "README.md").read_text()
  assert page.count("\n| okvqa | paligemma_3b, 224 | val | acc | 63.54 | ") == 2
  assert "| -43.54 | b1 | trial: steps=2 |" in page
  assert page.count("data: 2 differences |") == 2  # two scores, none reached
  (final,) = json.loads((tmp_path / "reached.json").read_text())
  assert (final["task"], final["score"], final["bundle"]) == ("okvqa", 62, "b1")
  lines = reached.table(rows).splitlines()
  assert lines[0].split()[:3] == ["transfer", "model", "split"]
  assert len(lines) == 5


def test_reached_scores_are_added_to_those_of_others(tmp_path):
  def row(task, score):
    return {
      "task": task,
      "split": "val",
      "metric": "acc",
      "variant": "paligemma_3b",
      "res": 224,
      "score": score,
      "low": score - 1,
      "high": score + 1,
      "bundle": "b",
    }

  there, new = tmp_path / "there.json", tmp_path / "new.json"
  there.write_text(json.dumps([row("okvqa", 1), row("vqav2", 3)]))
  new.write_text(json.dumps([row("okvqa", 5), row("ai2d", 4)]))
  list_transfers.add_reached(new, there)
  found = json.loads(there.read_text())
  assert [(x["task"], x["score"]) for x in found] == [
    ("ai2d", 4),
    ("okvqa", 5),
    ("vqav2", 3),
  ]
  table = list_transfers.score_table([], found[1:2]).splitlines()
  assert table == [
    "| split | metric | reached |",
    "| --- | --- | --- |",
    "| val | acc | PaliGemma 3B, 224: 5.00 [4.00, 6.00] (`b`) |",
  ]
