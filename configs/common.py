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

from paligemma import messages, parameters, registry, variants
from paligemma.data import sources
from paligemma.lora.config import Lora

REQUIRED = object()


@dataclasses.dataclass
class Key:
  """One key of a config.

  Attributes:
    name: with dots; * stands for a name that the user gives, at the end for
      whatever else what reads the group takes.
    default: REQUIRED where there is none, None for what the meaning says.
    meaning: what it does.
    type: of the value, as of the default; float takes an int, tuple a list,
      object anything.
    unit: of a number.
    optional: whether None may stand for the value; it may where it is the
      default.
    kinds: values of `kind` beside it, or of config.task, for which it is there;
      () for all.
    instead: names beside it, of which one at most is set; the default of one
      counts if none is.
  """

  name: str
  default: Any
  meaning: str
  type: Any = None
  unit: str = ""
  optional: bool = False
  kinds: tuple[str, ...] = ()
  instead: tuple[str, ...] = ()

  def __post_init__(self):
    self.type = self.type or type(self.default)

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
# Units of a duration: type of the number, and what it counts.
_UNITS = {
  "steps": (int, "steps"),
  "examples": (int, "examples"),
  "epochs": (float, "epochs"),
  "percent": (float, "fraction of the training, in [0, 1]"),
}


def _duration(
  prefix: str, default: str | None, value: float | None, meaning: str
) -> list[Key]:
  """The keys of a duration, of which a config sets one."""
  last = prefix.rpartition(".")[2]
  units = [x for x in _UNITS if (prefix, x) != ("total", "percent")]
  return [
    Key(
      f"{prefix}_{unit}",
      value if unit == default else None,
      meaning if unit == (default or "steps") else "the same, in another unit",
      *_UNITS[unit],
      instead=tuple(f"{last}_{x}" for x in units if x != unit),
    )
    for unit in units
  ]


def _source(prefix: str) -> list[Key]:
  """The keys of a source of examples, see paligemma/data/sources.py."""
  kinds = ", ".join(sources.SOURCES)
  lines, videos, tfds = ("jsonl",), ("video_jsonl",), ("tfds",)
  texts = ("text_jsonl",)

  def key(name, type, meaning, kinds=(), unit=""):
    reader = sources.SOURCES[kinds[0]] if kinds else sources.make
    default = inspect.signature(reader).parameters[name].default
    if default is inspect.Parameter.empty:
      default = REQUIRED
    optional = name == "num_frames"
    return Key(
      f"{prefix}.{name}", default, meaning, type, unit, optional, kinds
    )

  return [
    Key(f"{prefix}.kind", REQUIRED, f"one of {kinds}", str),
    Key(
      f"{prefix}.ops",
      (),
      "functions of an example and an rng, before all others",
    ),
    key("slice", str, 'part of the examples, such as "[:90%]"; None: all'),
    key("cache", bool, "keep the encoded examples in memory"),
    key(
      "path",
      str,
      "path of the file, of a jsonl also that of a folder of scripts.pack",
      lines + texts + videos,
    ),
    key("image_root", str, "folder of the images; None: that of path", lines),
    key(
      "val_share",
      float,
      'share of the images or texts, copies together, that make up part "val" '
      "of the file; None: it is not split",
      lines + texts,
    ),
    key("part", str, '"train" or "val" of a file that is split', lines + texts),
    key("seed", int, "of the split", lines + texts),
    key("video_root", str, "folder of the videos; None: that of path", videos),
    key(
      "num_frames",
      int,
      "of each video; None: an op video.Frames takes them",
      videos,
    ),
    key("stride", int, "from one frame to the next", videos, "frames"),
    key("short", str, "how a short video is filled, see video.Frames", videos),
    key("name", str, "name of the TFDS builder", tfds),
    key("split", str, 'split of the data set, such as "train[:90%]"', tfds),
    key("data_dir", str, "folder of data sets; None: that of TFDS", tfds),
    key("image_key", str, "field that holds the image", tfds),
  ]


_EMBEDDING = ("zero_shot", "retrieval", "few_shot")  # evaluators of SigLIP
_DECODING = ("perplexity", "generate")
_EVALUATORS = _DECODING + _EMBEDDING


def _evaluator(
  name: str,
  *rest: Any,
  kinds: tuple[str, ...] = _EVALUATORS,
  **more: Any,
) -> Key:
  return Key(f"evals.*.{name}", *rest, kinds=kinds, **more)


