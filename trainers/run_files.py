"""What the files of a run say, in whatever state it was left."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from PIL import Image

from paligemma import disk, evals, messages, metrics, tree
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.data import objects, pictures, shards, sources
from paligemma.evals import predictions
from paligemma.evals.predictions import Record
from paligemma.metrics import bootstrap
from trainers import inputs, report, status, tasks, workdir
from trainers.best import EMA, first_best

Series = dict[int, float]  # by step

_COUNT = "/num_examples"  # behind the name of an evaluator: it always counts
_FILES = ("config.json", "metrics.jsonl", "status.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """An evaluator of a run, and what it has found.

  Attributes:
    name: as in metrics.jsonl, "val" or "val/ema".
    folder: of its predictions.
    spec: its values in the config, by name; {} if there is no such config.
    scores: "AP50" -> its values, without counts.
    counts: of usable examples.
  """

  name: str
  folder: epath.Path
  spec: Mapping[str, Any]
  scores: Mapping[str, Series]
  counts: Series

  @property
  def steps(self) -> list[int]:
    return sorted(self.counts)

  @property
  def answer_key(self) -> str:
    found = self.spec.get("answer_key")
    return found or getattr(self.kind, "answer_key", "suffix")

  @property
  def kind(self) -> type:
    """The class of the evaluator; Generate if it is not known."""
    of_task = (task.evaluators for task in tasks.TASKS.values())
    known = functools.reduce(operator.or_, of_task)
    return known.get(self.spec.get("kind"), evals.Generate)

  @property
  def predicts(self) -> bool:
    return issubclass(self.kind, evals.PREDICT)

  @functools.cached_property
  def decode(self) -> objects.DecodeMasks | None:
    """The decoder of its masks.

    Raises:
      ValueError, OSError: its mask codec cannot be read.
    """
    return inputs.mask_decoder(self.spec.get("mask_codec"))

  def read(self, step: int) -> list[Record]:
    """The usable predictions of a step.

    Raises:
      ValueError: there are none, or they are damaged; one line that says so.
    """
    path = self.folder / f"predictions-{step}.jsonl"
    if not path.exists() and step == self.steps[-1]:
      path = self.folder / "predictions.jsonl"
    if not path.exists():
      raise ValueError(f"{path}: is missing")
    found = [x for x in predictions.read(path) if not predictions.is_bad(x)]
    if not found:
      raise ValueError(f"{path}: holds no prediction")
    return found

  def metric(self, records: list[Record]) -> Callable | None:
    """The metric of the config, None if it has none; or what reduces records.

    Raises:
      ValueError: it cannot be made of the config's values, as a function.
    """
    if self.kind is not evals.Generate:
      return self.kind
    found, _ = inputs.make_metric(
      self.spec.get("metric", "auto"),
      records,
      answer_key=self.answer_key,
      mask_codec=self.spec.get("mask_codec"),
      evaluator=self.name,
    )
    return found and metrics.make(found)

  def best_step(self, score: str, metric: Callable | None) -> int | None:
    """The first step with the best value, None if none can be compared."""
    known = getattr(metric, "higher_is_better", {})
    if self.kind is not evals.Generate:
      known = self.kind.higher_is_better
    if score not in known:
      return None
    return first_best(self.scores[score], known[score])

  def picture(self, record: Record) -> Image.Image:
    """The picture of a record, of several the first, as it is on the disk.

    Raises:
      ValueError, OSError: it is not there any more, or cannot be read.
    """
    names = record.get("image")
    name = names[0] if isinstance(names, list) and names else names
    where = predictions.where(record)
    if self._source["kind"] == "text_jsonl":
      raise ValueError("texts alone")
    if isinstance(name, str) and not shards.is_packed(self._source["path"]):
      path = disk.path(self._source["path"])
      root = self._source.get("image_root") or path.parent
      image = pictures.read(name, root=root, where=where)
    else:
      image = self._examples[record["index"]]["image"]
      image = image[0] if isinstance(image, list) else image
    return Image.fromarray(pictures.pixels(image, where=where))

  @property
  def _source(self):
    found = self.spec.get("source", {})
    if not found.get("kind"):
      raise ValueError("config.json names no source of the pictures")
    return found

  @functools.cached_property
  def _examples(self) -> sources.Source:
    return inputs.make_source(self._source)


@dataclasses.dataclass(frozen=True)
class Run:
  """All that is known of a run.

  Attributes:
    name: of its folder; of runs of one name on a page, their paths.
    status: how far it has come.
    checkpoint: step of the last checkpoint, None without any.
    values: of its config, as workdir.values_by_name; {} without a config.
    best: content of best.json, {} without it.
    changes: (step, what changed) of each start with another config.
    training: "loss" -> its values, of all that is measured of steps.
    evaluations: by name.
    problems: a line on each file that is missing or damaged.
  """

  folder: epath.Path
  name: str
  status: status.Status
  checkpoint: int | None
  values: Mapping[str, Any]
  best: Mapping[str, Any]
  changes: list[tuple[int, workdir.Changes]]
  training: Mapping[str, Series]
  evaluations: Mapping[str, Evaluation]
  problems: list[str]


def read(path: epath.PathLike) -> Run:
  """Reads the folder of a run.

  Raises:
    ValueError, OSError: it is not there, or not the folder of a run.
  """
  folder = disk.path(path)
  if not folder.is_dir():
    raise ValueError(f"{path}: no such folder, expected that of a run")
  if not any((folder / name).exists() for name in _FILES):
    raise ValueError(
      f"{path}: holds no run that has begun, expected config.json or "
      "metrics.jsonl"
    )
  problems: list[str] = []

  def attempt(function, otherwise):
    try:
      return function()
    except (OSError, ValueError) as error:
      problems.append(messages.one_line(error))
      return otherwise

  config = attempt(lambda: workdir.read(folder / "config.json"), {})
  if config is None:
    problems.append(f"{folder / 'config.json'}: is missing")
  values = attempt(lambda: workdir.values_by_name(config), {}) if config else {}
  training, evaluations = _series(folder, values, attempt, problems)
  checkpoints = folder / "checkpoints"
  saved = orbax.steps(checkpoints) if checkpoints.is_dir() else []
  evaluated = (step for e in evaluations.values() for step in e.counts)
  logged = (step for series in training.values() for step in series)
  return Run(
    folder,
    name=folder.absolute().name,
    status=status.read(folder, max([0, *saved, *evaluated, *logged])),
    checkpoint=max(saved, default=None),
    values=values,
    best=attempt(lambda: workdir.read(folder / "best.json"), {}) or {},
    changes=attempt(lambda: _changes(folder / "history.jsonl"), []),
    training=training,
    evaluations=evaluations,
    problems=problems,
  )


def _series(folder, values, attempt, problems):
  """What metrics.jsonl holds: series of training, and the Evaluations."""
  path = folder / "metrics.jsonl"
  lines, damaged = [], ""
  if path.exists():
    lines, damaged = attempt(lambda: report.read(path), ([], ""))
  if damaged:
    problems.append(damaged)
  evaluators = {
    key.removesuffix(_COUNT)
    for _, line in lines
    for key in line
    if key.endswith(_COUNT)
  }
  training, scores, counts = {}, {name: {} for name in evaluators}, {}
  for _, line in lines:
    step = int(line["step"])
    for key, value in line.items():
      if key == "step" or type(value) not in (int, float):
        continue
      owners = [name for name in evaluators if key.startswith(f"{name}/")]
      if not owners:
        training.setdefault(key, {})[step] = value
        continue
      evaluator = max(owners, key=len)
      score = key.removeprefix(f"{evaluator}/")
      if key.endswith(_COUNT):
        counts.setdefault(evaluator, {})[step] = value
      elif not bootstrap.is_count(score):
        scores[evaluator].setdefault(score, {})[step] = value
  return training, {
    name: Evaluation(
      name,
      folder=folder / name,
      spec=tree.unflatten(
        tree.under(f"evals/{name.removesuffix(EMA)}/", values)
      ),
      scores=scores[name],
      counts=counts[name],
    )
    for name in sorted(evaluators)
  }


def _changes(path):
  if not path.exists():
    return []
  found = []
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    try:
      value = json.loads(line)
      found.append((int(value["step"]), dict(value["changes"])))
    except (KeyError, RecursionError, TypeError, ValueError):
      raise ValueError(f"{path}:{number}: damaged") from None
  return found
