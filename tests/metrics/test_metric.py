import pathlib

import numpy as np
import pytest

from paligemma import metrics
from paligemma.metrics import answer_fields, vqa, vqav2
from paligemma.metrics import metric as metric_lib

# What makes an example complete for each metric, with its right prediction.
COMPLETE = {
  "anls": ({"suffix": "a red cat"}, "a red cat"),
  "chartqa": ({"suffix": "12%"}, "12%"),
  "exact_match": ({"suffix": "cat"}, "cat"),
  "mmvp": ({"suffix": "(a)", "pair": 3}, "(a)"),
  "pope": ({"suffix": "yes"}, "yes"),
  "rsvqa": ({"suffix": ["no"], "question_type": "comp"}, "no"),
  "science_qa": ({"suffix": "The answer is B."}, "The answer is B."),
  "tallyqa": ({"suffix": 2, "issimple": 1}, "2"),
  "textvqa": ({"suffix": ["stop"] * 10}, "stop"),
  "vqa": ({"suffix": ["dog"] * 3}, "dog"),
  "vqav2": ({"suffix": ["yes"] * 10, "answer_type": "yes/no"}, "yes"),
}
SCORE = {"exact_match": "exact_match", "anls": "anls", "rsvqa": "acc_any"}


@pytest.fixture(params=sorted(COMPLETE))
def case(request):
  example, prediction = COMPLETE[request.param]
  return request.param, metrics.make(request.param), example, prediction


def test_right_and_wrong(case):
  name, metric, example, prediction = case
  key = SCORE.get(name, "acc")
  twice = [example, dict(example)]
  assert metric([prediction] * 2, twice)[key] == 1.0
  assert metric(["something else"] * 2, twice)[key] == 0.0


def test_rows_are_one_per_example_and_reduce_to_the_score(case):
  _, metric, example, prediction = case
  predictions, examples = [prediction, "no such thing"], [example, example]
  rows = metric.rows(predictions, examples)
  assert len(rows) == 2
  assert all(isinstance(v, float) for row in rows for v in row.values())
  assert metric.reduce(rows) == metric(predictions, examples)
  # Any choice of rows can be reduced: what a resample needs.
  resampled = metric.reduce([rows[0]] * 3)
  assert all(isinstance(value, float) for value in resampled.values())


def test_scores_do_not_depend_on_the_order(case):
  _, metric, example, prediction = case
  rows = metric.rows([prediction, "?"] * 7, _paired([example] * 14))
  np.random.default_rng(0).shuffle(rows)
  again = metric.rows([prediction, "?"] * 7, _paired([example] * 14))
  assert metric.reduce(rows) == metric.reduce(again)


