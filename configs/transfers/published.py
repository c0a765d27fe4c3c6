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
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.transfers import forkme
from paligemma.data import text_ops, video


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples of one kind, to train or to evaluate on.

  Attributes:
    source: Of paligemma/data/sources.py, as a dict.
    ops: Bring its examples into the form that the config describes.
    last: Evaluate at the end of a training alone.
    hidden: The answers are not public: predictions are only written.
  """

  source: dict[str, Any]
  ops: tuple = ()
  last: bool = False
  hidden: bool = False


def tfds(
  name,
  split,
  *,
  fields=(),
  ops=(),
  image_key="image",
  weight=1.0,
  last=False,
  hidden=False,
):
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
  return Split(source, (*copies, *ops), last, hidden)


@dataclasses.dataclass(frozen=True)
class Clip:
  """Frames of a video, with `tile` for a short one: see video.Frames."""

  num_frames: int
  stride: int


def parse(argument, *, res=224, data="tfds", **extra):
  """Reads the argument of a config: those of every transfer, and its own.

  Args:
    argument: str or None, see common.parse_argument.
    res: default resolution of this transfer.
    data: default of `data`.
    **extra: further arguments with their defaults.

  Returns:
    SimpleNamespace of variant, res, init ("pt" is the preset of variant and
    res), tokenizer, tune (see common.TRAINABLE; empty is what was published),
    data, splits and final_split (see above), and the extra ones.
  """
  return common.parse_argument(
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


def at(res, values):
  """The value for a resolution: its own, else the next lower, else the lowest.

  Args:
    res: int.
    values: {resolution: value}.
  """
  lower = [known for known in values if known <= res]
  return values[max(lower, default=min(values))]


def make(
  arg,
  *,
  text_len,
  ops,
  answer_ops,
  metric,
  answer_key,
  score_ops=(),
  train=None,
  evals=None,
  batch_size=256,
  eval_batch_size=1024,
  sampler="greedy",
  tune="full",
  clip=None,
  train_ops=(),
  antialias=True,
  eval_antialias=None,
):
  """Makes a config, but for the values that a transfer sets itself.

  Args:
    arg: what `parse` returned.
    text_len: int.
    ops: in training and evaluation; they write the prompt.
    answer_ops: in training and for the perplexity; they write the answer.
    metric: see metrics.make.
    answer_key: field that the metric reads.
    score_ops: wherever there are answers, before answer_ops; they write what
      the metric reads, if the examples do not hold it.
    train: Split to train on, or a dict of those that are mixed; with data=tfds.
    evals: {name: Split} to evaluate on, likewise; the first is also that of the
      perplexity.
    batch_size: int, of the training and the perplexity.
    eval_batch_size: int, of the generated answers.
    sampler: see samplers.make.
    tune: what was trained, see common.TRAINABLE: "decoder" where big_vision has
      freeze_vit. arg.tune overrules it.
    clip: Clip for videos, default None.
    train_ops: ops on the image in training alone, before the others.
    antialias: whether a shrinking image was smoothed, in training. Frames of
      videos never were.
    eval_antialias: likewise, in evaluation. Default as in training.

  Returns:
    ConfigDict with the fields of forkme.
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
    train_ops = (
      video.Frames(clip.num_frames, clip.stride, "tile", "random"),
      *train_ops,
    )
  config.train.resize = _resize(antialias, clip)
  own = {}  # where an evaluator says nothing, it does as the training
  if eval_antialias is not None:
    own["resize"] = _resize(eval_antialias, clip)
  mixture = train if isinstance(train, dict) else {"main": train}
  config.train.sources = {name: s.source for name, s in mixture.items()}
  adapt = next(iter(mixture.values())).ops  # all are of one kind
  answer = (*ops, *score_ops, *answer_ops)
  config.train.ops = (*adapt, *train_ops, *answer)
  config.train.too_long = "truncate"

  config.evals = ConfigDict()
  for name, split in _chosen(arg.splits, evals).items():
    shared = dict(
      source={k: v for k, v in split.source.items() if k != "weight"},
      **(dict(every_steps=0) if split.last else dict(every_percent=0.25)),
    )
    if "pplx" not in config.evals and not split.hidden:
      config.evals.pplx = dict(
        shared,
        kind="perplexity",
        ops=(*split.ops, *answer),
        batch_size=batch_size,
      )
    score = () if split.hidden else score_ops
    config.evals[name] = dict(
      shared,
      kind="generate",
      ops=(*split.ops, *ops, *score),
      **own,
      batch_size=eval_batch_size,
      max_decode_len=text_len,
      sampler=sampler,
      metric=None if split.hidden else metric,
      answer_key=answer_key,
    )
  return config


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
  return {name: common.lookup(evals, name, "split") for name in names}
