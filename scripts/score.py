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

import argparse
import dataclasses
import json

from paligemma import metrics
from paligemma.evals import predictions as predictions_lib
from paligemma.evals import scoring
from paligemma.metrics import bootstrap
from scripts import progress, score_table
from trainers import command_line, evaluation


def score(
  config,
  predictions,
  *,
  against=None,
  metric=None,
  split=None,
  limit=None,
  resamples=bootstrap.SAMPLES,
):
  """Scores one file of predictions, or compares two.

  Args:
    config: ml_collections.ConfigDict.
    predictions, against: the files.
    metric: as for metrics.make; default that of the evaluator.
    split: name of the evaluator; default the only one that generates.
    limit: the files are about the first so many examples.
    resamples: number of them for each interval; 0 for none.

  Returns:
    Tuple of the number of examples that are scored, {name: bootstrap.Estimate},
    or with `against` {name: bootstrap.Comparison}, and the number of examples
    that are not, as a file says that they cannot be used.

  Raises:
    ValueError: a mistake in the config or the data, or in a line of a file.
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
  count = len(scoring.good(examples, *records)[0])
  scores = function(
    made,
    *records,
    examples,
    answer_key=evaluator.answer_key,
    samples=resamples,
    progress=progress.resampling,
  )
  return count, scores, len(examples) - count


def main():
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--predictions", required=True, metavar="A.jsonl")
  parser.add_argument("--against", metavar="B.jsonl")
  parser.add_argument("--metric", help='such as "vqa(lower=True)"')
  parser.add_argument("--split", help="name of the evaluator")
  parser.add_argument("--limit", type=int, help="the first examples only")
  parser.add_argument("--resamples", type=int, default=bootstrap.SAMPLES)
  parser.add_argument("--json", action="store_true")
  args, config = command_line.parse(parser)
  count, scores, bad = score(
    config,
    args.predictions,
    against=args.against,
    metric=args.metric,
    split=args.split,
    limit=args.limit,
    resamples=args.resamples,
  )
  print(f"{count} examples" + f", {bad} more are bad" * bool(bad))
  table = score_table.comparisons if args.against else score_table.estimates
  print(table(scores))
  if args.json:
    found = {"examples": count, "scores": score_table.as_json(scores)}
    print(json.dumps(found))


if __name__ == "__main__":
  command_line.run(main)