_decoding = functools.partial(_evaluator, kinds=_DECODING)
_generate = functools.partial(_evaluator, kinds=("generate",))
_zero_shot = functools.partial(_evaluator, kinds=("zero_shot",))
_few_shot = functools.partial(_evaluator, kinds=("few_shot",))

_NEXT_TOKEN = {"kinds": ("next_token",)}
_CONTRASTIVE = {"kinds": ("contrastive",)}
_TASK = "next_token"  # by default

KEYS = (
  Key(
    "task",
    _TASK,
    "what is learned, see trainers/tasks: next_token, or contrastive of a "
    "SigLIP",
  ),
  Key("seed", 0, "of all that is random: order, ops, dropout, new weights"),
  # Model
  Key(
    "model.variant",
    "paligemma_3b",
    "name in paligemma/variants.py; of a Gemma: a decoder alone, for texts",
  ),
  Key(
    "model.vocab_size",
    None,
    "None: that of the variant",
    int,
    "tokens",
    **_NEXT_TOKEN,
  ),
  Key(
    "model.dtype",
    "bfloat16",
    "of products and activations: float32, bfloat16, or float16 on a T4 and "
    "older GPUs",
  ),
  *(
    Key(
      f"model.{tower}.{name}", default, meaning.format(what), type, kinds=kinds
    )
    for tower, what, kinds in (
      ("img", "image tower", ()),
      ("llm", "decoder", _NEXT_TOKEN["kinds"]),
      ("txt", "text tower", _CONTRASTIVE["kinds"]),
      ("dec", "decoder of decoder_weight", _CONTRASTIVE["kinds"]),
    )
    for name, default, meaning, type in (
      ("dropout", 0.0, "rate of dropout in the {}", float),
      (
        "remat_policy",
        "auto",
        "what of the {} is kept for the backward pass, see models/stack.py: "
        "none, products, block_inputs; auto: products where they fit",
        str,
      ),
      ("*", None, "any other field of the {}; default: the variant's", object),
    )
  ),
  Key(
    "model.temperature_init",
    10.0,
    "factor of the logits of new weights",
    **_CONTRASTIVE,
  ),
  Key(
    "model.bias_init",
    -10.0,
    "bias of the logits of new weights; None: no bias",
    optional=True,
    **_CONTRASTIVE,
  ),
  Key(
    "model.lora",
    None,
    "low-rank adapters beside frozen matrices, {} for the defaults below; "
    "None: no adapters",
    dict,
  ),
  Key("model.lora.rank", Lora.rank, "inner dimension of the two matrices"),
  Key("model.lora.alpha", Lora.alpha, "scales their product by alpha / rank"),
  Key("model.lora.rslora", Lora.rslora, "scale by alpha / sqrt(rank) instead"),
  Key("model.lora.dropout", Lora.dropout, "rate of dropout on their input"),
  Key(
    "model.lora.targets",
    Lora.targets,
    "regexes of what has adapters, see lora.config.TARGETS",
  ),
  Key(
    "init",
    "",
    "checkpoint of any format or preset; or {img: one, llm: one}, the image "
    "tower of one and the decoder of another; or {img: one}, or {txt: one}, of "
    "which a SigLIP takes that tower alone; empty: random weights",
    object,
  ),
  Key("tokenizer", "paligemma_tokenizer.model", "SentencePiece file"),
  Key(
    "res",
    224,
    "height and width of the images, of a NaFlex not read",
    unit="pixels",
  ),
  Key(
    "max_patches",
    variants.NAFLEX_PATCHES,
    "of an image, for a NaFlex, which keeps its aspect ratio",
    unit="patches",
    **_CONTRASTIVE,
  ),
  Key(
    "frames",
    0,
    "images of an example, as of a video; 0: one image",
    **_NEXT_TOKEN,
  ),
  Key(
    "text_len",
    128,
    "length of prompt and answer together",
    unit="tokens",
    **_NEXT_TOKEN,
  ),
  # What trains
  Key(
    "trainable",
    (parameters.ATTENTION,),
    "regexes over the whole name of a parameter: what trains, in float32; see "
    "configs/tuning.py",
  ),
  Key(
    "frozen_dtype",
    "bfloat16",
    "of what does not train: float32, bfloat16, float16, int8, int4 or nf4",
  ),
  # Data
  Key(
    "train.sources.*.weight",
    1.0,
    "share of this source in a mixture; None: its number of examples",
    optional=True,
  ),
  Key(
    "train.sources.*.group",
    "",
    "sources of one group add up their weights; all of their examples are "
    "drawn equally often",
  ),
  *_source("train.sources.*"),
  Key(
    "train.ops",
    (),
    "functions of an example and an rng, in training and evaluation, such as "
    'text_ops.Format("answer en {question}")',
  ),
  Key("train.augment", (), "likewise, in training alone, before train.ops"),
  Key("train.resize", "bilinear", "resizing of images: image.PREPROCESSING"),
  Key(
    "train.too_long",
    "error",
    'a text beyond text_len, or the text tower: "error" or "truncate"',
  ),
  Key(
    "train.texts",
    "checked",
    '"checked", or "plain": control tokens in a text are letters',
    **_NEXT_TOKEN,
  ),
  Key(
    "train.packing",
    False,
    "fill each row of text_len tokens with several texts, for a decoder alone; "
    "batches and epochs then count rows",
    **_NEXT_TOKEN,
  ),
  Key(
    "train.text_buckets",
    True,
    "pad the texts of a batch to one of a few lengths, as its longest text "
    "needs; False: always to text_len",
    **_NEXT_TOKEN,
  ),
  Key("train.on_bad", "stop", 'bad examples: "stop", or "skip" and count them'),
  Key(
    "train.num_workers",
    0,
    "processes that read data, one core each; 0: threads",
  ),
  Key("batch_size", 32, "in a step, on all devices", unit="examples"),
  *_duration("total", "epochs", 15.0, "length of the training"),
  # Optimizer, see paligemma/training/optimizers.py
  Key("optimizer", "sgd", "one of adafactor, adam, adamw, lion, sgd"),
  Key("optimizer_args.*", None, "its arguments, such as momentum=0.9", object),
  Key("learning_rate", 0.03, "at the peak of its schedule"),
  Key(
    "learning_rate_mults", (), '(regex, factor) pairs, such as ("img/.*", 0.1)'
  ),
  Key(
    "schedule",
    ((".*", dict(decay="cosine", warmup_percent=0.1)),),
    "(regex, arguments of make_schedule) pairs; durations as here",
  ),
  Key(
    "weight_decay",
    0.0,
    "per step; it follows the schedule, but not the learning rate",
  ),
  Key(
    "weight_decay_mults",
    None,
    "(regex, factor) pairs: what decays; None: every matrix",
    tuple,
  ),
  Key("clip_norm", None, "largest norm of the gradient; None: any", float),
  Key(
    "label_smoothing",
    0.0,
    "probability of the other tokens, in [0, 1)",
    **_NEXT_TOKEN,
  ),
  Key(
    "loss",
    "sigmoid",
    "over all pairs of a batch: sigmoid, or softmax as of CLIP",
    **_CONTRASTIVE,
  ),
  Key(
    "decoder_weight",
    0.0,
    "of the loss of a decoder that writes captions, and with `objects` boxes "
    "and their labels, from the tokens of the image; 0: there is no decoder",
    **_CONTRASTIVE,
  ),
  Key(
    "decoder_parallel",
    0.5,
    "share of the captions of which all tokens are predicted at once",
    **_CONTRASTIVE,
  ),
  Key(
    "distill_weight",
    0.0,
    "of self-distillation and masked prediction, whose teacher is the moving "
    "average of ema_decay; 0: there is neither",
    **_CONTRASTIVE,
  ),
  Key(
    "distill_after",
    0.8,
    "fraction of the training before they begin",
    **_CONTRASTIVE,
  ),
  *(
    Key(f"model.distill.{name}", default, meaning, **_CONTRASTIVE)
    for name, default, meaning in (
      ("hidden", 2048, "hidden units of the heads of distill_weight"),
      ("features", 256, "that are compared with prototypes"),
      ("prototypes", 8192, "which a view is matched with"),
    )
  ),
  Key("accumulate_steps", 1, "microbatches that a batch is split into"),
  Key(
    "ema_decay",
    None,
    "of the moving average of what trains, such as 0.999; None: none is kept",
    float,
  ),
  # Devices
  Key("mesh.data", -1, "parts of a batch; -1: all others", unit="devices"),
  Key("mesh.model", 1, "parts of a layer", unit="devices"),
  Key(
    "sharding",
    ((".*", "fsdp"),),
    '(regex, "fsdp", "tensor_parallel" or "replicate") pairs: how parameters '
    "are sharded",
  ),
  Key(
    "frozen_sharding",
    "auto",
    "of what is frozen, under fsdp: shard, replicate, or auto: replicate where "
    "it fits the devices",
  ),
  # Log, checkpoints, evaluation
  *_duration("log", "steps", 10, "between two lines of the log"),
  Key(
    "writers",
    ("jsonl", "tensorboard"),
    "of measurements and sample predictions: tensorboard, wandb, mlflow; "
    "metrics.jsonl (jsonl) is always written",
  ),
  *_duration("checkpoint", "percent", 0.25, "between two checkpoints"),
  Key("keep_checkpoints", 1, "last ones kept; None: all", optional=True),
  Key(
    "keep_every",
    None,
    "beside the last ones, every n-th is kept; None: no other",
    int,
    "checkpoints",
  ),
  Key(
    "keep_best",
    None,
    'score of an evaluator, such as "val/AP50": the weights with the best one '
    "are kept as best.npz, or best.safetensors of adapters; None: they are not",
    str,
  ),
  Key(
    "early_stop",
    None,
    "after so many without a better keep_best the run stops; None: it does not",
    int,
    "evaluations",
  ),
  Key("evals.*.kind", REQUIRED, f"one of {', '.join(_EVALUATORS)}", str),
  *_duration(
    "evals.*.every",
    None,
    None,
    "between two runs; before the first and after the last step it runs "
    "anyway, with 0 after the last alone",
  ),
  *_source("evals.*.source"),
  _evaluator("batch_size", None, "None: that of the training", int, "examples"),
  _evaluator("limit", None, "the first ones alone; None: all", int, "examples"),
  _evaluator("num_workers", 0, "as of train"),
  _evaluator("ops", None, "None: train.ops", tuple),
  _evaluator("resize", None, "None: train.resize", str),
  _decoding("too_long", None, "None: train.too_long", str),
  _decoding("texts", None, "None: train.texts", str),
  _evaluator("on_bad", None, "None: train.on_bad", str),
  _decoding("text_len", None, "None: config.text_len", int),
  _decoding("frames", None, "None: config.frames", int),
  _generate(
    "max_decode_len",
    None,
    "longest answer; None: config.text_len",
    int,
    "tokens",
  ),
  _generate(
    "sampler",
    "greedy",
    "see samplers.make; or a function of logits f32[B, V] and an rng that "
    "gives the next tokens i32[B]",
    object,
  ),
  _generate(
    "metric",
    "auto",
    "see metrics.METRICS; or a function of a prediction and its example that "
    "gives {name: value}; auto: detection or segmentation where the answers "
    "hold boxes or masks, else exact_match; None: predictions are only written",
    object,
    optional=True,
  ),
  _evaluator(
    "answer_key",
    "suffix",
    "field with the answers, or the class, after the ops",
    kinds=("generate", "zero_shot", "few_shot"),
  ),
  _generate(
    "grammar", None, "answers allowed, see grammar.make; None: all", object
  ),
  _generate(
    "mask_codec", None, "vae-oid.npz, for the metric segmentation", str
  ),
  _zero_shot(
    "class_names", None, "the classes; None: all that the examples name", tuple
  ),
  _zero_shot(
    "templates",
    "short",
    'texts with "{}" for the class, or a set of them: short, long',
    object,
  ),
  _few_shot("train", REQUIRED, "source of the examples to learn from", dict),
  *_source("evals.*.train"),
  _few_shot("num_seeds", 3, "draws of them, over which accuracy is averaged"),
)

