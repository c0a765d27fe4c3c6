"""Predictions scored again, from files that may be damaged or another's."""

import json

import numpy as np
import pytest

from paligemma.checkpoints import npz
from paligemma.metrics import bootstrap, exact_match
from scripts import score as command

CODEC = "tests/goldens/mask_codec/mask_codec.npz"


@pytest.fixture
def write(tmp_path):
  """Writes bare predictions, as another program might; returns the path."""

  def write(name, texts, **fields):
    path = tmp_path / name
    path.write_text(
      "".join(
        json.dumps({"index": i, "prediction": text, **fields}) + "\n"
        for i, text in enumerate(texts)
      )
    )
    return path

  return write


@pytest.fixture(scope="module")
def answers(tiny):
  lines = tiny.data.read_text().splitlines()
  return [json.loads(line)["suffix"] for line in lines]


@pytest.fixture
def good(write, answers):
  """Right in 18 of 23."""
  return write("good.jsonl", [*answers[:18], *["no"] * 5])


@pytest.fixture
def bad(write, answers):
  """Right in 9 of the 18, and in one more."""
  right = [*answers[:9], *["no"] * 13, answers[-1]]
  return write("bad.jsonl", right)


def test_scores_are_those_of_the_metric(tiny, good, answers):
  count, scores, num_bad = command.score(tiny.config(), good)
  assert (count, num_bad) == (23, 0)
  rows = [{"exact_match": float(i < 18)} for i in range(23)]
  expected = bootstrap.estimate(exact_match.ExactMatch(), rows)
  assert scores == expected
  assert scores["exact_match"].value == pytest.approx(18 / 23)


def test_an_example_that_could_not_be_used_has_no_score(tiny, good, tmp_path):
  lines = good.read_text().splitlines()
  lines[3] = '{"index": 3, "error": "data.jsonl:4: no image"}'
  path = tmp_path / "one_bad.jsonl"
  path.write_text("\n".join(lines) + "\n")
  count, scores, num_bad = command.score(tiny.config(), path)
  assert (count, num_bad) == (22, 1)
  assert scores["exact_match"].value == pytest.approx(17 / 22)
  # Of two files, what both have a prediction for.
  count, scores, num_bad = command.score(tiny.config(), good, against=path)
  assert (count, num_bad) == (22, 1)
  assert scores["exact_match"].difference == 0


def test_another_metric(tiny, write, answers):
  path = write("upper.jsonl", [answer.upper() for answer in answers])
  for metric, expected in (
    ("exact_match", 12 / 23),  # those of numbers alone
    ("exact_match(lower=True)", 1.0),
  ):
    scores = command.score(tiny.config(), path, metric=metric)[1]
    assert scores["exact_match"].value == pytest.approx(expected)


def test_what_was_evaluated_is_scored_alike(tiny, tmp_path):
  from scripts import evaluate

  config = tiny.config(metric="anls")
  out = tmp_path / "y.jsonl"
  ((_, count, scores),) = evaluate.evaluate(
    config, tiny.weights, split="val", out=out, limit=11
  )
  assert command.score(config, out, limit=11) == (count, scores, 0)


def test_two_files_are_compared_example_by_example(tiny, good, bad):
  _, scores, _ = command.score(tiny.config(), good, against=bad)
  (found,) = scores.values()
  assert (found.a, found.b) == pytest.approx((18 / 23, 10 / 23))
  assert found.difference == pytest.approx(8 / 23)
  assert 0 < found.low < found.difference < found.high
  assert found.a_is_larger > 0.99
  # Nine examples speak for A and one for B.
  assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)


def test_confidences_of_a_file_reach_the_metric(tiny, write):
  seen = []

  class Sure(exact_match.ExactMatch):
    def rows(self, texts, examples, *, answer_key, confidences=None):
      seen.append(confidences)
      return super().rows(texts, examples, answer_key=answer_key)

  plain = write("plain.jsonl", ["<loc0001>"] * 23)
  sure = write("sure.jsonl", ["<loc0001>"] * 23, confidences=[0.25])
  command.score(tiny.config(), plain, against=sure, metric=Sure())
  assert seen == [None, [[0.25]] * 23]


def test_average_precision_of_a_file(tiny, tmp_path):
  """Of two boxes in each picture, one is wrong: the sure or the unsure one."""
  right = "<loc0000><loc0000><loc0511><loc0511> cat"
  wrong = "<loc0600><loc0600><loc1023><loc1023> cat"
  rows = [json.loads(line) for line in tiny.data.read_text().splitlines()]
  data = tiny.folder / "boxes.jsonl"
  data.write_text(
    "".join(
      json.dumps({**row, "suffix": right, "height": 40, "width": 40}) + "\n"
      for row in rows
    )
  )
  found = []
  for sure in ([0.9, 0.1], [0.1, 0.9]):
    path = tmp_path / "y.jsonl"
    path.write_text(
      "".join(
        json.dumps(
          {
            "index": i,
            "prediction": f"{wrong} ; {right}",
            "confidences": sure,
          }
        )
        + "\n"
        for i in range(23)
      )
    )
    config = tiny.config(source={"kind": "jsonl", "path": str(data)})
    scores = command.score(config, path, metric="detection", resamples=3)[1]
    found.append(scores["AP50"].value)
  assert found == pytest.approx([0.5, 1.0], abs=1e-3)


