"""Scores files of predictions again, without a model.

    python -m scripts.score --config configs/transfers/vqav2.py \
      --predictions a.jsonl --against b.jsonl --metric "vqa(lower=True)"

The config says which data the predictions are about, and the metric unless
--metric does. The table has a 95% interval of every score, of the bootstrap
over examples. With --against both files are scored on the same resamples: the
difference and its interval, the share of the resamples in which A is larger,
and of a mean the p-value of the paired sign-flip test. With --json the last
line is one object.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from paligemma import messages, metrics
from paligemma.evals import predictions as predictions_lib
from paligemma.evals import scoring
from paligemma.metrics import bootstrap
from trainers import command_line, evaluation, progress


def score(
  config: ConfigDict,
  predictions: epath.PathLike,
  *,
  against: epath.PathLike | None = None,
  metric: str | None = None,
  split: str | None = None,
  limit: int | None = None,
  resamples: int = bootstrap.SAMPLES,
) -> tuple[int, dict[str, Any], int]:
  """Scores one file of predictions, or compares two.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    Tuple of the number of examples that are scored, {name: bootstrap.Estimate},
    or with `against` {name: bootstrap.Comparison}, and the number of examples
    that are not, as a file says that they cannot be used.
  """
  evaluator = evaluation.one_that_generates(
    evaluation.make_evaluators(config, None, split=split, limit=limit)
  )
  if metric is not None:
    evaluator = dataclasses.replace(evaluator, metric=metric)
  if evaluator.metric is None:
    raise ValueError(f"evals.{evaluator.name} has no metric: give --metric")
  made = metrics.make(evaluator.metric)
  files = [path for path in (predictions, against) if path is not None]
  records = [predictions_lib.read(path, len(evaluator)) for path in files]
  examples = evaluator.examples()
  for path, lines in zip(files, records, strict=True):
    predictions_lib.check_examples(path, lines, examples)
  function = scoring.estimate if against is None else scoring.compare
  scores = function(
    made,
    *records,
    examples,
    answer_key=evaluator.answer_key,
    samples=resamples,
    progress=progress.resampling,
  )
  count = len(scoring.good(examples, *records)[0])
  return count, scores, len(examples) - count


def table(
  scores: Mapping[str, Any], published: Mapping[str, float] | None = None
) -> str:
  """Lines of {name: bootstrap.Estimate} or {name: bootstrap.Comparison}.

  Args:
    published: scores to compare with those of the same names, if there are any.
  """
  if any(isinstance(x, bootstrap.Comparison) for x in scores.values()):
    rows = [("metric", "A", "B", "A - B", "95% interval", "A > B", "p")]
    for name, found in scores.items():
      numbers = map(_number, (found.a, found.b, found.difference))
      wins, p = found.a_is_larger, found.p_value
      share = "" if wins is None else f"{wins:.1%}"
      p_value = "" if p is None else f"{p:.4f}"
      rows.append((name, *numbers, _interval(found), share, p_value))
  else:
    head = ("published", "difference") if published else ()
    rows = [("metric", "value", "95% interval", *head)]
    for name, found in scores.items():
      there = _beside(found.value, published.get(name)) if published else ()
      rows.append((name, _number(found.value), _interval(found), *there))
  return "\n".join(messages.aligned(rows))


def as_json(scores: Mapping[str, Any]) -> dict[str, Any]:
  """{name: {field: value}}."""
  return {name: found._asdict() for name, found in scores.items()}


def _number(value):
  return f"{value:.0f}" if value == round(value) else f"{value:.4f}"


def _interval(found):
  return "" if found.low is None else f"[{found.low:.4f}, {found.high:.4f}]"


def _beside(value, published):
  if published is None:
    return "", ""
  return f"{published:.4f}", f"{value - published:+.4f}"


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--predictions", required=True, metavar="A.jsonl")
  parser.add_argument("--against", metavar="B.jsonl")
  parser.add_argument("--metric", help='such as "vqa(lower=True)"')
  parser.add_argument("--split", help="the evaluator, if several")
  parser.add_argument("--limit", type=int, help="the first examples only")
  parser.add_argument(
    "--resamples", type=int, default=bootstrap.SAMPLES, help="0: no intervals"
  )
  parser.add_argument("--json", action="store_true")
  args, config = command_line.parse(parser)
  options = vars(args)
  end_with_json = options.pop("json")
  count, scores, bad = score(config, **options)
  print(f"{count} examples" + f", {bad} more are bad" * bool(bad))
  print(table(scores))
  if end_with_json:
    print(json.dumps({"examples": count, "scores": as_json(scores)}))


if __name__ == "__main__":
  command_line.run(main)
