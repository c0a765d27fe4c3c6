"""Exact match: the prediction is, letter for letter, one of the answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from paligemma import tree


def exact_match(
  prediction: str,
  answers: str | Sequence[str],
  *,
  lower: bool = False,
  strip: bool = True,
) -> float:
  """Whether the prediction equals one of the answers.

  Args:
    prediction: decoded text.
    answers: one answer or several accepted ones.
    lower: compare without regard to case.
    strip: drop white space at both ends of both sides.

  Returns:
    1.0 or 0.0; 0.0 where there is no answer at all.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py, which lowers
  both sides on request and otherwise compares as is; we strip as well.
  """

  def normalize(text):
    text = text.strip() if strip else text
    return text.lower() if lower else text

  if isinstance(answers, str):
    answers = [answers]
  return float(normalize(prediction) in map(normalize, answers))


def score(
  predictions: Sequence[str],
  examples: Sequence[Mapping[str, Any]],
  *,
  answer_key: str = "suffix",
  lower: bool = False,
  strip: bool = True,
) -> dict[str, float]:
  """Mean exact match over all examples.

  Args:
    predictions: decoded texts, one per example.
    examples: the raw examples.
    answer_key: field of an example with its answer or list of answers.
    lower: as in exact_match.
    strip: as in exact_match.

  Returns:
    {"exact_match": mean in [0, 1]}.

  Raises:
    ValueError: no example, or one without the answer.
  """
  if not predictions:
    raise ValueError("exact_match of no example is undefined, expected one.")
  total = 0.0
  for prediction, example in zip(predictions, examples, strict=True):
    if answer_key not in example:
      raise ValueError(
        f'{example.get("_where", "example")}: no answer under "{answer_key}",'
        f" found {sorted(example)}.{tree.did_you_mean(answer_key, example)}"
      )
    total += exact_match(
      prediction, example[answer_key], lower=lower, strip=strip
    )
  return {"exact_match": total / len(predictions)}
