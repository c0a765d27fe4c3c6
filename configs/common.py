"""Every key of a config: its name, type, unit, meaning and default.

    config = common.defaults()
    config.train.sources.mine = dict(kind="jsonl", path="train.jsonl")
    config.learning_rate = 0.01

A config sets what it changes; `complete` adds the rest, and is what trainers
and scripts read a config through, so that no other code holds a default.
`python -m scripts.list_config_keys` writes docs/config_keys.md from KEYS.
"""

import dataclasses
import functools
import inspect
import numbers
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from paligemma import messages, parameters, registry
from paligemma.data import sources
from paligemma.lora.config import Lora

REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of a config.

  Attributes:
    name: with dots; * stands for a name that the user gives, at the end for
      whatever else what reads the group takes.
    type: of the value; float takes an int, tuple a list, object anything.
    default: REQUIRED where there is none, None for what the meaning says.
    meaning: what it does.
    unit: of a number.
    optional: whether None may stand for the value; it may where it is the
      default.
    kinds: values of `kind` beside it for which it is there; () for all.
    instead: names beside it, of which one at most is set; the default of one
      counts if none is.
  """

  name: str
  type: type
  default: Any
  meaning: str
  unit: str = ""
  optional: bool = False
  kinds: tuple[str, ...] = ()
  instead: tuple[str, ...] = ()

  def accepts(self, value: Any) -> bool:
    """Whether a value is of the type of this key."""
    if value is None:
      return self.optional or self.default is None or bool(self.instead)
    if self.type in (int, float) and isinstance(value, bool):
      return False
    return isinstance(value, _ACCEPTED.get(self.type, self.type))


_ACCEPTED = {
  int: numbers.Integral,
  float: numbers.Real,
  str: str | os.PathLike,
  tuple: tuple | list,
  dict: Mapping | ConfigDict,
}


def _duration(
  prefix: str, default: str | None, value: float | None, meaning: str
) -> list[Key]:
  """The keys of a duration, of which a config sets one."""
  last = prefix.rpartition(".")[2]
  units = {
    "steps": (int, "steps"),
    "examples": (int, "examples"),
    "epochs": (float, "epochs"),
    "percent": (float, "fraction of the training, in [0, 1]"),
  }
  if prefix == "total":
    del units["percent"]
  all_names = [f"{last}_{unit}" for unit in units]
  return [
    Key(
      f"{prefix}_{unit}",
      kind,
      value if unit == default else None,
      meaning if unit == (default or "steps") else "the same, in another unit",
      text,
      instead=tuple(x for x in all_names if x != f"{last}_{unit}"),
    )
    for unit, (kind, text) in units.items()
  ]


def _source(prefix: str) -> list[Key]:
  """The keys of a source of examples, see paligemma/data/sources.py."""
  lines, videos, tfds = ("jsonl",), ("video_jsonl",), ("tfds",)

  def key(name, kind, meaning, kinds=(), unit=""):
    reader = sources.SOURCES[kinds[0]] if kinds else sources.make
    default = inspect.signature(reader).parameters[name].default
    if default is inspect.Parameter.empty:
      default = REQUIRED
    optional = name == "num_frames"
    full = f"{prefix}.{name}"
    return Key(full, kind, default, meaning, unit, optional, kinds)

  return [
    Key(
      f"{prefix}.kind", str, REQUIRED, f"one of {', '.join(sources.SOURCES)}"
    ),
    Key(
      f"{prefix}.ops",
      tuple,
      (),
      "functions of an example and an rng, run on the examples of this source "
      "before all others",
    ),
    key("slice", str, 'part of the examples, such as "[:90%]"; None: all'),
    key("cache", bool, "keep the encoded examples in memory"),
    key("path", str, "path of the file", lines + videos),
    key(
      "image_root",
      str,
      "folder of the images; None: that of the file",
      lines,
    ),
    key(
      "video_root",
      str,
      "folder of the videos; None: that of the file",
      videos,
    ),
    key(
      "num_frames",
      int,
      "frames of each video; None: an op video.Frames takes them",
      videos,
    ),
    key("stride", int, "from one frame to the next", videos, "frames"),
    key(
      "short", str, "what becomes of a short video: see video.Frames", videos
    ),
    key("name", str, "name of the TFDS builder", tfds),
    key("split", str, 'split of the data set, such as "train[:90%]"', tfds),
    key(
      "data_dir",
      str,
      "folder of the prepared data sets; None: that of TFDS",
      tfds,
    ),
    key("image_key", str, "field that holds the image", tfds),
  ]


_PERPLEXITY, _GENERATE = ("perplexity",), ("generate",)


def _evaluator(name: str, *rest: Any, **more: Any) -> Key:
  more = {"kinds": _PERPLEXITY + _GENERATE, **more}
  return Key(f"evals.*.{name}", *rest, **more)


KEYS = (
  Key(
    "seed",
    int,
    0,
    "of all that is random: order of the data, ops, dropout, new weights",
  ),
  # Model
  Key("model.variant", str, "paligemma_3b", "name in paligemma/variants.py"),
  Key("model.vocab_size", int, None, "None: that of the variant", "tokens"),
  Key(
    "model.dtype",
    str,
    "bfloat16",
    "dtype of products and activations: float32, bfloat16, or float16 on a T4 "
    "and older GPUs",
  ),
  *(
    key
    for tower, what in (("img", "image tower"), ("llm", "decoder"))
    for key in (
      Key(
        f"model.{tower}.dropout", float, 0.0, f"rate of dropout in the {what}"
      ),
      Key(
        f"model.{tower}.remat_policy",
        str,
        "block_inputs",
        f"what of the {what} is kept for the backward pass, see "
        "paligemma/models/stack.py",
      ),
      Key(
        f"model.{tower}.*",
        object,
        None,
        f"any other field of the {what}; default: as in the variant",
      ),
    )
  ),
  Key(
    "model.lora",
    dict,
    None,
    "low-rank adapters beside frozen matrices, {} for the defaults below; "
    "None: no adapters",
  ),
  *(
    Key(f"model.lora.{field.name}", kind, field.default, meaning)
    for field, kind, meaning in zip(
      dataclasses.fields(Lora),
      (int, float, bool, float, tuple),
      (
        "inner dimension of the two matrices",
        "what their product is scaled by: alpha / rank",
        "scale by alpha / sqrt(rank) instead",
        "rate of dropout on their input",
        "regexes of what has adapters, see lora.config.TARGETS",
      ),
      strict=True,
    )
  ),
  Key(
    "init",
    str,
    "",
    "initial weights: a checkpoint of any format or the name of a preset; "
    "empty: random",
  ),
  Key("tokenizer", str, "paligemma_tokenizer.model", "SentencePiece file"),
  Key("res", int, 224, "height and width of the images", "pixels"),
  Key("frames", int, 0, "images of an example, as of a video; 0: one image"),
  Key("text_len", int, 128, "length of prompt and answer together", "tokens"),
  # What trains
  Key(
    "trainable",
    tuple,
    (parameters.ATTENTION,),
    "regexes over the whole name of a parameter: what trains, in float32; see "
    "configs/tuning.py",
  ),
  Key(
    "frozen_dtype",
    str,
    "bfloat16",
    "how what does not train is held: float32, bfloat16, float16, int8, int4 "
    "or nf4",
  ),
  # Data
  Key(
    "train.sources.*.weight",
    float,
    1.0,
    "share of this source in a mixture; None: its number of examples",
    optional=True,
  ),
  *_source("train.sources.*"),
  Key(
    "train.ops",
    tuple,
    (),
    "functions of an example and an rng, in training and evaluation, such as "
    'text_ops.Format("answer en {question}")',
  ),
  Key(
    "train.augment",
    tuple,
    (),
    "likewise, in training alone: after the ops of the source and before "
    "train.ops",
  ),
  Key(
    "train.resize",
    str,
    "bilinear",
    "how images get their size, see image.PREPROCESSING",
  ),
  Key(
    "train.too_long",
    str,
    "error",
    'what becomes of a text beyond text_len: "error" or "truncate"',
  ),
  Key(
    "train.texts",
    str,
    "checked",
    '"checked", or "plain": control tokens in a text are letters',
  ),
  Key(
    "train.on_bad",
    str,
    "stop",
    'what becomes of a bad example: "stop", or "skip" and count it',
  ),
  Key("train.num_workers", int, 0, "processes that read data; 0: threads"),
  Key("batch_size", int, 32, "in a step, on all devices", "examples"),
  *_duration("total", "epochs", 15.0, "length of the training"),
  # Optimizer, see paligemma/training/optimizers.py
  Key("optimizer", str, "sgd", "one of adafactor, adam, adamw, lion, sgd"),
  Key("optimizer_args.*", object, None, "its arguments, such as momentum=0.9"),
  Key("learning_rate", float, 0.03, "at the peak of its schedule"),
  Key(
    "learning_rate_mults",
    tuple,
    (),
    '(regex, factor) pairs on top, such as ("img/.*", 0.1)',
  ),
  Key(
    "schedule",
    tuple,
    ((".*", dict(decay="cosine", warmup_percent=0.1)),),
    "(regex, arguments of make_schedule) pairs; durations as here",
  ),
  Key(
    "weight_decay",
    float,
    0.0,
    "per step; it follows the schedule, but not the learning rate",
  ),
  Key(
    "weight_decay_mults",
    tuple,
    None,
    "(regex, factor) pairs: what decays; None: every matrix",
  ),
  Key("clip_norm", float, None, "largest norm of the gradient; None: any"),
  Key(
    "label_smoothing",
    float,
    0.0,
    "probability that is spread over all other tokens, in [0, 1)",
  ),
  Key("accumulate_steps", int, 1, "microbatches that a batch is split into"),
  Key(
    "ema_decay",
    float,
    None,
    "decay of the moving average of what trains, such as 0.999; None: none is "
    "kept",
  ),
  # Devices
  Key(
    "mesh.data", int, -1, "parts of a batch; -1: all that are left", "devices"
  ),
  Key("mesh.model", int, 1, "parts of a layer", "devices"),
  Key(
    "sharding",
    tuple,
    ((".*", "fsdp"),),
    '(regex, "fsdp" or "replicate") pairs: how parameters lie on the devices',
  ),
  # Log, checkpoints, evaluation
  *_duration("log", "steps", 10, "between two lines of the log"),
  *_duration("checkpoint", "percent", 0.25, "between two checkpoints"),
  Key(
    "keep_checkpoints",
    int,
    1,
    "how many of the last ones stay; None: all",
    optional=True,
  ),
  Key("evals.*.kind", str, REQUIRED, "perplexity or generate"),
  *_duration(
    "evals.*.every",
    None,
    None,
    "between two runs; before the first and after the last step it runs "
    "anyway, with 0 after the last alone",
  ),
  *_source("evals.*.source"),
  _evaluator("batch_size", int, None, "None: that of the training", "examples"),
  _evaluator("limit", int, None, "the first ones alone; None: all", "examples"),
  _evaluator("num_workers", int, 0, "as of train"),
  *(
    _evaluator(name, kind, None, f"None: {of}.{name}")
    for name, kind, of in (
      ("ops", tuple, "train"),
      ("resize", str, "train"),
      ("too_long", str, "train"),
      ("texts", str, "train"),
      ("on_bad", str, "train"),
      ("text_len", int, "config"),
      ("frames", int, "config"),
    )
  ),
  _evaluator(
    "max_decode_len",
    int,
    None,
    "longest answer; None: config.text_len",
    "tokens",
    kinds=_GENERATE,
  ),
  _evaluator(
    "sampler",
    object,
    "greedy",
    "see samplers.make; or a function of logits f32[B, V] and an rng that "
    "gives the next tokens i32[B]",
    kinds=_GENERATE,
  ),
  _evaluator(
    "metric",
    object,
    "exact_match",
    "see metrics.METRICS; or a function of a prediction and its example that "
    "gives {name: value}; None: predictions are only written",
    optional=True,
    kinds=_GENERATE,
  ),
  _evaluator(
    "answer_key",
    str,
    "suffix",
    "field with the answer or answers, after the ops",
    kinds=_GENERATE,
  ),
  _evaluator(
    "grammar",
    object,
    None,
    "the answers that are allowed, see grammar.make; None: all",
    kinds=_GENERATE,
  ),
  _evaluator(
    "mask_codec",
    str,
    None,
    "vae-oid.npz, with which the metric segmentation reads masks",
    kinds=_GENERATE,
  ),
)

_GROUP = "."  # what a group says of itself


def _tree() -> dict[str, Any]:
  """KEYS by the parts of their names: {"train": {"ops": Key}}."""
  root = {}
  for key in KEYS:
    *groups, last = key.name.split(".")
    node = root
    for group in groups:
      inner = node.setdefault(group, {})
      if isinstance(inner, Key):
        inner = node[group] = {_GROUP: inner}
      node = inner
    node[last] = key
  return root


_TREE = _tree()
_INSTEAD = {key.name.rpartition(".")[2]: key.instead for key in KEYS}


def defaults() -> ConfigDict:
  """Returns a config of the defaults, without its durations.

  Those are added by `complete`, unless a config sets them in another unit.
  """
  config = complete(ConfigDict())
  for key in KEYS:
    if key.instead and "." not in key.name:
      del config[key.name]
  return config


def complete(config: ConfigDict) -> ConfigDict:
  """Adds the keys that a config does not set, with their defaults, in place.

  Args:
    config: what a get_config returned.

  Returns:
    The same config.

  Raises:
    ValueError: keys that are unknown or missing, values that are not of their
      type, and ops of train.ops that are for training alone; all of them, with
      the nearest names. Nothing is added then.
  """
  if problems := list(_problems(config, _TREE, "config")):
    raise ValueError("; ".join(problems))
  shared = config.get("train", {}).get("ops", ())
  if found := [op for op in shared if getattr(op, "augments", False)]:
    names = ", ".join(type(op).__name__ for op in found)
    raise ValueError(
      f"config.train.ops: {names} would change what is evaluated too; move it "
      "to config.train.augment"
    )
  locked = config.is_locked
  config.unlock()
  fill(config)
  if locked:
    config.lock()
  return config


def unset_others(config: ConfigDict, given: Sequence[str]) -> None:
  """Sets to None what other units say of the durations that are given.

  Args:
    config: a complete one, changed in place.
    given: names with dots, such as "total_steps" or "evals.val.every_steps".
  """
  for name in given:
    group, dot, last = name.rpartition(".")
    holder = (
      functools.reduce(operator.getitem, group.split("."), config)
      if dot
      else config
    )
    for other in _INSTEAD.get(last, ()):
      if f"{group}{dot}{other}" not in given:
        holder[other] = None


def names(config: Mapping[str, Any] | ConfigDict) -> list[str]:
  """Returns the names of all values of a config, with dots."""
  found = []
  for name, value in config.items():
    is_group = isinstance(value, Mapping | ConfigDict)
    inner = names(value) if is_group else []
    found += [name, *(f"{name}.{x}" for x in inner)]
  return found


def _known(schema: dict[str, Any], kind: Any) -> tuple[dict[str, Any], bool]:
  """What may stand in a group of that kind, and whether other names may too."""
  keys = [inner for inner in schema.values() if isinstance(inner, Key)]
  kinds = {kind for key in keys for kind in key.kinds}
  known = {
    name: inner
    for name, inner in schema.items()
    if name not in ("*", _GROUP)
    and not (isinstance(inner, Key) and inner.kinds and kind not in inner.kinds)
  }
  # The table says nothing of a kind that somebody has added.
  is_foreign = bool(kinds) and kind not in kinds
  return known, is_foreign or isinstance(schema.get("*"), Key)


def _problems(node: Any, schema: Any, name: str) -> Iterator[str]:
  """Lines on what is wrong with a value, or with what a group holds."""
  if isinstance(schema, Key):
    if not schema.accepts(node):
      shown = messages.shown(repr(node))
      yield f"{name} is {shown}, expected {schema.type.__name__}"
    return
  if node is None and _GROUP in schema:
    return
  if not isinstance(node, Mapping | ConfigDict):
    shown = messages.shown(repr(node))
    yield f"{name} is {shown}, expected a dict of its keys"
    return
  known, is_open = _known(schema, node.get("kind"))
  for key, inner in known.items():
    if key in node:
      continue
    if isinstance(inner, dict):
      yield from _problems({}, inner, f"{name}.{key}")
    elif inner.default is REQUIRED:
      near = registry.did_you_mean(key, [n for n in node if n not in known])
      yield f"{name}.{key} is missing: {inner.meaning}.{near}"
  for key, value in node.items():
    if inner := known.get(key, schema.get("*")):
      yield from _problems(value, inner, f"{name}.{key}")
    elif not is_open:
      yield f"{name}.{messages.shown(str(key))} is unknown.{_near(key, known)}"


def _near(name: str, known: Mapping[str, Any]) -> str:
  """The nearest name here, or the same one elsewhere."""
  elsewhere = [key.name for key in KEYS if key.name.endswith(f".{name}")]
  if not (near := registry.did_you_mean(name, known)) and elsewhere:
    near = f' Did you mean "{elsewhere[0]}"?'
  return near


def fill(node: ConfigDict, schema: dict[str, Any] = _TREE) -> None:
  """Adds what a config, or a group of it, lacks; checks nothing.

  Args:
    node: changed in place.
    schema: of the group, as in the tree of KEYS.
  """
  known, _ = _known(schema, node.get("kind"))
  for key, inner in known.items():
    if isinstance(inner, dict):
      if key not in node and _GROUP not in inner:
        node[key] = ConfigDict()
      if isinstance(node.get(key), ConfigDict):
        fill(node[key], inner)
    elif key not in node:
      is_set_so = any(node.get(x) is not None for x in inner.instead)
      value = None if is_set_so else inner.default
      if value is None or inner.type is object:
        # Of this type when it is set later.
        value = config_dict.FieldReference(value, field_type=inner.type)
      node[key] = value
  for key in node:
    is_group = isinstance(node.get(key), ConfigDict)
    if is_group and key not in known and isinstance(schema.get("*"), dict):
      fill(node[key], schema["*"])
