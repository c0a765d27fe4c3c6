"""Reproduces published scores: data, training, evaluations, a table.

    python -m scripts.reproduce okvqa textvqa --raw downloads \
      --variant paligemma_3b --res 224 --workdir runs/reproduce

For each transfer of configs/transfers/README.md:

1. compares its data, data/NAME, with what was published (scripts.prepare
   --check); with --raw prepares it, from DIR/NAME or else DIR;
2. trains as published; the models of the scores of PaliGemma 3B were trained on
   the validation data too (final_split=true);
3. evaluates all splits whose answers it has, and predicts the others;
4. writes the files that test servers take, submissions/SPLIT.json;
5. writes WORKDIR/README.md: scores published and reached, 95% intervals,
   differences, bundles.

What is done is not done again: the same command goes on where it was stopped. A
transfer that fails does not stop the others; all data is checked before the
first training. --budget steps=200,limit=100 is a trial: so many steps of
training, and so many examples of each evaluation. pope trains nothing and
evaluates vqav2 of the same WORKDIR.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # the imports take seconds on a busy machine
  print("starting: importing JAX", file=sys.stderr, flush=True)

from ml_collections import ConfigDict

from paligemma import disk, messages, registry, variants
from paligemma.evals import predictions
from scripts import evaluate, list_transfers, reached
from scripts.datasets import catalog, folder
from scripts.submissions import catalog as submissions
from trainers import command_line, processes, progress, train
from trainers import workdir as workdirs

UNITS = ("steps", "examples", "epochs", "limit")
_JOBS = min(os.cpu_count() or 1, 8)
_TRAINED = ("final.npz", "adapter.safetensors")


def budget_of(text: str) -> dict[str, str]:
  """What --budget says: {"steps": "200", "limit": "100"}."""
  found = {}
  for part in filter(None, text.split(",")):
    unit, equals, value = part.partition("=")
    registry.lookup(dict.fromkeys(UNITS), unit, "unit of --budget")
    if not equals or not value.replace(".", "", 1).isdigit():
      raise ValueError(
        f"--budget {messages.shown(text)}: expected numbers, such as "
        "steps=200,limit=100"
      )
    found[unit] = value
  return found


def config_of(
  name: str,
  *,
  ckpt: str = "pt",
  tokenizer: str = "paligemma_tokenizer.model",
  variant: str = "paligemma_3b",
  res: int | None = None,
  budget: str = "",
  batch_size: int | None = None,
) -> ConfigDict:
  """The config of a transfer as it was published.

  Arguments are the options of the command line; `--help` explains them.
  """
  known = {x["task"] for x in list_transfers.published_scores()}
  registry.lookup(dict.fromkeys(known), name, "transfer")
  registry.lookup(variants.PALIGEMMA, variant, "variant")
  given = {"variant": variant, "init": ckpt, "tokenizer": tokenizer}
  given |= {} if res is None else {"res": res}
  if variant == "paligemma_3b":
    given["final_split"] = True
  config = _load(name, given)
  first, *_ = config.train.sources.values()
  if first.kind == "video_jsonl":
    config = _load(name, given | {"splits": "val+test"})
  found = budget_of(budget)
  if limit := found.pop("limit", None):
    for spec in config.evals.values():
      spec.limit = int(float(limit))
  totals = [f"--config.total_{unit}={x}" for unit, x in found.items()]
  if config.total_steps != 0:
    command_line.set_values(config, totals)
  if batch_size is not None:
    for spec in _generating(config).values():
      spec.batch_size = batch_size
  return config


def _load(name, given):
  arguments = ",".join(f"{key}={value}" for key, value in given.items())
  return command_line.load_config(f"configs/transfers/{name}.py:{arguments}")


def _generating(config):
  return {n: x for n, x in config.evals.items() if x.kind == "generate"}


def _files(config) -> list[pathlib.Path]:
  """The files of prepared data that a config reads."""
  trains = [*config.train.sources.values()] if config.total_steps != 0 else []
  sources = [*trains, *(spec.source for spec in config.evals.values())]
  return [*dict.fromkeys(pathlib.Path(x.path) for x in sources if "path" in x)]


def prepare_data(config: ConfigDict, raw: str | None = None) -> list[str]:
  """Prepares the data of a config if need be, and compares it.

  Args:
    config: Of a transfer.
    raw: Folder of what was downloaded; None: it is prepared already.

  Returns:
    How it differs from what was published, a line each.

  Raises:
    ValueError: It is missing; names the command that prepares it.
  """
  files = _files(config)
  if not files:  # of TFDS
    return []
  out, splits = files[0].parent, [file.stem for file in files]
  name = out.name
  if raw is not None and not all(file.exists() for file in files):
    here = pathlib.Path(raw, name)
    with progress.bar(name) as show:
      folder.prepare(
        name,
        here if here.is_dir() else raw,
        out,
        splits=splits,
        jobs=_JOBS,
        show=show,
      )
  if missing := [file for file in files if not file.exists()]:
    raise ValueError(
      f"{missing[0]}: missing; python -m scripts.prepare {name} --list says "
      "what to download, and --raw names its folder here"
    )
  registry.lookup(catalog.DATA_SETS, name, "data set")
  with progress.bar("pictures", unit="pictures") as show:
    _, differences = folder.check(
      name, out, splits=splits, jobs=_JOBS, show=show
    )
  return differences


def _trains_on(config, name):
  """Whether a model is trained on examples that an evaluation asks about."""
  path = config.evals[name].source.get("path")
  return config.total_steps != 0 and any(
    path is not None and source.path == path and not source.slice
    for source in config.train.sources.values()
  )


def run_evaluations(
  config: ConfigDict, ckpt: pathlib.Path, run: pathlib.Path
) -> None:
  """Evaluates what is not in the folder of a run yet."""
  file = {
    name: run / reached.EVALUATIONS / f"{name}.json"
    for name in _generating(config)
  }
  todo = [name for name in file if not file[name].exists()]
  if not todo:
    return
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.evals = {name: config.evals[name] for name in todo}
  ran_with = evaluate.describe(config, ckpt)
  for name, examples, scores in evaluate.evaluate(
    config, ckpt, out=f"{run}/predictions/", ran_with=ran_with
  ):
    found = {
      "examples": examples,
      "scores": {key: x._asdict() for key, x in scores.items()},
      "bundle": ran_with["id"],
      "trained_on": _trains_on(config, name),
    }
    disk.write(file[name], f"{json.dumps(found, indent=1)}\n")


def write_submissions(
  name: str, config: ConfigDict, run: pathlib.Path
) -> list[str]:
  """Writes the files for test servers.

  Returns:
    Why a server may refuse one, a line each.
  """
  problems = []
  for split, spec in _generating(config).items():
    form = submissions.FORMATS.get((name, split))
    if form is None:
      continue
    records = predictions.read(run / "predictions" / f"{split}.jsonl")
    file = pathlib.Path(spec.source.path)
    published = catalog.DATA_SETS[file.parent.name].splits[file.stem].count
    path = run / reached.SUBMISSIONS / f"{split}{form.suffix}"
    problems += submissions.write(form, records, path, published)
  return problems


@dataclasses.dataclass(frozen=True)
class Reproduction:
  """One transfer, in a folder of its own.

  Attributes:
    name: Of the transfer.
    config: As `config_of` made it.
    workdir: Folder of all runs.
    budget: That of the config.
  """

  name: str
  config: ConfigDict
  workdir: pathlib.Path
  budget: str = ""

  @property
  def run(self) -> pathlib.Path:
    """The folder of its run."""
    return self._run_of(self.name)

  @property
  def ckpt(self) -> pathlib.Path:
    """The folder of the run whose weights are evaluated."""
    trains = self.config.total_steps != 0
    return self.run if trains else self._run_of("vqav2")

  def _run_of(self, task):
    model = f"{self.config.model.variant}_{self.config.res}"
    # No "=", which would end the name of an argument of a config.
    end = f"_{self.budget}".replace("=", "").replace(",", "_")
    return self.workdir / f"{task}_{model}{end.rstrip('_')}"

  def check(self, raw: str | None = None) -> None:
    """Compares the data, and the run that may be there, see `prepare_data`."""
    workdirs.check(self.run, self.config)
    record = self.run / reached.RUN
    # What differed may be mended since.
    if record.exists() and not disk.read_json(record)["note"]:
      return
    differences = prepare_data(self.config, raw)
    for line in differences[: folder.MOST]:
      progress.say([f"differs: {messages.one_line(line)}"])
    note = f"data: {len(differences)} differences" if differences else ""
    found = {
      "task": self.name,
      "variant": self.config.model.variant,
      "res": self.config.res,
      "budget": self.budget,
      "note": note,
    }
    disk.write(record, f"{json.dumps(found, indent=1)}\n")

  def train(self) -> None:
    """Trains, with the curve of the perplexity alone: the scores follow."""
    if any((self.ckpt / file).exists() for file in _TRAINED):
      return
    if self.ckpt != self.run:
      raise ValueError(
        f"{self.ckpt}: missing, {self.name} evaluates what vqav2 has trained; "
        "name vqav2 before it"
      )
    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      for split in _generating(config):
        del config.evals[split]
    if not train.train(config, self.run):
      sys.exit(os.EX_TEMPFAIL)  # asked to stop

  def evaluate(self) -> None:
    """Evaluates and submits what is not in the folder yet."""
    run_evaluations(self.config, self.ckpt, self.run)
    for line in write_submissions(self.name, self.config, self.run):
      progress.say([f"submission: {messages.one_line(line)}"])


def reproduce(
  names: Sequence[str],
  workdir: str | os.PathLike,
  *,
  raw: str | None = None,
  budget: str = "",
  **options: object,
) -> tuple[list[reached.Row], dict[str, str]]:
  """Does all that is not done yet: first all data is checked.

  Args:
    names: Of transfers.
    workdir: Folder of the runs.
    raw: See `prepare_data`.
    budget, **options: As of `config_of`.

  Returns:
    The lines of the table; and what failed, with the reason.
  """
  workdir, failed = pathlib.Path(workdir), {}
  todo = {
    name: Reproduction(
      name, config_of(name, budget=budget, **options), workdir, budget
    )
    for name in names
  }
  for stage in (
    lambda one: one.check(raw),
    lambda one: (one.train(), one.evaluate()),
  ):
    for name in [x for x in todo if x not in failed]:
      try:
        stage(todo[name])
      except (OSError, ValueError) as error:
        failed[name] = messages.one_line(error)
        progress.say([f"{name}: {failed[name]}"])
  return reached.write(workdir), failed


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("names", nargs="+", metavar="NAME", help="of transfers")
  parser.add_argument(
    "--ckpt",
    default="pt",
    help="to begin with; default: the preset of variant and resolution",
  )
  parser.add_argument("--tokenizer", default="paligemma_tokenizer.model")
  parser.add_argument("--workdir", default="runs/reproduce")
  parser.add_argument("--variant", default="paligemma_3b")
  parser.add_argument("--res", type=int, help="default: as in the list")
  parser.add_argument("--raw", metavar="DIR", help="what was downloaded")
  parser.add_argument(
    "--budget", default="", help="of a trial, such as steps=200,limit=100"
  )
  parser.add_argument(
    "--batch_size", type=int, help="of evaluations; default: as published"
  )
  processes.add_arguments(parser)
  options = vars(parser.parse_args())
  processes.prepare(options)
  names = options.pop("names")
  lines, failed = reproduce(names, **options)
  print(reached.table(lines))
  print(f"wrote {pathlib.Path(options['workdir'], 'README.md')}")
  if failed:
    raise ValueError("; ".join(f"{name}: {x}" for name, x in failed.items()))


if __name__ == "__main__":
  command_line.run(main)