_GROUP = "."  # the Key of a group itself, as model.lora


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


def defaults(task: str = _TASK) -> ConfigDict:
  """Returns a config of the defaults of a task, without its durations.

  `complete` adds those, unless a config sets them in another unit.
  """
  config = complete(ConfigDict({"task": task}))
  for key in KEYS:
    if key.instead and "." not in key.name:
      del config[key.name]
  return config


def complete(config: ConfigDict) -> ConfigDict:
  """Adds the keys that a config lacks, in place, and returns the same config.

  Raises:
    ValueError: keys that are unknown or missing, values that are not of their
      type, and ops of train.ops that are for training alone; all of them, with
      the nearest names. Nothing is added then.
  """
  if problems := list(_problems(config, _TREE, "config", _TASK)):
    raise ValueError("; ".join(problems))
  shared = config.get("train", {}).get("ops", ())
  if found := [op for op in shared if getattr(op, "augments", False)]:
    names = ", ".join(type(op).__name__ for op in found)
    raise ValueError(
      f"config.train.ops: {names} would change what is evaluated too; move it "
      "to config.train.augment"
    )
  with config.unlocked():
    fill(config)
  return config


def unset_others(config: ConfigDict, given: Sequence[str]) -> None:
  """Sets to None what other units say of the durations that are given.

  Names have dots, such as "total_steps" or "evals.val.every_steps".
  """
  for name in given:
    *groups, last = name.split(".")
    group = functools.reduce(operator.getitem, groups, config)
    for other in _INSTEAD.get(last, ()):
      if ".".join([*groups, other]) not in given:
        group[other] = None


