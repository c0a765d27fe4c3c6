"""The table of config keys is complete, and true of what reads them."""

import dataclasses
import inspect
import pathlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from paligemma.data import image_ops, sources, text_ops
from paligemma.decoding import samplers
from paligemma.lora.config import Lora
from trainers import schedule, tasks

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [key.name for key in common.KEYS]
EVALUATORS = {
  kind: evaluator
  for task in tasks.TASKS.values()
  for kind, evaluator in task.evaluators.items()
}
JSONL = {"kind": "jsonl", "path": "a.jsonl"}


def test_every_key_says_what_it_is():
  for key in common.KEYS:
    assert key.meaning, key
    assert key.default is common.REQUIRED or key.accepts(key.default), key
  kinds = [(k.name, kind) for k in common.KEYS for kind in k.kinds or ("",)]
  assert len(set(kinds)) == len(kinds)


def test_what_the_trainer_reads_are_the_keys():
  text = "\n".join(x.read_text() for x in (ROOT / "trainers").rglob("*.py"))
  read = set(re.findall(r"(?<!jax\.)\bconfig\.([a-z]\w*)", text))
  of_data = re.findall(r"\b(?:data|config\.train)\.(\w+)", text)
  read |= {f"train.{name}" for name in of_data}
  durations = set(re.findall(r'steps\(\S*config, "(\w+)"', text))
  keys = {name for name in NAMES if "*" not in name and "model." not in name}
  in_units = {f"{x}_{unit}" for x in durations for unit in schedule.UNITS}
  keys -= in_units
  keys = {re.sub(r"(mesh|optimizer_args)\..*", r"\1", name) for name in keys}
  assert keys <= read, "keys that nothing reads"
  groups = {name.split(".")[0] for name in NAMES if "." in name}
  methods = set(dir(ConfigDict)) | {"json", "name"}
  found = {name for name in read if "." not in name}
  assert found - methods - groups <= keys | in_units, "values that are no keys"
  assert durations == {"total", "log", "checkpoint"}


def test_sources_take_what_the_table_says():
  assert sources.SOURCES.keys() == {
    kind
    for key in common.KEYS
    if key.name.startswith("train.sources.")
    for kind in key.kinds
  }
  for kind, reader in sources.SOURCES.items():
    known = {
      key.name.split(".")[-1]
      for key in common.KEYS
      if key.name.startswith("train.sources.") and kind in key.kinds
    }
    assert known == {*inspect.signature(reader).parameters}, kind


@pytest.mark.parametrize("kind", EVALUATORS)
def test_evaluators_have_the_defaults_of_the_table(kind):
  spec = {"kind": kind, "source": JSONL}
  spec |= {"train": JSONL} if kind == "few_shot" else {}
  config = common.complete(ConfigDict({"evals": {"a": spec}}))
  for field in dataclasses.fields(EVALUATORS[kind]):
    # Those that only the trainer, or a caller, sets.
    if field.name in ("metric", "metric_note", "on_bad", "finish"):
      continue
    if field.default is not dataclasses.MISSING:
      assert config.evals.a[field.name] == field.default, field.name
  of_table = set(config.evals.a) - {"kind", "source", "mask_codec"}
  of_table = {name for name in of_table if not name.startswith("every_")}
  of_preprocess = {"ops", "resize", "too_long", "texts", "text_len", "frames"}
  assert of_table - of_preprocess == {
    field.name for field in dataclasses.fields(EVALUATORS[kind])
  } - {"name", "source", "preprocess", "tokenizer", "metric_note", "finish"}


def test_a_config_says_only_what_it_changes():
  config = ConfigDict(
    {
      "learning_rate": 0.5,
      "total_steps": 7,
      "model": {"llm": {"width": 16}, "lora": {"rank": 4}},
      "train": {"sources": {"a": JSONL, "b": {**JSONL, "weight": None}}},
    }
  )
  assert common.complete(config) is config
  assert (config.learning_rate, config.res) == (0.5, 224)
  assert (config.total_steps, config.total_epochs) == (7, None)
  assert config.model.llm.to_dict() == {
    "width": 16,
    "dropout": 0.0,
    "remat_policy": "auto",
  }
  assert Lora(**config.model.lora) == Lora(rank=4)
  assert (config.train.sources.a.weight, config.train.sources.b.weight) == (
    1.0,
    None,
  )
  again = config.to_dict()
  assert common.complete(config).to_dict() == again
  assert "lora" not in common.defaults().model


