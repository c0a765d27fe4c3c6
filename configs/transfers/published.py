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

    data=data/NAME     the default: what scripts.prepare writes of the data set
                       that the config names
    data=tfds          the TFDS builders published with big_vision and those of
                       TFDS itself, in ArrayRecord or TFRecord files
    data=folder        one that scripts.prepare has written; or your own
                       folder/train.jsonl and folder/val.jsonl, with the fields
                       that the config names
    splits=val+test    what is evaluated; of your own folder, val.jsonl and
                       test.jsonl. Default: all that were published, or val
    final_split=true   train on the validation data too, as the models of the
                       published scores were; every example is as likely
    init=pt            the preset of variant and res, the default
    tune=full          what trains, see tuning.METHODS; default: what was
                       published

Images are resized as there, for many transfers without antialiasing. Texts are
cut at text_len, as there.

What differs on purpose, and why, is listed in tests/configs/transfer_facts.py.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from configs import arguments, common
from configs.transfers import forkme
from paligemma import registry
from paligemma.data import text_ops, video
from paligemma.data.preprocess import Op

# Where an image has several answers or captions: arguments of `make`.
ANSWERS = dict(
  answer_ops=(text_ops.Choice("answers", "suffix", replace=False),)
)
CAPTIONS = dict(
  ops=(text_ops.Format("caption en"),),
  answer_ops=(text_ops.Choice("captions", "suffix", replace=False),),
  metric="captions",
)
VIDEO_CAPTIONS = CAPTIONS | dict(
  answer_ops=(text_ops.Choice("captions", "suffix"),)
)


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples to train or to evaluate on.

  Attributes:
    source: its keys in a config, see configs/common.py; its ops bring the
      examples into the form that the transfer describes.
    final: with final_split=true, the TFDS split instead; None: the same one.
    hidden: the answers are not public: predictions are only written.
    last: evaluate at the end of a training alone, as where answers are hidden.
    file: of scripts.prepare, without .jsonl, for "{}" the split.
  """

  source: dict[str, Any]
  final: str | None = None
  hidden: bool = False
  last: bool = False
  file: str = "{}"


def tfds(
  name: str,
  split: str,
  *,
  final: str | None = None,
  fields: dict[str, str] | None = None,
  ops: tuple[Op, ...] = (),
  hidden: bool = False,
  last: bool = False,
  file: str = "{}",
  **source: Any,
) -> Split:
  """A Split of a TFDS data set.

  Args:
    name: of the builder.
    split: to read.
    fields: their name -> ours, of fields that have another name there.
    ops: run once the fields have our names.
    final, hidden, last, file: see Split.
    **source: image_key and weight.
  """
  copies = (text_ops.Copy(*names) for names in (fields or {}).items())
  source |= dict(kind="tfds", name=name, split=split, ops=(*copies, *ops))
  return Split(source, final, hidden, last or hidden, file)


def parse(argument: str | None, **defaults: Any) -> SimpleNamespace:
  """Reads the argument of a config: those of every transfer, and its own.

  `defaults` are those that differ, and those of its own arguments.
  """
  shared = dict(
    variant="paligemma_3b",
    res=224,
    init="pt",
    tokenizer="paligemma_tokenizer.model",
    tune="",
    data="",
    splits="",
    final_split=False,
  )
  return arguments.parse(argument, **shared | defaults)


def at(res: int, values: dict[int, Any]) -> Any:
  """The value of a resolution, else of the next lower, else of the lowest."""
  lower = [known for known in values if known <= res]
  return values[max(lower, default=min(values))]


def make(
  arg: SimpleNamespace | str | None,
  *,
  data_set: str | None = None,
  text_len: int = 32,
  ops: tuple[Op, ...] = (text_ops.Format("answer en {question}"),),
  answer_ops: tuple[Op, ...] = (text_ops.Copy("answer", "suffix"),),
  metric: str = "vqa",
  answer_key: str | None = None,
  lower: bool = False,
  score_ops: tuple[Op, ...] = (),
  train: Split | dict[str, Split] | None = None,
  evals: dict[str, Split] | None = None,
  batch_size: int = 256,
  eval_batch_size: int = 1024,
  sampler: str = "greedy",
  tune: str = "full",
  augment: tuple[Op, ...] = (),
  antialias: bool = True,
  eval_antialias: bool | None = None,
  dropout: float = 0.0,
  learning_rate: float = 1e-5,
  **values: Any,
) -> ConfigDict:
  """Makes the config of a transfer, by default of questions with one answer.

  Args:
    arg: what `parse` returned, or the argument to parse, where a transfer has
      none of its own; one with num_frames and stride is of videos.
    data_set: name of it in scripts.prepare; None: data=tfds is the default.
    text_len: of prompt and answer, in tokens.
    ops: in training and evaluation; they write the prompt.
    answer_ops: in training and for the perplexity; they write the answer.
    answer_key: field that the metric reads; None: that of the first answer op.
    lower: whether answers to train on are written in lower case.
    score_ops: wherever there are answers, before answer_ops; they write what
      the metric reads, if the examples do not hold it.
    train: to train on, several are mixed; None without a TFDS builder.
    evals: to evaluate on, by name; the perplexity is that of the first.
    batch_size: of the training and the perplexity.
    eval_batch_size: of the generated answers.
    tune: what was trained, see tuning.METHODS: "decoder" where big_vision has
      freeze_vit. arg.tune overrules it.
    augment: ops in training alone, before the others.
    antialias: whether a shrinking image was smoothed, in training. Frames of
      videos never were.
    eval_antialias: likewise, in evaluation. Default as in training.
    dropout: in the decoder.
    learning_rate: at the peak of its schedule; in most of them 1e-5.
    **values: of the config, such as total_epochs and weight_decay.
  """
  if not isinstance(arg, SimpleNamespace):
    arg = parse(arg)
  tune = arg.tune or tune
  init = f"{arg.variant}_pt_{arg.res}" if arg.init == "pt" else arg.init
  config = forkme.get_config(
    f"variant={arg.variant},res={arg.res},init={init},tune={tune},"
    f"tokenizer={arg.tokenizer},text_len={text_len},batch_size={batch_size}"
  )
  config.model.llm.dropout = dropout
  config.optimizer = "adam"
  config.optimizer_args = dict(b2=0.999)
  config.schedule = ((".*", dict(decay="cosine", warmup_percent=0.05)),)
  # Nothing of the decoder: see above.
  decays = tune in ("full", "image", "head")
  config.weight_decay_mults = ((".*/kernel", 1.0),) if decays else ()
  config.learning_rate = learning_rate
  config.clip_norm = 1.0
  config.log_steps = 50

  is_video = hasattr(arg, "num_frames")
  data = arg.data or (f"data/{data_set}" if data_set else "tfds")
  is_prepared = not arg.data or _is_prepared(data)
  if data != "tfds" and is_prepared and not is_video:
    train, evals = _prepared(data, train, evals, arg.final_split)
  elif data != "tfds":
    train, evals = _folder(arg, is_video)
  elif train is None:
    raise ValueError(
      "config argument data=tfds: there is no TFDS builder for this transfer, "
      "expected a folder of train.jsonl and val.jsonl"
    )
  if is_video:
    config.frames = arg.num_frames
    begin = video.Frames(arg.num_frames, arg.stride, "tile", "random")
    augment = (begin, *augment)
  config.train.resize = _resize(antialias, is_video)
  mixture = train if isinstance(train, dict) else {"main": train}
  config.train.sources = {name: s.source for name, s in mixture.items()}
  for name, split in mixture.items():
    if arg.final_split and split.final:
      config.train.sources[name].split = split.final
  config.train.augment = augment
  config.train.ops = (*ops, *score_ops, *answer_ops)
  if lower:
    config.train.ops += (text_ops.Lower("suffix"),)
  config.train.too_long = "truncate"

  own = {}  # where an evaluator says nothing, it does as the training
  if eval_antialias is not None:
    own["resize"] = _resize(eval_antialias, is_video)
  config.evals = ConfigDict()
  for name in _names(arg.splits) or evals:
    split = registry.lookup(evals, name, "split")
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
      answer_key=answer_key or answer_ops[0].key,
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

  num_frames and stride are defaults of its own arguments, see video.Frames.
  """
  return make(
    parse(argument, data=data, num_frames=num_frames, stride=stride),
    text_len=text_len,
    batch_size=128,
    eval_batch_size=128,
    **recipe,
  )