def add_open(config: ConfigDict, given: Sequence[str]) -> None:
  """Adds those of the names that are in a group which takes any name.

  Such as optimizer_args.momentum; the value is then None and may be anything.
  """
  groups = [key.name[:-2] for key in KEYS if key.name.endswith(".*")]
  for name in given:
    group, _, last = name.rpartition(".")
    if group in groups and last not in config[group]:
      with config.unlocked():
        config[group][last] = config_dict.FieldReference(
          None, field_type=object
        )


def names(config: Mapping[str, Any] | ConfigDict) -> list[str]:
  """Returns the names of all values of a config, with dots."""
  found = []
  for name, value in config.items():
    found.append(name)
    if isinstance(value, Mapping | ConfigDict):
      found += [f"{name}.{x}" for x in names(value)]
  return found


def _is_for(schema: Any, kind: Any) -> bool:
  """Whether a key, or a group by its own key or some key in it, is there."""
  key = schema if isinstance(schema, Key) else schema.get(_GROUP)
  if key is not None:
    return not key.kinds or kind in key.kinds
  return any(_is_for(inner, kind) for inner in schema.values())


def _kind(node: Any, kind: Any) -> Any:
  """What chooses the keys of a group; `kind` does so in the one around it."""
  return node.get("kind", node.get("task", kind))


