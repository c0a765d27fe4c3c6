"""What a run answers: pictures, which errors it makes, and how often."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from paligemma import messages
from paligemma.data import drawing, location, objects
from paligemma.evals import judged, predictions, scoring
from paligemma.evals.predictions import Record
from paligemma.metrics import bootstrap
from trainers.run_files import Evaluation

SIDE = 240  # pixels of the longer side of a picture
SHOWN = 6  # examples of the gallery
WORST = 8
LABELS = 15  # of a table of confusion; the rarer ones are one row together
OTHERS, NOTHING = "(others)", "(nothing)"

# What a damaged record may raise where its objects are read.
_DAMAGE = KeyError, TypeError, ValueError


@dataclasses.dataclass(frozen=True)
class Scored:
  """The predictions of a step with their scores.

  Attributes:
    records: none if they cannot be read.
    metric, rows: of the metric, one a record; None if they cannot be scored.
    problem: why there are no records or rows.
    resamples: for intervals of scores that are not means; 0 for none.
  """

  evaluation: Evaluation
  records: list[Record]
  metric: Any
  rows: Sequence[Any] | None
  problem: str
  resamples: int

  @functools.cached_property
  def estimates(self) -> Mapping[str, bootstrap.Estimate]:
    """Scores with their intervals; resamples of means cost nothing."""
    if self.rows is None:
      return {}
    is_mean = getattr(self.metric, "is_mean", False)
    return bootstrap.estimate(
      self.metric,
      self.rows,
      groups=scoring.groups(self.metric, self.records),
      samples=bootstrap.SAMPLES if is_mean else self.resamples,
    )


def score(evaluation: Evaluation, step: int, resamples: int = 0) -> Scored:
  """Scores the predictions of a step again, by the records alone."""
  records, metric, rows, problem = [], None, None, ""
  try:
    records = evaluation.read(step)
    metric = evaluation.metric(records)
    if metric is evaluation.kind:
      rows = records
    elif hasattr(metric, "rows"):
      examples = [
        {"_where": predictions.where(record), **record} for record in records
      ]
      rows = scoring.apply(
        metric.rows, records, examples, answer_key=evaluation.answer_key
      )
  except (OSError, *_DAMAGE) as error:
    problem = messages.one_line(error)
  return Scored(evaluation, records, metric, rows, problem, resamples)


def in_common(
  answers: Mapping[str, Sequence[Record]],
) -> list[dict[str, Record]]:
  """At most SHOWN examples that all have answered, at equal distances.

  Args:
    answers: heading -> records.

  Returns:
    Per example {heading: record}.
  """

  def key(record):
    same = record["index"], record.get("where"), record.get("prefix")
    return repr(same)

  tables = {h: {key(x): x for x in records} for h, records in answers.items()}
  first = next(iter(tables.values()), {})
  keys = [k for k in first if all(k in table for table in tables.values())]
  places = np.linspace(0, len(keys) - 1, min(SHOWN, len(keys)))
  return [
    {heading: table[keys[i]] for heading, table in tables.items()}
    for i in places.round().astype(int)
  ]


def draw(
  evaluation: Evaluation, records: Mapping[str, Record]
) -> tuple[Image.Image, dict[str, Image.Image]]:
  """Draws an example with answers to it.

  Args:
    records: heading -> record.

  Returns:
    The picture with the true objects, and {heading: with those of the answer};
    of an answer there is none if neither has any.

  Raises:
    ValueError: there is no picture; one line that says why.
  """
  try:
    first = next(iter(records.values()))
    picture = drawing.enlarge(evaluation.picture(first), SIDE)
  except (OSError, *_DAMAGE, IndexError) as error:
    raise ValueError(messages.one_line(error)) from None
  decode = None
  with contextlib.suppress(OSError, ValueError):  # boxes alone, then
    decode = evaluation.decode
  size, drawn = (picture.height, picture.width), {}
  for heading, record in records.items():
    found, truths = _objects(evaluation, record, size, decode)
    if found or truths:
      drawn[heading] = picture.copy()
      colours, _ = judged.colours(found, truths)
      drawing.draw_objects(drawn[heading], found, colours)
  # Of several answers, none decides on the colours of what is true.
  _, colours = judged.colours(found if len(records) == 1 else truths, truths)
  drawing.draw_objects(picture, truths, colours)
  return picture, drawn


def is_right(evaluation: Evaluation, record: Record) -> bool | None:
  """Whether an answer is right; None if that cannot be said."""
  _, truths = _objects(evaluation, record, (1, 1))
  if not truths and "correct" not in record:
    return None
  try:
    return judged.is_right(record, answer_key=evaluation.answer_key)
  except _DAMAGE:
    return False


def worst(scored: Scored) -> list[tuple[Record, str]]:
  """At most WORST wrong answers, each with a note: the lowest scores first, and
  of equal ones those of which the model was the surest."""
  ranked = []
  for i, record in enumerate(scored.records):
    value, note = _quality(scored, i)
    if value is not None and value < 1:
      ranked.append((value, -record.get("score", 0.0), i, note))
  ranked.sort()
  return [(scored.records[i], note) for _, _, i, note in ranked[:WORST]]


def confusion(scored: Scored) -> dict[tuple[str, str], int] | None:
  """{(true label, predicted label): how often}, of boxes or of whole answers.

  A box that is missed is taken for NOTHING, and one where there is none is
  NOTHING in truth. Labels other than the LABELS most frequent are OTHERS. None
  if nearly every answer is another one, as those of captions.
  """
  counts = collections.Counter()
  texts = collections.Counter()
  for record in scored.records:
    found, truths = _objects(scored.evaluation, record, (1, 1))
    if found or truths:
      counts.update(_pairs(found, truths))
    elif answers := true_answers(scored.evaluation, record):
      text = record["prediction"]
      truth = text if record.get("correct") else answers[0]
      counts[truth, text] += 1
      texts[truth] += 1
  if 2 * len(texts) > texts.total() > 0:
    return None
  frequent = collections.Counter()
  for pair, count in counts.items():
    frequent.update(dict.fromkeys(pair, count))
  del frequent[NOTHING]
  kept = {label for label, _ in frequent.most_common(LABELS)} | {NOTHING}
  merged = collections.Counter()
  for pair, count in counts.items():
    merged[tuple(x if x in kept else OTHERS for x in pair)] += count
  return dict(merged)


def _pairs(found, truths):
  """Yields (true label, predicted label) of all objects of an example."""
  pairs = dict(judged.pair(found, truths))
  for i, item in enumerate(found):
    truth = truths[pairs[i]]["label"] if i in pairs else NOTHING
    yield truth, item["label"]
  for k, item in enumerate(truths):
    if k not in pairs.values():
      yield item["label"], NOTHING


def _quality(scored, i):
  """How good an answer is, 1 at best, and a note on it; None if unknown."""
  row, record = scored.rows[i] if scored.rows else None, scored.records[i]
  if isinstance(row, dict) and row is not record:
    known = getattr(scored.metric, "higher_is_better", {})
    for name, is_higher_better in known.items():
      if name in row and is_higher_better:
        return row[name], f"{name} {row[name]:.3g}"
  found, truths = _objects(scored.evaluation, record, (1, 1))
  if found or truths:
    right, is_found = judged.judge(found, truths)
    wrong, missed = right.count(False), is_found.count(False)
    note = f"{wrong} wrong, {missed} missed"
    return 1 - (wrong + missed) / (len(right) + len(is_found)), note
  right = is_right(scored.evaluation, record)
  return (None if right is None else float(right)), ""


def _objects(
  evaluation: Evaluation,
  record: Record,
  size: location.Size,
  decode: Callable | None = None,
) -> tuple[list[objects.Object], list[objects.Object]]:
  """Objects of prediction and truth, none of a damaged record."""
  try:
    return judged.read_objects(
      record, size, answer_key=evaluation.answer_key, decode=decode
    )
  except _DAMAGE:
    return [], []


def true_answers(evaluation: Evaluation, record: Record) -> list[str]:
  """The true answers as texts, of boxes the labels alone."""
  value = record.get(evaluation.answer_key)
  if isinstance(value, list) and all(isinstance(x, Mapping) for x in value):
    labels = (str(x.get("label", "")) for x in value)
    return [location.SEPARATOR.join(labels)]
  values = value if isinstance(value, list) else [value]
  texts = dict.fromkeys(judged.shorten(x) for x in values if isinstance(x, str))
  return list(texts)
