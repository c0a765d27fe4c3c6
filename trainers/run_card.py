"""What a run tells of the weights that it trained, for a model card."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from paligemma import disk
from paligemma.checkpoints import presets
from paligemma.checkpoints.model_card import About
from trainers import bundle, run_answers, run_files, run_page, workdir
from trainers.best import EMA
from trainers.run_html import number

_MOST_BASES = 8  # runs that began with one another


def of(
  path: epath.PathLike | Mapping[str, epath.PathLike],
  adapter: epath.PathLike | None = None,
) -> About:
  """Returns what is known of weights: what their run says, or their name.

  Args:
    path: Of a run, a step or weights of it, or any other checkpoint; {"img":
      path, "llm": path} for two.
    adapter: What is merged into them; where it is of a run, that run counts.

  Raises:
    ValueError: Files of the run are damaged; names one.
  """
  if adapter is not None and _run_of(adapter) is not None:
    return of(adapter)
  if adapter is not None:
    about = of(path)
    merged = _code(_shown(adapter), workdir.of_file(adapter))
    facts = (*about.facts, ("adapter, merged", merged))
    return dataclasses.replace(about, facts=facts)
  if isinstance(path, Mapping):
    return About(bases=tuple(map(_shown, path.values())))
  folder = _run_of(path)
  if folder is None:
    return About(bases=(_shown(path),))
  run = run_files.read(folder)
  step = _step(epath.Path(path), run)
  starts = (workdir.read(folder / bundle.NAME) or {}).get("starts") or [{}]
  return About(
    bases=tuple(_bases(folder)),
    datasets=tuple(dict.fromkeys(_datasets(run.values))),
    facts=tuple(_facts(run, starts[-1], step)),
    scores=tuple(_scores(run, step)),
    config=_published(workdir.read(folder / "config.json") or {}),
  )


def is_chat(path: epath.PathLike | Mapping[str, epath.PathLike]) -> bool:
  """Whether weights were tuned to answer in turns, as far as it is known.

  They were if a base is an instruction-tuned preset, or the run's examples are
  conversations.
  """
  if isinstance(path, Mapping):
    return False
  folder = _run_of(path)
  bases = [_shown(path)] if folder is None else _bases(folder)
  names = [presets.named_by(base) or "" for base in bases]
  if any("instruct" in name for name in names):
    return True
  if folder is None:
    return False
  values = workdir.values_by_name(workdir.read(folder / "config.json") or {})
  return any(map(_holds_conversations, _sources(values).values()))


def _holds_conversations(spec):
  try:
    with disk.path(spec["path"]).open() as file:
      return "messages" in json.loads(file.readline())
  except (KeyError, OSError, TypeError, ValueError):
    return False  # of another kind, or not there any more


def _run_of(path):
  """The folder of the run that weights are of, None if they are of none."""
  path = epath.Path(path)
  for folder in (path, *list(path.parents)[:2]):
    if (folder / "config.json").exists() and (folder / bundle.NAME).exists():
      return folder
  return None


def _bases(folder):
  """What a run began with, or the run before it began with."""
  config = workdir.read(folder / "config.json") or {}
  for _ in range(_MOST_BASES):
    init = config.get("init")
    if isinstance(init, Mapping):
      return [_shown(x) for x in init.values()]
    if not isinstance(init, str):
      return []
    before = _run_of(init)
    if before is None:
      return [_shown(init)]
    config = workdir.read(before / "config.json") or {}
  return []


def _step(path, run):
  """The step that weights are of, None for the last."""
  if path.name.startswith("best."):
    return run.best.get("step")
  return int(path.name) if path.name.isdecimal() else None


def _sources(values):
  """{name: {"path": ..., "kind": ...}} of training."""
  found: dict[str, dict[str, Any]] = {}
  for key, value in values.items():
    if key.startswith("train/sources/"):
      name, _, field = key.removeprefix("train/sources/").partition("/")
      found.setdefault(name, {})[field] = value
  return found


def _datasets(values):
  for spec in _sources(values).values():
    path = pathlib.PurePath(str(spec.get("path") or spec.get("name") or ""))
    if path.name:
      yield path.parent.name or path.stem


def _facts(run, started, step):
  """(what, value) of a training."""
  values, examples = run.values, started.get("examples", {})
  files = started.get("files", {})
  init = values.get("init")
  if init is None:  # of two towers a value each
    init = " and ".join(
      str(x) for key, x in values.items() if key.startswith("init/")
    )
  hash_ = files.get("init")
  yield "began with", _code(_shown(init or "random weights"), hash_)
  for name, spec in _sources(values).items():
    path = spec.get("path") or spec.get("name")
    count = examples.get(f"train.{name}")
    told = _code(_shown(path), files.get(f"train/sources/{name}/path"))
    yield "data", told + (f", {count:,} examples" if count else "")
  step = run.status.step if step is None else step
  yield "steps", f"{step:,} of {values.get('batch_size')} examples"
  rank = values.get("model/lora/rank")
  trained = ", ".join(map(_code, values.get("trainable") or ()))
  yield "trained", f"adapters of rank {rank}" if rank else trained
  yield (
    "optimizer",
    f"{values.get('optimizer')}, learning rate {values.get('learning_rate')}",
  )
  yield "images", f"{values.get('res')} pixels"
  if "id" not in started:
    return
  packages, hardware = started["packages"], started["hardware"]
  software = f"paligemma {packages['paligemma']}"
  if git := started.get("git"):
    changed = "" if git["is_clean"] else " with changes"
    software += f" (commit {git['commit'][:12]}{changed})"
  yield "software", f"{software}, jax {packages['jax']}"
  yield "hardware", f"{hardware['devices']} x {hardware['device']}"
  yield "bundle", f"`{started['id']}`, of {started['started'][:10]}"


def _scores(run, step):
  """(score, value, interval, examples) of the evaluations at a step."""
  # What is exported of a run with averages of its weights is these.
  averages = [x for x in run.evaluations.values() if x.name.endswith(EMA)]
  for evaluation in averages or run.evaluations.values():
    at = evaluation.steps[-1] if step is None else step
    estimates = {}
    if evaluation.predicts and at in evaluation.counts:
      found = run_answers.score(evaluation, at, resamples=run_page.RESAMPLES)
      estimates = found.estimates
    for score, series in evaluation.scores.items():
      if at not in series:
        continue
      found = estimates.get(score)
      has_interval = found is not None and found.low is not None
      interval = ""
      if has_interval:
        interval = f"{number(found.low)} to {number(found.high)}"
      name = f"{evaluation.name.removesuffix(EMA)}/{score}"
      count = f"{evaluation.counts.get(at, 0):.0f}"
      yield name, number(series[at]), interval, count


def _published(value):
  """A config without nulls, and without the folders of the machine."""
  if isinstance(value, Mapping):
    found = {key: _published(x) for key, x in value.items() if x is not None}
    return {key: x for key, x in found.items() if x not in ({}, [])}
  if isinstance(value, list):
    return [_published(x) for x in value]
  return _shown(value) if isinstance(value, str) else value


def _shown(path):
  """A path, of an absolute one the last two names."""
  path = str(path)
  if not os.path.isabs(path):
    return path
  return "/".join(pathlib.PurePath(path).parts[-2:])


def _code(text, fingerprint=None):
  told = f"`{text}`"
  if isinstance(fingerprint, str):
    kind, _, digits = fingerprint.partition(":")
    told += f" ({kind} {digits[:12]}…)"
  return told
