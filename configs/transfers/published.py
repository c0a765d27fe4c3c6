"""What the published transfers share, and the arguments that all of them take.

    python -m trainers.train --workdir runs/okvqa \
      --config configs/transfers/okvqa.py:variant=paligemma2_3b,res=448

Their values are those of big_vision, configs/proj/paligemma/transfers: the best
of its sweeps, where it has any, for each resolution; others take the values of
the next lower one. They were found for PaliGemma 3B; PaliGemma 2 was published
with the same but for the learning rate, chosen per size (arXiv:2412.03555,
table 14). Adam in float32 on all parameters, cosine after 5 % of warm-up,
gradients clipped to a norm of 1.

The weight decay acts on the image tower and its head alone, as there, where it
is meant for "kernel", which is no name of Gemma's matrices.
weight_decay_mults = None is all matrices.

Where the examples come from:

    data=tfds          the TFDS builders published with big_vision and those of
                       TFDS itself, in ArrayRecord files
    data=folder        folder/train.jsonl and folder/val.jsonl, whose fields the
                       config names
    splits=val+test    what is evaluated; of a folder, val.jsonl and test.jsonl.
                       Default: all that were published, or val of a folder
    final_split=true   train on the validation data too, as the models of the
                       published scores were; every example is as likely

Images are resized as there, for many transfers without antialiasing. Texts are
cut at text_len, as there.

What differs on purpose, and why, is listed in tests/configs/transfer_facts.py.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from configs import arguments, common
from configs.transfers import forkme
from paligemma import registry
from paligemma.data import text_ops, video
from paligemma.data.preprocess import Op


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples of one kind, to train or to evaluate on.

  Attributes:
    source: Its keys in a config, see configs/common.py; its ops bring the
      examples into the form that the transfer describes.
    last: Evaluate at the end of a training alone.
    hidden: The answers are not public: predictions are only written.
  """

  source: dict[str, Any]
  last: bool = False
  hidden: bool = False


def tfds(
  name: str,
  split: str,
  *,
  fields: tuple[tuple[str, str], ...] = (),
  ops: tuple[Op, ...] = (),
  image_key: str = "image",
  weight: float = 1.0,
  last: bool = False,
  hidden: bool = False,
) -> Split:
  """A Split of a TFDS data set.

  Args:
    name: of the builder.
    split: of TFDS.
    fields: (theirs, ours) pairs of fields that have another name there.
    ops: after these.
    image_key: field of the image.
    weight: in a mixture to train on.
    last, hidden: see Split.
  """
  source = dict(
    kind="tfds", name=name, split=split, image_key=image_key, weight=weight
  )
  copies = (text_ops.Copy(theirs, ours) for theirs, ours in fields)
  source["ops"] = (*copies, *ops)
  return Split(source, last, hidden)


@dataclasses.dataclass(frozen=True)
class Clip:
  """Frames of a video, with `tile` for a short one: see video.Frames."""

  num_frames: int
  stride: int


def parse(
  argument: str | None, *, res: int = 224, data: str = "tfds", **extra: Any
) -> SimpleNamespace:
  """Reads the argument of a config: those of every transfer, and its own.

  Args:
    argument: see arguments.parse.
    res: default resolution of this transfer.
    data: default of `data`.
    **extra: further arguments with their defaults.

  Returns:
    SimpleNamespace of variant, res, init ("pt" is the preset of variant and
    res), tokenizer, tune (see tuning.TRAINABLE; empty is what was published),
    data, splits and final_split (see above), and the extra ones.
  """
  return arguments.parse(
    argument,
    variant="paligemma_3b",
    res=res,
    init="pt",
    tokenizer="paligemma_tokenizer.model",
    tune="",
    data=data,
    splits="",
    final_split=False,
    **extra,
  )


def at(res: int, values: dict[int, Any]) -> Any:
  """The value for a resolution: its own, else the next lower, else the lowest.

  Args:
    res: of the images.
    values: by resolution.
  """
  lower = [known for known in values if known <= res]
  return values[max(lower, default=min(values))]


