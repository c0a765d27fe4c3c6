"""Evaluates a checkpoint as a config says: every evaluator, or one.

    python -m scripts.evaluate --config configs/transfers/vqav2.py:res=448 \
      --ckpt runs/vqav2 --split val --out runs/vqav2/val.jsonl

--ckpt is the workdir of a run, or a checkpoint of any other format. With --out
the predictions are appended as they are made, and whoever is stopped goes on
there when started again; a folder, such as runs/vqav2/predictions/, gets a file
for each evaluator. The table has a 95% interval of every score, of the
bootstrap over examples. With --all_checkpoints --ckpt is a workdir, and the
table has a line for each checkpoint in it, and for the best, without intervals.
Published scores of a config in configs/transfers stand beside those reached.
With --json the last line is one object. "bundle" in it, and in OUT.settings, is
an id of what the command ran with: versions, code, hardware, weights and data.
On several processes (--distributed) process 0 writes and prints.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

if __name__ == "__main__":  # the imports take seconds on a busy machine
  print("starting: importing JAX", file=sys.stderr, flush=True)

import jax
from etils import epath
from ml_collections import ConfigDict

from paligemma import messages, metrics
from paligemma.evals import predictions, scoring
from paligemma.evals.evaluator import PerExample
from paligemma.metrics import bootstrap
from scripts import list_transfers
from scripts import score as scores_lib
from trainers import (
  bundle,
  checks,
  command_line,
  evaluation,
  inputs,
  processes,
  progress,
  tasks,
  workdir,
)


def evaluate(
  config: ConfigDict,
  ckpt: epath.PathLike,
  *,
  split: str | None = None,
  limit: int | None = None,
  out: epath.PathLike | None = None,
  batch_size: int | None = None,
  resamples: int = bootstrap.SAMPLES,
  ran_with: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, int, dict[str, bootstrap.Estimate]]]:
  """Runs evaluators of a config.

  Arguments are the options of the command line; `--help` explains them.
  ran_with is a bundle, which `out` is to name.

  Yields:
    (name of the evaluator, number of examples, {name: bootstrap.Estimate}).
    Where bad examples are skipped, "num_bad" is their number.
  """
  mesh, model, params = evaluation.load(config, ckpt)
  tok = tasks.of(config).make_tokenizer(config, model)
  chosen = evaluation.make_evaluators(
    config, tok, split=split, limit=limit, batch_size=batch_size
  )
  if out is not None and not _is_folder(out):
    evaluation.one_that_generates(chosen)
  reads = inputs.evaluation_datasets(tasks.of(config), chosen)
  with progress.stage("checking the data"):
    notes = checks.notes(reads, tok)
  progress.say(notes)
  options = {"samples": resamples, "progress": progress.resampling}
  bundles = {"bundles": {ran_with["id"]: ran_with}} if ran_with else {}
  for evaluator in chosen:
    scores = {}
    if isinstance(evaluator, PerExample):
      with progress.bar(evaluator.name) as show:
        rows = evaluator.rows(model, params, mesh, progress=show)
      bad = len(evaluator) - len(rows)
      scores = bootstrap.estimate(evaluator, rows, **options)
    else:
      settings = path = None
      if out is not None:
        settings = evaluation.config_settings(evaluator, ckpt, config) | bundles
        path = out
        if _is_folder(out):
          path = epath.Path(out) / f"{evaluator.name}.jsonl"
      with progress.bar(evaluator.name) as show:
        records, examples = evaluator.predict(
          model,
          params,
          mesh,
          rng=jax.random.key(config.seed),
          path=path,
          settings=settings,
          progress=show,
        )
      bad = sum(map(predictions.is_bad, records))
      if evaluator.metric:
        metric, key = metrics.make(evaluator.metric), evaluator.answer_key
        scores = scoring.estimate(
          metric, records, examples, answer_key=key, **options
        )
    if evaluator.on_bad == "skip":
      scores["num_bad"] = bootstrap.Estimate(float(bad))
    yield evaluator.name, len(evaluator), scores


def _is_folder(out):
  return str(out).endswith("/") or epath.Path(out).is_dir()


def evaluate_all(
  config: ConfigDict, ckpt: epath.PathLike, **options: Any
) -> dict[str, dict[str, float]]:
  """Evaluates every checkpoint of a run.

  Args:
    config, options: as of `evaluate`.
    ckpt: workdir of the run.

  Returns:
    {name of the checkpoint: {"val/AP50": value}}.
  """
  found = {}
  for name, path in evaluation.kept(ckpt).items():
    progress.say([f"checkpoint {name}"])
    found[name] = {
      f"{evaluator}/{score}": estimate.value
      for evaluator, _, scores in evaluate(config, path, **options)
      for score, estimate in scores.items()
    }
  return found


def describe(config: ConfigDict, ckpt: epath.PathLike) -> dict[str, Any]:
  """The bundle of an evaluation; "run" is the last one of what it evaluates."""
  files = workdir.fingerprints(workdir.as_json(config))
  unused = ("init", "train/")
  return bundle.describe(
    {n: x for n, x in files.items() if not n.startswith(unused)}
    | {"ckpt": workdir.of_file(ckpt)},
    config.seed,
    run=bundle.of_run(ckpt),
  )


def table_of_checkpoints(found: Mapping[str, Mapping[str, float]]) -> list[str]:
  """Lines of what `evaluate_all` returns: a column for each score."""
  names = list(dict.fromkeys(name for x in found.values() for name in x))
  rows = [("checkpoint", *names)]
  for checkpoint, scores in found.items():
    shown = (f"{scores[n]:.5g}" if n in scores else "" for n in names)
    rows.append((checkpoint, *shown))
  return messages.aligned(rows)


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--split", help="name of an evaluator, default all")
  parser.add_argument("--limit", type=int, help="the first examples only")
  parser.add_argument(
    "--out", help="file of predictions, or folder of several, resumed if there"
  )
  parser.add_argument("--batch_size", type=int)
  parser.add_argument(
    "--resamples", type=int, default=bootstrap.SAMPLES, help="0: no intervals"
  )
  parser.add_argument("--json", action="store_true")
  processes.add_arguments(parser)
  command_line.add_switch(
    parser,
    "all_checkpoints",
    "a line for each checkpoint in the workdir that --ckpt names",
  )
  args, config = command_line.parse(parser)
  options = vars(args)
  as_json = options.pop("json")
  processes.prepare(options)
  if options.pop("all_checkpoints"):
    if options.pop("out") is not None:
      raise ValueError(
        "--out is of one checkpoint; leave out --all_checkpoints, or --out"
      )
    found = evaluate_all(config, **options | {"resamples": 0})
    if jax.process_index() == 0:
      print("\n".join(table_of_checkpoints(found)))
      if as_json:
        print(json.dumps(found))
    return
  found, ran_with = {}, describe(config, options["ckpt"])
  path = parser.parse_known_args()[0].config
  for name, count, scores in evaluate(config, **options, ran_with=ran_with):
    published = list_transfers.published(path, config, name)
    if jax.process_index() == 0:
      table = scores_lib.table(scores, published)
      print(f"{name}: {count} examples\n{table}", flush=True)
    found[name] = {
      "examples": count,
      "scores": scores_lib.as_json(scores),
      "bundle": ran_with["id"],
    }
    found[name] |= {"published": published} if published else {}
  if as_json and jax.process_index() == 0:
    print(json.dumps(found))


if __name__ == "__main__":
  command_line.run(main)
