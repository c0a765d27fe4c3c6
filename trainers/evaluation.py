"""Evaluation without training: evaluators of a config, and a checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from configs import common
from paligemma import evals, io, registry, tree
from paligemma.checkpoints import formats
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.training import fingerprint
from paligemma.data.tokenizer import Tokenizer
from paligemma.training import sharding
from trainers import inputs, start, state, tasks, workdir

# Fields of an evaluator that change no prediction, or are described apart.
_FREE = {"name", "source", "preprocess", "tokenizer"}
_FREE |= {"metric", "metric_note", "num_workers", "on_bad"}


def make_evaluators(
  config: ConfigDict,
  tok: Tokenizer | None,
  *,
  split: str | None = None,
  limit: int | None = None,
  batch_size: int | None = None,
) -> list[inputs.Evaluator]:
  """The evaluators of a config, at least one, without its training data.

  Args:
    config: of a run.
    tok: None for evaluators that only score.
    split: name of the only one to make.
    limit, batch_size: instead of the config's.

  Raises:
    ValueError: no evaluator, or none of that name; as inputs.make_evaluators.
  """
  common.complete(config)
  if split is not None:
    registry.lookup(config.evals, split, "split")
  config = config.copy_and_resolve_references()
  no_sizes = dict(every_epochs=None, every_percent=None, every_examples=None)
  chosen = {
    name: spec | no_sizes
    for name, spec in config.evals.to_dict().items()
    if split in (None, name)
  }
  if not chosen:
    raise ValueError("config.evals is empty, expected an evaluator to run")
  with config.unlocked():
    config.evals = chosen
  changes = {"limit": limit, "batch_size": batch_size}
  changes = {k: v for k, v in changes.items() if v is not None}
  return [
    dataclasses.replace(evaluator, **changes)
    for evaluator, _ in inputs.make_evaluators(config, tok)
  ]


def one_that_generates(
  evaluators: Sequence[inputs.Evaluator],
) -> evals.Generate:
  """The only evaluator that makes predictions.

  Raises:
    ValueError: there is none, or there are several; names them.
  """
  found = [e for e in evaluators if isinstance(e, evals.Generate)]
  if len(found) != 1:
    names = ", ".join(e.name for e in found) or "none"
    raise ValueError(
      "one file holds the predictions of one evaluator, but those that generate"
      f" are: {names}; name one with --split"
    )
  return found[0]


def load(
  config: ConfigDict, path: str
) -> tuple[jax.sharding.Mesh, io.Model, dict[str, Any]]:
  """Mesh, model and the parameters of a checkpoint, as a run holds them.

  The path is the workdir of a run, or what else formats.open takes.

  Raises:
    ValueError: the checkpoint is unreadable or does not fit the model.
  """
  common.complete(config)
  mesh = sharding.make_mesh(**config.mesh)
  model = tasks.of(config).make_model(config)
  trainable, frozen = state.abstract_params(model, config, mesh)
  leaves = {
    name: leaf
    for name, leaf in {**trainable, **frozen}.items()
    if not state.loss_heads([name])
  }
  params = state.load_params(path, leaves, leaves)
  for note in start.preprocessing_notes(config, formats.open(path)):
    logging.warning("%s: %s", path, note)
  if leaves.keys() - params.keys():
    raise ValueError(
      f"{path}: holds no adapters, but config.model.lora says that the model "
      "has some; leave tune=lora or tune=qlora_... out"
    )
  return mesh, model, tree.unflatten(params)


def kept(workdir: str) -> dict[str, epath.Path]:
  """The checkpoints of a run by step, and its best weights if it kept any.

  Raises:
    ValueError: there are none.
  """
  run = epath.Path(workdir)
  folder, bests = run / "checkpoints", ("best.npz", "best.safetensors")
  steps = orbax.steps(folder) if folder.is_dir() else []
  found = {str(step): folder / str(step) for step in steps}
  found |= {name: run / name for name in bests if (run / name).exists()}
  if not found:
    raise ValueError(
      f"{run}: holds no checkpoint, expected the workdir of a run"
    )
  return found


def settings(
  evaluator: evals.Generate,
  checkpoint: str,
  tokenizer: str,
  source: dict[str, Any],
  **more: Any,
) -> dict[str, Any]:
  """All that the predictions of an evaluator depend on, as JSON values.

  `source` is what the evaluator's source was made of, `more` all other values.
  """
  made = {
    "checkpoint": fingerprint.of(formats.open(checkpoint).path),
    "tokenizer": fingerprint.of(tokenizer),
    "data": {**source, "examples": len(evaluator.source)},
    "evaluator": _fields(evaluator),
    "preprocess": _fields(evaluator.preprocess),
    **more,
  }
  if "path" in source:
    made["data"]["contents"] = fingerprint.of(source["path"])
  return workdir.as_json(ConfigDict(made))


def config_settings(
  evaluator: evals.Generate, checkpoint: str, config: ConfigDict
) -> dict[str, Any]:
  """The `settings` of one of the evaluators of a config."""
  source = config.evals[evaluator.name].source.to_dict()
  del source["ops"]  # those of the preprocess begin with them
  model = {k: v for k, v in config.model.to_dict().items() if v is not None}
  return settings(
    evaluator,
    checkpoint,
    config.tokenizer,
    {key: value for key, value in source.items() if value not in (None, False)},
    trainable=config.trainable,
    frozen_dtype=config.frozen_dtype,
    seed=config.seed,
    model=model,
  )


def _fields(value):
  names = {field.name for field in dataclasses.fields(value)} - _FREE
  found = {name: getattr(value, name) for name in sorted(names)}
  if found.get("finish", True) is None:  # as files say that know no such field
    del found["finish"]
  return found