def test_masks_of_a_file(tiny, tmp_path):
  """The codec that the config names decodes them."""
  codes = "".join(f"<seg{code:03d}>" for code in range(16))
  prediction = "<loc0000><loc0000><loc1023><loc1023>" + codes
  rows = [json.loads(line) for line in tiny.data.read_text().splitlines()]
  whole = {"size": [64, 64], "counts": [0, 64 * 64]}
  data = tiny.folder / "masks.jsonl"
  data.write_text(
    "".join(json.dumps({**row, "mask": whole}) + "\n" for row in rows)
  )
  path = tmp_path / "y.jsonl"
  path.write_text(
    "".join(
      json.dumps({"index": i, "prediction": prediction}) + "\n"
      for i in range(23)
    )
  )
  config = tiny.config(
    source={"kind": "jsonl", "path": str(data)}, mask_codec=CODEC
  )
  scores = command.score(config, path, resamples=3)[1]
  assert scores["boxacc/0.75"].value == 1
  assert 0 < scores["miou"].value < 1
  assert npz.load(CODEC)  # a file of ours, not a stand-in


@pytest.mark.parametrize(
  ("number", "line", "message"),
  [
    (3, None, "3: index 3, expected 2: a line is missing"),
    (3, '{"index": 2,', "3: not JSON"),
    (3, '{"index": 1, "prediction": ""}', "3: index 1 for the second time"),
    (3, '{"prediction": ""}', "3: found keys prediction, expected an object"),
    (23, None, "23: the file ends here, expected 23 lines"),
    (
      3,
      '{"index": 2, "prediction": "", "prefix": "who"}',
      '3: "prefix" is "who", but "what digit is this is this" in .*val.jsonl:3',
    ),
  ],
)
def test_a_bad_line_is_named(tiny, good, bad, number, line, message):
  lines = bad.read_text().splitlines()
  lines[number - 1 : number] = [] if line is None else [line]
  bad.write_text("\n".join(lines))
  for files in ({"predictions": bad}, {"predictions": good, "against": bad}):
    with pytest.raises(ValueError, match=rf"bad\.jsonl:{message}"):
      command.score(tiny.config(), **files)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"metric": "exactmatch"}, 'Did you mean "exact_match"'),
    ({"split": "pplx"}, "that generate are: none; name one with --split"),
    ({"limit": 5}, r"good.jsonl:6: one line more than the 5 examples"),
    ({"against": "no.jsonl"}, r"no.jsonl: cannot read predictions: No such"),
    (
      {"metric": lambda *_, **__: {}, "against": "good.jsonl"},
      "cannot compare: it has no rows",
    ),
  ],
)
def test_errors(tiny, good, arguments, message):
  if arguments.get("against") == "good.jsonl":
    arguments = arguments | {"against": good}
  with pytest.raises(ValueError, match=message):
    command.score(tiny.config(), good, **arguments)


def test_an_answer_that_is_not_there_is_named(tiny, good):
  config = tiny.config(answer_key="sufix")
  with pytest.raises(ValueError, match=r'val.jsonl:1: no answer under "sufix"'):
    command.score(config, good)


def test_an_evaluator_without_metric(tiny, good):
  with pytest.raises(ValueError, match=r"evals.val has no metric: give --met"):
    command.score(tiny.config(metric=None), good)


def test_the_command(tiny, good, bad):
  printed = tiny.run(
    "scripts.score",
    f"--config={tiny.arguments}",
    f"--predictions={good}",
    f"--against={bad}",
    "--config.evals.val.metric=exact_match(lower=True)",
    "--json",
  )
  lines = printed.splitlines()
  assert lines[0] == "23 examples"
  assert lines[1].split() == [
    *("metric", "A", "B", "A", "-", "B", "95%", "interval"),
    *("A", ">", "B", "p"),
  ]
  assert lines[2].split()[:4] == ["exact_match", "0.7826", "0.4348", "0.3478"]
  found = json.loads(lines[-1])["scores"]["exact_match"]
  assert found["a"] == pytest.approx(18 / 23)
  assert np.isclose(found["p_value"], 2 * 11 / 2**10)


def test_a_mistake_is_one_line(tiny, good):
  printed = tiny.run(
    "scripts.score",
    f"--config={tiny.arguments}",
    f"--predictions={good}",
    "--bogus=3",
    fails=True,
  )
  assert printed == 'error: unknown argument "--bogus=3".\n'


def test_a_table_with_published_scores():
  scores = {
    "cider": bootstrap.Estimate(1.25, 1.0, 1.5),
    "num": bootstrap.Estimate(7.0),
  }
  assert command.table(scores, {"cider": 1.2, "acc": 0.5}).splitlines() == [
    "metric  value   95% interval      published  difference",
    "cider   1.2500  [1.0000, 1.5000]  1.2000     +0.0500",
    "num     7",
  ]