def _resize(antialias, is_video):
  """A key of image.PREPROCESSING: as there, where frames are not truncated."""
  if is_video:
    return "aliased"
  return "reference_uint8" if antialias else "aliased_uint8"


def _is_prepared(folder):
  try:
    return (epath.Path(folder) / "prepared.json").exists()
  except Exception:  # of remote file systems; the source says what is wrong
    return False


def _prepared(folder, train, evals, final):
  """The Splits of a folder that scripts.prepare writes."""
  mixture = train if isinstance(train, dict) else {"main": train}
  sources = {}
  for split in mixture.values():
    names = split.final if final and split.final else split.source["split"]
    sources |= _files(folder, split, names)
  found = {}
  for name, split in evals.items():
    ((_, source),) = _files(folder, split, split.source["split"]).items()
    found[name] = dataclasses.replace(split, source=source)
  # A weight of None is the size: as if all were one file.
  return (
    {name: Split({**x, "weight": None}) for name, x in sources.items()},
    found,
  )


def _files(folder, split, names):
  """{file: source} of splits as TFDS names them: "train+val[:90%]"."""
  sources = {}
  for part in names.split("+"):
    name, bracket, bounds = part.partition("[")
    file = split.file.format(name)
    path = f"{folder}/{file}.jsonl"
    sources[file] = dict(kind="jsonl", path=path)
    if bracket:
      sources[file]["slice"] = f"[{bounds}"
  return sources


def _folder(arg, is_video):
  """The Splits of a folder of JSONL files: to train on, and to evaluate on."""
  kind = "video_jsonl" if is_video else "jsonl"
  # Videos to train on are cut into frames by an op, which begins anywhere.
  any_frames = dict(num_frames=None) if is_video else {}
  frames = {}
  if is_video:
    frames = dict(short="tile", num_frames=arg.num_frames, stride=arg.stride)

  def jsonl(name, **keys):
    return Split(dict(kind=kind, path=f"{arg.data}/{name}.jsonl", **keys))

  # A weight of None is the size: as if both were one file.
  train = ("train", "val") if arg.final_split else ("train",)
  return (
    {name: jsonl(name, weight=None, **any_frames) for name in train},
    {name: jsonl(name, **frames) for name in _names(arg.splits) or ["val"]},
  )


def _names(splits):
  return [name for name in splits.split("+") if name]