def make(
  arg: SimpleNamespace,
  *,
  text_len: int,
  ops: tuple[Op, ...],
  answer_ops: tuple[Op, ...],
  metric: str,
  answer_key: str,
  score_ops: tuple[Op, ...] = (),
  train: Split | dict[str, Split] | None = None,
  evals: dict[str, Split] | None = None,
  batch_size: int = 256,
  eval_batch_size: int = 1024,
  sampler: str = "greedy",
  tune: str = "full",
  clip: Clip | None = None,
  augment: tuple[Op, ...] = (),
  antialias: bool = True,
  eval_antialias: bool | None = None,
  dropout: float = 0.0,
  **values: Any,
) -> ConfigDict:
  """Makes the config of a transfer.

  Args:
    arg: what `parse` returned.
    text_len: of prompt and answer, in tokens.
    ops: in training and evaluation; they write the prompt.
    answer_ops: in training and for the perplexity; they write the answer.
    metric: see metrics.make.
    answer_key: field that the metric reads.
    score_ops: wherever there are answers, before answer_ops; they write what
      the metric reads, if the examples do not hold it.
    train: Split to train on, or a dict of those that are mixed; with data=tfds.
    evals: Splits to evaluate on by name, likewise; the first is also that of
      the perplexity.
    batch_size: of the training and the perplexity.
    eval_batch_size: of the generated answers.
    sampler: see samplers.make.
    tune: what was trained, see tuning.TRAINABLE: "decoder" where big_vision has
      freeze_vit. arg.tune overrules it.
    clip: of videos, default None.
    augment: ops in training alone, before the others.
    antialias: whether a shrinking image was smoothed, in training. Frames of
      videos never were.
    eval_antialias: likewise, in evaluation. Default as in training.
    dropout: in the decoder.
    **values: of the config, such as total_epochs and learning_rate.

  Returns:
    Config of all keys.
  """
  config = _base(arg, text_len, batch_size, arg.tune or tune)
  if arg.data != "tfds":
    train, evals = _folder(arg, clip)
  elif train is None:
    raise ValueError(
      "config argument data=tfds: there is no TFDS builder for this transfer, "
      "expected a folder of train.jsonl and val.jsonl"
    )
  if clip is not None:
    config.frames = clip.num_frames
    begin = video.Frames(clip.num_frames, clip.stride, "tile", "random")
    augment = (begin, *augment)
  config.model.llm.dropout = dropout
  config.train.resize = _resize(antialias, clip)
  own = {}  # where an evaluator says nothing, it does as the training
  if eval_antialias is not None:
    own["resize"] = _resize(eval_antialias, clip)
  mixture = train if isinstance(train, dict) else {"main": train}
  config.train.sources = {name: s.source for name, s in mixture.items()}
  config.train.augment = augment
  config.train.ops = (*ops, *score_ops, *answer_ops)
  config.train.too_long = "truncate"

  config.evals = ConfigDict()
  for name, split in _chosen(arg.splits, evals).items():
    shared = dict(
      source={k: v for k, v in split.source.items() if k != "weight"},
      **(dict(every_steps=0) if split.last else dict(every_percent=0.25)),
    )
    if "pplx" not in config.evals and not split.hidden:
      config.evals.pplx = dict(shared, kind="perplexity")
    config.evals[name] = dict(
      shared,
      kind="generate",
      ops=ops if split.hidden else (*ops, *score_ops),
      **own,
      batch_size=eval_batch_size,
      sampler=sampler,
      metric=None if split.hidden else metric,
      answer_key=answer_key,
    )
  del config.total_epochs
  for name, value in values.items():
    config[name] = value
  return common.complete(config)


def of_video(
  argument: str | None,
  *,
  data: str,
  num_frames: int,
  stride: int,
  text_len: int = 64,
  **recipe: Any,
) -> ConfigDict:
  """`make` of a transfer of videos, from a folder.

  Args:
    argument: as of `parse`; also num_frames and stride.
    data: the folder.
    num_frames, stride: see Clip.
    text_len: as of `make`.
    **recipe: arguments of `make`.
  """
  arg = parse(argument, data=data, num_frames=num_frames, stride=stride)
  return make(
    arg,
    clip=Clip(arg.num_frames, arg.stride),
    text_len=text_len,
    batch_size=128,
    eval_batch_size=128,
    **recipe,
  )


def _base(arg, text_len, batch_size, tune):
  """forkme with what all transfers have in common."""
  init = f"{arg.variant}_pt_{arg.res}" if arg.init == "pt" else arg.init
  config = forkme.get_config(
    f"variant={arg.variant},res={arg.res},init={init},tune={tune},"
    f"tokenizer={arg.tokenizer},text_len={text_len},batch_size={batch_size}"
  )
  config.optimizer = "adam"
  config.optimizer_args = dict(b2=0.999)
  config.schedule = ((".*", dict(decay="cosine", warmup_percent=0.05)),)
  # Nothing of the decoder: see above.
  kernels = ((".*/kernel", 1.0),)
  config.weight_decay_mults = (
    kernels if tune in ("full", "image", "head") else ()
  )
  config.clip_norm = 1.0
  config.log_steps = 50
  return config


def _resize(antialias, clip):
  """A key of image.PREPROCESSING: as there, where frames are not truncated."""
  if clip is not None:
    return "aliased"
  return "reference_uint8" if antialias else "aliased_uint8"


def _folder(arg, clip):
  """The Splits of a folder of JSONL files: to train on, and to evaluate on."""

  def jsonl(name, **frames):
    path = f"{arg.data}/{name}.jsonl"
    if clip is None:
      return Split(dict(kind="jsonl", path=path))
    return Split(dict(kind="video_jsonl", path=path, **frames))

  frames = dict(short="tile")
  if clip is not None:
    frames |= dict(num_frames=clip.num_frames, stride=clip.stride)
  names = ("train", "val") if arg.final_split else ("train",)
  # Videos to train on are cut into frames by an op, which begins anywhere.
  train = {name: jsonl(name, num_frames=None) for name in names}
  for split in train.values():
    split.source["weight"] = None  # its size: as if both were one file
  splits = _names(arg.splits) or ["val"]
  return train, {name: jsonl(name, **frames) for name in splits}


def _names(splits):
  return [name for name in splits.split("+") if name]


def _chosen(splits, evals):
  """{name: Split} of those that the argument asks for."""
  names = _names(splits) or evals
  return {name: registry.lookup(evals, name, "split") for name in names}