def _known(schema: dict[str, Any], kind: Any) -> tuple[dict[str, Any], bool]:
  """The keys of a group of that kind, and whether other names may be in it."""
  keys = [inner for inner in schema.values() if isinstance(inner, Key)]
  kinds = {kind for key in keys for kind in key.kinds}
  known = {
    name: inner
    for name, inner in schema.items()
    if name not in ("*", _GROUP) and _is_for(inner, kind)
  }
  # The table has no keys of a kind that a user has added.
  is_foreign = bool(kinds) and kind not in kinds
  return known, is_foreign or isinstance(schema.get("*"), Key)


def _problems(node: Any, schema: Any, name: str, kind: Any) -> Iterator[str]:
  """Lines on what is wrong with a value, or with what a group holds."""
  if isinstance(schema, Key):
    if not schema.accepts(node):
      shown = messages.shown(repr(node))
      yield f"{name} is {shown}, expected {schema.type.__name__}"
    return
  if _GROUP in schema and node is None and schema[_GROUP].accepts(None):
    return
  if not isinstance(node, Mapping | ConfigDict):
    shown = messages.shown(repr(node))
    yield f"{name} is {shown}, expected a dict of its keys"
    return
  kind = _kind(node, kind)
  known, is_open = _known(schema, kind)
  for key, inner in known.items():
    if key in node:
      continue
    if isinstance(inner, dict):
      yield from _problems({}, inner, f"{name}.{key}", kind)
    elif inner.default is REQUIRED:
      near = registry.did_you_mean(key, [n for n in node if n not in known])
      yield f"{name}.{key} is missing: {inner.meaning}.{near}"
  for key, value in node.items():
    if inner := known.get(key, schema.get("*")):
      yield from _problems(value, inner, f"{name}.{key}", kind)
    elif not is_open:
      yield f"{name}.{messages.shown(str(key))} is unknown.{_near(key, known)}"


def _near(name: str, known: Mapping[str, Any]) -> str:
  """The nearest name here, or the same one elsewhere."""
  elsewhere = [key.name for key in KEYS if key.name.endswith(f".{name}")]
  if not (near := registry.did_you_mean(name, known)) and elsewhere:
    near = f' Did you mean "{elsewhere[0]}"?'
  return near


def fill(
  node: ConfigDict, schema: dict[str, Any] = _TREE, kind: str = _TASK
) -> None:
  """Adds what a config, or a group of it, lacks in place; checks nothing."""
  kind = _kind(node, kind)
  known, _ = _known(schema, kind)
  for key, inner in known.items():
    if isinstance(inner, dict):
      if key not in node and _GROUP not in inner:
        node[key] = ConfigDict()
      if isinstance(node.get(key), ConfigDict):
        fill(node[key], inner, kind)
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
      fill(node[key], schema["*"], kind)
