"""Trains once per combination of values, and compares the runs.

    python -m scripts.sweep --workdir sweeps/a \
      --config configs/transfers/forkme.py:train=train.jsonl,val=val.jsonl \
      --grid learning_rate=0.003,0.01,0.03 tune=attention,lora

A name is an argument of the config, such as tune, or a value of it, such as
learning_rate or optimizer_args.momentum; --config.name=value is for all runs.
Started again it skips what is finished and resumes the rest; another grid in
the same folder adds runs. report.html compares the best. --search lets optuna
choose the values:

      --search learning_rate=0.001:0.1:log tune=attention,lora --trials 20
"""

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from paligemma import disk, evals, registry
from scripts.sweeps import combinations, devices, results, runner, search
from trainers import (
  best,
  command_line,
  evaluation,
  progress,
  run_page,
  workdir,
)

REPORTED = 8  # the best runs, which the report compares
SLURM = """\
#!/usr/bin/env bash
# Trains one combination of a sweep per task; the same command resumes them.
#SBATCH --job-name=sweep
#SBATCH --array=0-{last}
#SBATCH --output={folder}/%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
set -euo pipefail
exec srun python -m paligemma sweep \\
  --only "$SLURM_ARRAY_TASK_ID" {arguments}
"""


def find_metric(config: ConfigDict, wanted: str | None) -> tuple[str, bool]:
  """The score that runs are compared by, and whether higher is better.

  It is the one that is wanted, else config.keep_best, else the first of the
  first evaluator that generates, or of any.

  Raises:
    ValueError: no evaluator has it, or there is no evaluator.
  """
  made = sorted(
    evaluation.make_evaluators(config, None),
    key=lambda evaluator: not isinstance(evaluator, evals.Generate),
  )
  wanted = wanted or config.keep_best or ""
  known = best.known_scores(made, config.ema_decay is not None, wanted)
  name = wanted or next(iter(known), "")
  _, higher_is_better = registry.lookup(known, name, "--metric")
  return name, higher_is_better


def write_slurm(folder: epath.Path, count: int, argv: Sequence[str]) -> str:
  """Writes the script of an array job, and returns the command it starts by."""
  path = folder / "sweep.sbatch"
  others = [text for text in argv if text != "--slurm"]
  text = SLURM.format(
    last=count - 1, folder=folder, arguments=shlex.join(others)
  )
  disk.write(path, text)
  return shlex.join(["sbatch", str(path)])


def parse() -> tuple[argparse.Namespace, list[str]]:
  """The command line, and the values of the config that are set on top."""
  parser = command_line.parser(__doc__)
  parser.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]")
  parser.add_argument(
    "--workdir", required=True, help="folder of the sweep, with one per run"
  )
  kinds = parser.add_mutually_exclusive_group(required=True)
  kinds.add_argument(
    "--grid",
    nargs="+",
    metavar="NAME=VALUE,...",
    help="trains every combination; commas in parentheses belong to a value",
  )
  kinds.add_argument(
    "--search",
    nargs="+",
    metavar="NAME=LOW:HIGH[:log]|VALUE,...",
    help='trains what optuna suggests (pip install ".[sweep]")',
  )
  parser.add_argument(
    "--trials",
    type=int,
    default=20,
    help="of --search, those of earlier starts included (default: %(default)s)",
  )
  parser.add_argument(
    "--metric",
    help="score that runs are compared by, such as val/exact_match (default: "
    "config.keep_best, or the first of the first evaluator that generates)",
  )
  parser.add_argument(
    "--parallel",
    type=int,
    nargs="?",
    const=None,
    default=1,
    metavar="N",
    help="so many runs at a time, each on one GPU or TPU chip of its own; "
    "without N, one per device (default: one run, on all devices)",
  )
  parser.add_argument(
    "--slurm",
    action="store_true",
    help="write the script of a SLURM array with one task per combination of "
    "the grid, and print how to start it",
  )
  parser.add_argument(
    "--only", type=int, metavar="I", help="train combination I of the grid, 0.."
  )
  args, rest = parser.parse_known_args()
  if "://" in args.workdir:
    raise ValueError(f"--workdir {args.workdir}: expected a local folder")
  if args.parallel is not None and args.parallel < 1:
    raise ValueError(f"--parallel {args.parallel}: expected at least 1")
  if args.search and (args.slurm or args.only is not None):
    raise ValueError("--slurm and --only take a --grid, not a --search")
  if args.search and importlib.util.find_spec("optuna") is None:
    raise ValueError('--search needs optuna: pip install ".[sweep]"')
  return args, rest


def main() -> None:
  args, rest = parse()
  jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
  folder = disk.path(args.workdir)
  base = combinations.Base(args.config, rest)
  base.check_names(list(combinations.parse(args.grid or args.search)))
  listed = combinations.grid(args.grid) if args.grid else []
  config = base.make(listed[0] if listed else {})
  metric, higher_is_better = find_metric(config, args.metric)
  environments = devices.environments(args.parallel)
  runner.check_folders(base, folder, listed)
  space = search.parse(args.search) if args.search else {}
  workdir.claim(folder, base.config)
  if args.slurm:
    print(write_slurm(folder, len(listed), sys.argv[1:]))
    return
  if args.only is not None:
    if not 0 <= args.only < len(listed):
      raise ValueError(
        f"--only {args.only}: expected 0 to {len(listed) - 1}, as there are "
        f"{len(listed)} combinations"
      )
    listed = [listed[args.only]]
  rule = "the higher the better" if higher_is_better else "the lower the better"
  what = f"{len(listed)} runs" if listed else f"{args.trials} trials"
  progress.say([f"{what}, compared by the best {metric}, {rule}"])
  source = runner.Grid(listed)
  if args.search:
    source = search.Search(
      folder,
      space,
      trials=args.trials,
      metric=metric,
      higher_is_better=higher_is_better,
    )
  trainings = runner.Runner(base, folder, environments)
  trainings.run(source)
  print("\n".join(results.publish(folder, metric, higher_is_better)))
  runs = results.collect(folder, metric, higher_is_better)
  best_of = [folder / x["name"] for x in runs if x["best"] is not None]
  if best_of:
    run_page.write_at_end(*best_of[:REPORTED], out=folder / "report.html")
  if trainings.stopped_by is not None:
    progress.say(["stopped: the same command goes on with the rest"])
    raise SystemExit(128 + trainings.stopped_by)
  if trainings.failed:
    raise SystemExit(
      "\n".join(
        f"failed: {name}: {error}" for name, error in trainings.failed.items()
      )
    )


if __name__ == "__main__":
  command_line.run(main)