def test_few_shot_needs_something_to_learn_from():
  few = {"kind": "few_shot", "source": JSONL}
  config = common.complete(
    ConfigDict({"evals": {"a": {**few, "train": JSONL}}})
  )
  assert config.evals.a.train.cache is False
  for given, problem in (
    ({}, "config.evals.a.train.kind is missing: one of jsonl"),
    ({"train": None}, "config.evals.a.train is None, expected a dict of its"),
    (
      {"train": {"kind": "jsonl"}},
      "config.evals.a.train.path is missing: path",
    ),
  ):
    with pytest.raises(ValueError, match=f"^{problem}"):
      common.complete(ConfigDict({"evals": {"a": {**few, **given}}}))
  other = {"kind": "retrieval", "source": JSONL, "train": JSONL}
  with pytest.raises(ValueError, match=r"^config\.evals\.a\.train is unknown"):
    common.complete(ConfigDict({"evals": {"a": other}}))


def test_a_locked_config_stays_locked():
  config = ConfigDict().lock()
  assert common.complete(config).is_locked
  config.clip_norm = 1.0  # None at first
  with pytest.raises(TypeError):
    config.clip_norm = "a"


def test_all_mistakes_are_named_at_once():
  config = ConfigDict(
    {
      "learning_rat": 1.0,
      "on_bad": "skip",
      "res": "224",
      "mesh": 3,
      "train": {"sources": {"a": {"kind": "jsonl", "pth": "a.jsonl"}}},
      "evals": {
        "val": {"knd": "generate", "source": JSONL},
        "test": {
          "kind": "perplexity",
          "source": {**JSONL, "stride": 3},
          "sampler": "greedy",
          "limit": True,
        },
      },
      "model": {"lora": {"rnk": 3}},
    }
  )
  before = config.to_dict()
  with pytest.raises(ValueError) as caught:
    common.complete(config)
  assert set(str(caught.value).split("; ")) == {
    'config.learning_rat is unknown. Did you mean "learning_rate"?',
    'config.on_bad is unknown. Did you mean "train.on_bad"?',
    "config.res is '224', expected int",
    "config.mesh is 3, expected a dict of its keys",
    "config.train.sources.a.path is missing: path of the file, of a "
    "jsonl also that of a folder of scripts.pack. Did you mean "
    '"pth"?',
    'config.train.sources.a.pth is unknown. Did you mean "path"?',
    "config.evals.val.kind is missing: one of perplexity, generate, zero_shot, "
    'retrieval, few_shot. Did you mean "knd"?',
    "config.evals.test.source.stride is unknown. Did you mean "
    '"train.sources.*.stride"?',
    'config.evals.test.sampler is unknown. Did you mean "evals.*.sampler"?',
    "config.evals.test.limit is True, expected int",
    'config.model.lora.rnk is unknown. Did you mean "rank"?',
  }
  assert config.to_dict() == before


def test_what_augments_does_not_belong_to_the_shared_ops():
  ops = (text_ops.Lower("prefix"), image_ops.Flip(), image_ops.JpegNoise())
  config = ConfigDict({"train": {"ops": ops}})
  with pytest.raises(
    ValueError, match=r"config\.train.ops: Flip, JpegNoise would"
  ):
    common.complete(config)
  common.complete(ConfigDict({"train": {"augment": ops}}))


def test_functions_and_instances_may_stand_for_names():
  config = common.complete(
    ConfigDict({"evals": {"a": {"kind": "generate", "source": JSONL}}})
  )
  config.evals.a.metric = len
  config.evals.a.sampler = samplers.Nucleus(0.5)
  assert common.complete(config).evals.a.metric is len
  config.evals.a.metric = None
  common.complete(config)


def test_numpy_numbers_are_numbers():
  config = ConfigDict({"learning_rate": np.float32(0.5), "res": np.int64(56)})
  common.complete(config)
  with pytest.raises(ValueError, match=r"config\.res is 0\.5, expected int"):
    common.complete(ConfigDict({"res": 0.5}))