def _paired(examples):
  """The examples, with a pair of their own for each two of them."""
  return [
    {**example, "pair": i // 2} if "pair" in example else example
    for i, example in enumerate(examples)
  ]


def test_answer_key(case):
  _, metric, example, prediction = case
  renamed = {"labels" if k == "suffix" else k: v for k, v in example.items()}
  found = metric([prediction] * 2, [renamed] * 2, answer_key="labels")
  assert found == metric([prediction] * 2, [example] * 2)
  with pytest.raises(ValueError, match=r'under "suffix", found '):
    metric([prediction] * 2, [renamed] * 2)


@pytest.mark.parametrize("bad", [None, 1.5, {"a": "b"}, [], [7], [["a"]], b"a"])
def test_an_answer_of_the_wrong_type_is_named(case, bad):
  _, metric, example, prediction = case
  examples = [example | {"_where": "x.jsonl:1"}] * 2
  examples[1] = examples[1] | {"suffix": bad, "_where": "x.jsonl:2"}
  with pytest.raises(ValueError, match=r"^x.jsonl:2: .*suffix") as error:
    metric([prediction] * 2, examples)
  assert str(error.value).endswith(".")
  assert "expected" in str(error.value)
  assert "\n" not in str(error.value)


def test_every_other_field_is_named_when_missing_or_wrong(case):
  _, metric, example, prediction = case
  for key in example.keys() - {"suffix"}:
    rest = {k: v for k, v in example.items() if k != key}
    if key != "issimple":  # this one may be left out
      with pytest.raises(ValueError, match=f'^example 1: no .*under "{key}"'):
        metric([prediction] * 2, [example, rest])
    wrong = rest | {key: {"a": 1}}
    with pytest.raises(ValueError, match=f'^example 1: "{key}" is .*expected'):
      metric([prediction] * 2, [example, wrong])


def test_what_cannot_be_scored(case):
  _, metric, example, prediction = case
  with pytest.raises(ValueError, match="no example to score"):
    metric([], [])
  with pytest.raises(ValueError, match="3 predictions for 2 examples"):
    metric([prediction] * 3, [example] * 2)
  with pytest.raises(ValueError, match=r"^example 1: .*text as prediction.*7"):
    metric([prediction, 7], [example] * 2)
  with pytest.raises(ValueError, match=r"^example 1: expected a mapping.*'x'"):
    metric([prediction] * 2, [example, "x"])


def test_a_missing_field_lists_what_there_is_and_the_nearest():
  example = {"_where": "v.jsonl:3", "sufix": "a", "image": 1}
  with pytest.raises(ValueError) as error:
    answer_fields.read(example, "suffix", "answer")
  assert str(error.value) == (
    'v.jsonl:3: no answer under "suffix", found image, sufix.'
    ' Did you mean "sufix"?'
  )


def test_a_long_value_is_cut_and_stays_on_one_line():
  example = {"_where": "v:3", "suffix": {"a": "b\n" * 1000}}
  with pytest.raises(ValueError) as error:
    answer_fields.text(example, "suffix", "answer")
  assert len(str(error.value)) < 120
  assert "\n" not in str(error.value)


def test_lists_tuples_and_arrays_of_texts():
  for value in (["a", "b"], ("a", "b"), np.array(["a", "b"], object)):
    assert answer_fields.texts({"x": value}, "x", "answer") == ["a", "b"]
    assert answer_fields.text_or_texts({"x": value}, "x", "answer") == [
      "a",
      "b",
    ]
  assert answer_fields.text_or_texts({"x": "ab"}, "x", "answer") == "ab"
  with pytest.raises(ValueError, match="one at least"):
    answer_fields.texts({"x": "ab"}, "x", "answer")


class Parity(metric_lib.Metric):
  def score(self, prediction, example, answer_key):
    value = float(prediction)
    group = "acc/odd" if value % 2 else "acc/even"
    return {"acc": value, group: value}


def test_reduce_means_over_the_rows_that_have_a_name():
  assert Parity()(["1", "3", "2", "5"], [{}] * 4) == {
    "acc": 2.75,
    "acc/odd": 3.0,
    "acc/even": 2.0,
    "num/odd": 3.0,
    "num/even": 1.0,
    "num": 4.0,
  }


def test_examples_are_left_as_they_were():
  example = {"suffix": "a"}
  metrics.make("vqa")(["a"], [example])
  assert example == {"suffix": "a"}


def test_no_metric_without_a_test():
  for constructor in metrics.METRICS.values():
    module = getattr(constructor, "func", constructor).__module__
    name = f"test_{module.rpartition('.')[2]}.py"
    assert pathlib.Path(__file__).with_name(name).exists(), name


@pytest.mark.parametrize("name", COMPLETE)
def test_which_is_better_is_known_of_all_scores_but_counts(name):
  metric, (example, prediction) = metrics.make(name), COMPLETE[name]
  found = metric([prediction] * 2, [example] * 2)
  scores = {x for x in found if not x.startswith("num")} - {"yes_rate"}
  assert scores
  assert scores <= metric.higher_is_better.keys()


def test_make():
  assert metrics.make("vqa") == vqa.VQA()
  assert metrics.make(" vqa (lower = True) ") == vqa.VQA(lower=True)
  assert metrics.make("vqa()") == vqa.VQA()
  assert metrics.make("textvqa") == vqav2.VQAv2(by_type=False)
  metric = vqa.VQA(lower=True)
  assert metrics.make(metric) is metric


def test_a_function_of_one_example_or_of_all():
  def right(prediction, example):
    return {"acc": prediction == example["suffix"], "len": len(prediction)}

  def count(predictions, examples, *, answer_key):
    return {"count": len(predictions)}

  examples = [{"suffix": "a"}, {"suffix": "b"}]
  assert metrics.make(right)(["a", "cat"], examples) == {
    "acc": 0.5,
    "len": 2.0,
    "num": 2.0,
  }
  assert metrics.make(count) is count
  with pytest.raises(ValueError, match="metric is 3, expected a name or a fun"):
    metrics.make(3)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("exactmatch", 'unknown metric "exactmatch".*mean "exact_match"'),
    ("vqq(lower=True)", 'unknown metric "vqq".*mean "vqa"'),
    ("vqa(lowr=True)", 'unknown argument of vqa "lowr".*mean "lower"'),
    ("pope(lower=True)", 'unknown argument of pope "lower"'),
    ("vqa(lower=True", r'metric "vqa\(lower=True": .*was never closed'),
    ("vqa(lower=len)", r'metric "vqa\(.*: cannot read "len", expected a plain'),
    ("vqa(lower=True).score", "cannot read .*, expected a name or a call"),
    ("", 'metric "": invalid syntax'),
  ],
)
def test_make_explains(text, message):
  with pytest.raises(ValueError, match=message):
    metrics.make(text)
