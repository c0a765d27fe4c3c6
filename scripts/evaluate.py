"""Evaluates a checkpoint as a config says: every evaluator, or one.

    python -m scripts.evaluate --config configs/transfers/vqav2.py:res=448 \
      --ckpt runs/vqav2 --split val --out runs/vqav2/val.jsonl

--ckpt is the workdir of a run, or a checkpoint of any other format. With --out
the predictions are appended as they are made, and whoever is stopped goes on
there when started again. The table has a 95% interval of every score, of the
bootstrap over examples. With --json the last line is one object. On several
processes (--distributed) process 0 writes and prints.
"""

import argparse
import json

import jax

from paligemma import evals, metrics
from paligemma.evals import predictions, scoring
from paligemma.metrics import bootstrap
from scripts import progress, score_table
from trainers import (
  checks,
  command_line,
  evaluation,
  gpu_memory,
  inputs,
  places,
  processes,
)


def evaluate(
  config,
  ckpt,
  *,
  split=None,
  limit=None,
  out=None,
  batch_size=None,
  resamples=bootstrap.SAMPLES,
):
  """Runs evaluators of a config.

  Args:
    config: ml_collections.ConfigDict.
    ckpt: path of the weights, see formats.open.
    split: name of one evaluator; default all.
    limit, batch_size: in the place of the config's.
    out: file for the predictions of the one evaluator that makes some.
    resamples: number of them for each interval; 0 for none.

  Yields:
    (name of the evaluator, number of examples, {name: bootstrap.Estimate}).
    Where bad examples are skipped, "num_bad" is their number.

  Raises:
    ValueError: a mistake in the config, the data, the checkpoint or the file.
  """
  mesh, model, params = evaluation.load(config, ckpt)
  tok = inputs.make_tokenizer(config, model)
  chosen = evaluation.make_evaluators(
    config, tok, split=split, limit=limit, batch_size=batch_size
  )
  if out is not None:
    evaluation.one_that_generates(chosen)
  reads = places.evaluation_places([(evaluator, None) for evaluator in chosen])
  progress.say(checks.notes(reads, tok))
  options = {"samples": resamples, "progress": progress.resampling}
  for evaluator in chosen:
    shown = {"progress": progress.bar(evaluator.name)}
    if isinstance(evaluator, evals.Perplexity):
      rows = evaluator.rows(model, params, mesh, **shown)
      scores = bootstrap.estimate(evaluator, rows, **options)
      bad = len(evaluator) - len(rows)
    else:
      scores, bad = _generate(
        evaluator,
        (model, params, mesh),
        rng=jax.random.key(config.seed),
        path=out,
        settings=out and evaluation.config_settings(evaluator, ckpt, config),
        options=options,
        **shown,
      )
    if evaluator.on_bad == "skip":
      scores["num_bad"] = bootstrap.Estimate(float(bad))
    yield evaluator.name, len(evaluator), scores


def _generate(evaluator, loaded, *, options, **arguments):
  metric = evaluator.metric and metrics.make(evaluator.metric)
  records, examples = evaluator.predict(*loaded, **arguments)
  bad = sum(map(predictions.is_bad, records))
  if metric is None:
    return {}, bad
  scores = scoring.estimate(
    metric, records, examples, answer_key=evaluator.answer_key, **options
  )
  return scores, bad


def main():
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--split", help="name of an evaluator, default all")
  parser.add_argument("--limit", type=int, help="the first examples only")
  parser.add_argument("--out", help="file of predictions, resumed if it exists")
  parser.add_argument("--batch_size", type=int)
  parser.add_argument("--resamples", type=int, default=bootstrap.SAMPLES)
  parser.add_argument("--json", action="store_true")
  command_line.add_switch(
    parser, "distributed", processes.expected(), "several processes"
  )
  args, config = command_line.parse(parser)
  gpu_memory.configure()
  processes.start(args.distributed)
  found = {}
  for name, count, scores in evaluate(
    config,
    args.ckpt,
    split=args.split,
    limit=args.limit,
    out=args.out,
    batch_size=args.batch_size,
    resamples=args.resamples,
  ):
    if jax.process_index() == 0:
      print(f"{name}: {count} examples")
      print(score_table.estimates(scores), flush=True)
    found[name] = {"examples": count, "scores": score_table.as_json(scores)}
  if args.json and jax.process_index() == 0:
    print(json.dumps(found))


if __name__ == "__main__":
  command_line.run(main)
