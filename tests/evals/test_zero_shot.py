"""Zero-shot classification beside NumPy, and beside paligemma.classify."""

import dataclasses
import json
import re

import numpy as np
import pytest

import paligemma
from paligemma import evals
from paligemma.evals import predictions, zero_shot

NAMES = ["Red_circle", "blue digit", "a, b", "photo", "caption of a", "segment"]
RNG = np.random.default_rng(0)


def unit(*shape):
  z = RNG.standard_normal(shape).astype(np.float32)
  return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_classes_are_means_of_their_texts():
  z = unit(5, 7, 11)
  for found, texts in zip(zero_shot.average(z), z, strict=True):
    mean = sum(texts) / 7
    np.testing.assert_allclose(found, mean / np.sqrt(sum(mean**2)), atol=1e-6)


@pytest.mark.parametrize("has_bias", [True, False])
def test_probabilities(has_bias):
  params = {"t": np.float32([2.3]), "b": np.float32([-1.7])}
  if not has_bias:
    del params["b"]
  near = RNG.uniform(-1, 1, (5, 7)).astype(np.float32)
  logits = near * np.exp(2.3)
  expected = 1 / (1 + np.exp(1.7 - logits))
  if not has_bias:
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  found = zero_shot.log_probabilities(params, near)
  np.testing.assert_allclose(np.exp(found), expected, atol=1e-6)


@pytest.fixture(scope="module")
def labelled(examples):
  """Eleven examples of four of six classes."""
  return [
    {**example, "suffix": NAMES[i % 4].upper().replace(" ", "_")}
    for i, example in enumerate(examples)
  ]


@pytest.fixture(scope="module")
def evaluator(labelled, alone, siglip_tok):
  return evals.ZeroShot(
    "val",
    labelled,
    alone,
    siglip_tok,
    batch_size=4,
    class_names=NAMES,
  )


@pytest.fixture(scope="module")
def expected(labelled, siglip, siglip_tok):
  """Probabilities float[11, 6] and the classes."""
  model, params = siglip
  found = paligemma.classify(
    model,
    params,
    siglip_tok,
    [x["image"] for x in labelled],
    NAMES,
    templates="short",
  )
  return found, np.arange(11) % 4


def test_scores_are_those_of_classify(evaluator, siglip, one_device, expected):
  probabilities, labels = expected
  order = np.argsort(-probabilities, axis=1, kind="stable")
  is_right = order[:, 0] == labels
  assert 0 < is_right.sum() < 11
  by_class = [is_right[labels == label].mean() for label in range(4)]
  found = evaluator.run(*siglip, one_device)
  assert found == {
    "accuracy": pytest.approx(is_right.mean()),
    "top5_accuracy": (order[:, :5] == labels[:, None]).any(axis=1).mean(),
    "mean_per_class_accuracy": pytest.approx(np.mean(by_class)),
    "num_examples": 11,
  }
  assert found.keys() - evaluator.higher_is_better == {"num_examples"}


def test_sharded_is_single_device(evaluator, siglip, one_device, eight_devices):
  other = dataclasses.replace(evaluator, batch_size=8)
  found, others = (
    e.run(*siglip, mesh)
    for e, mesh in ((evaluator, one_device), (other, eight_devices))
  )
  assert found == others


def test_predictions_are_written(
  evaluator, siglip, one_device, expected, tmp_path
):
  scores = evaluator.run(*siglip, one_device, output_dir=tmp_path)
  records = predictions.read(tmp_path / "val/predictions.jsonl", 11)
  probabilities, labels = expected
  for i, record in enumerate(records):
    best = probabilities[i].argmax()
    assert (
      record["image"] == f"{i}.png" and record["where"] == f"x.jsonl:{i + 1}"
    )
    assert record["suffix"] == NAMES[labels[i]]
    assert record["prediction"] == NAMES[best]
    assert record["correct"] == (best == labels[i]) == (record["rank"] == 0)
    assert np.exp(record["score"]) == pytest.approx(
      probabilities[i, best], rel=1e-4
    )
  right = np.mean([record["correct"] for record in records])
  assert right == pytest.approx(scores["accuracy"])


def test_classes_may_be_those_of_the_examples(
  evaluator, siglip, one_device, labelled
):
  of_examples = dataclasses.replace(evaluator, class_names=None)
  named = dataclasses.replace(
    evaluator, class_names=["a, b", "blue digit", "photo", "red circle"]
  )
  rows = of_examples.rows(*siglip, one_device)
  assert rows == named.rows(*siglip, one_device)
  numbered = [
    {**x, "suffix": np.int64([3, 1, 0, 2][i % 4])}
    for i, x in enumerate(labelled)
  ]
  numbered = dataclasses.replace(named, source=numbered)
  assert numbered.rows(*siglip, one_device) == rows


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (
      "blue digits",
      'x.jsonl:5: "blue digits" is none of the 6 class_names. Did',
    ),
    ("...", 'x.jsonl:5: expected the name of a class under "suffix", found'),
    (6, 'x.jsonl:5: expected 0 to 5 under "suffix", found 6'),
    (["photo"], 'x.jsonl:5: expected a text under "suffix", found'),
    (None, 'x.jsonl:5: missing key "suffix"'),
  ],
)
def test_an_example_of_no_class(
  evaluator, siglip, one_device, labelled, value, message, tmp_path
):
  source = [dict(x) for x in labelled]
  source[4]["suffix"] = value
  if value is None:
    del source[4]["suffix"]
  bad = dataclasses.replace(evaluator, source=source)
  with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
    bad.run(*siglip, one_device)
  skipping = dataclasses.replace(bad, on_bad="skip")
  found = skipping.run(*siglip, one_device, output_dir=tmp_path)
  assert (found["num_examples"], found["num_bad"]) == (10, 1)
  lines = (tmp_path / "val/predictions.jsonl").read_text().splitlines()
  assert json.loads(lines[4])["error"].startswith(message[:40])
  good = dataclasses.replace(evaluator, source=labelled[:4] + labelled[5:])
  del found["num_bad"]
  assert found == good.run(*siglip, one_device)


def test_classes_that_are_cut_to_the_same_tokens_are_an_error(
  evaluator, siglip, one_device
):
  cut = dataclasses.replace(evaluator, templates=["a " * 40 + "{}"])
  with pytest.raises(
    ValueError,
    match=r'^the classes ".*" and ".*" are equal in the \d+ tokens t',
  ):
    cut.run(*siglip, one_device)
  # One template that tells them apart is enough.
  dataclasses.replace(cut, templates=[*cut.templates, "{}"]).run(
    *siglip, one_device
  )


def test_a_number_is_no_class_without_names(
  evaluator, siglip, one_device, labelled
):
  numbered = [{**x, "suffix": i % 2} for i, x in enumerate(labelled)]
  other = dataclasses.replace(evaluator, source=numbered, class_names=None)
  with pytest.raises(
    ValueError,
    match=r"expected the name of a class \(for its index give class_n",
  ):
    other.run(*siglip, one_device)


def test_one_class_is_an_error(evaluator, siglip, one_device, labelled):
  alike = [{**x, "suffix": "photo"} for x in labelled]
  for names in (None, ["photo"]):
    other = dataclasses.replace(evaluator, source=alike, class_names=names)
    with pytest.raises(
      ValueError, match='"val": one class alone, "photo", expected 2 or more'
    ):
      other.run(*siglip, one_device)
