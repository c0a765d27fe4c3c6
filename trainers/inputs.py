"""From the values of a config to tokenizer, batches and evaluators."""

import functools
import time

import grain
import jax
import jax.numpy as jnp

from paligemma import evals, io, registry
from paligemma.data import batches, preprocess, sources, tokenizer
from paligemma.metrics import segmentation
from paligemma.models import mask_codec
from paligemma.training import sharding
from trainers import schedule

# What the train step reads of a batch.
STEP_KEYS = ("image", "text", "mask_ar", "mask_input", "mask_loss", "_mask")
# What an evaluator may have of its own; else it is that of the training data.
OWN = ("ops", "resize", "too_long", "texts", "text_len", "frames")


def make_tokenizer(config, model):
  """Opens the tokenizer and checks that the model has a row for every id.

  Raises:
    ValueError: the file is unusable, or names more ids than the model has.
  """
  tok = tokenizer.Tokenizer(config.tokenizer)
  if tok.vocab_size > model.llm.vocab_size:
    raise ValueError(
      f"{config.tokenizer}: {tok.vocab_size} ids, but the model has only "
      f"{model.llm.vocab_size} rows; give the tokenizer of the checkpoint"
    )
  return tok


def make_sources(config):
  """Opens the training data: a list of (source, weight).

  A source of weight None weighs as many as it has examples, so that those of
  all such sources are as likely as in one file; the default is 1.
  """
  opened = []
  for spec in config.train.sources.values():
    spec = spec.to_dict()
    source, weight = _source(spec), spec.get("weight", 1.0)
    opened.append((source, len(source) if weight is None else weight))
  return opened


def examples_per_epoch(train_sources):
  """Number of examples of all sources together.

  Where weights are other than sizes, an epoch of a mixture so holds some
  examples more than once and others not at all.

  Source: `training` of big_vision/input_pipeline.py, which sums them likewise.
  """
  return sum(len(source) for source, _ in train_sources)


def train_batches(config, train_sources, tok):
  """The endless iterator over this process's part of the training batches."""
  return batches.train(
    train_sources,
    make_preprocess(config, config.train, tok, train=True),
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.train.num_workers,
    on_bad=config.train.on_bad,
  )


class Feed(grain.DatasetIterator):
  """Training batches on the devices, the next one on its way during a step.

  Its state is that of the batches it has given out: one that is only on its
  way is read again after a restart, and an error in it waits for its turn.

  Args:
    batches: resumable iterator over this process's part of the batches.
    mesh: the devices.

  Attributes:
    seconds_waited: float, spent so far on waiting for batches to be read. While
      a step runs it costs nothing, until it is longer than the step.
  """

  def __init__(self, batches, mesh):
    super().__init__()
    self._batches = batches
    self._mesh = mesh
    self._ahead = None  # of a batch on its way: (state before it, it, error)
    self.seconds_waited = 0.0

  def __next__(self):
    """The next batch on the devices, and {what: number} of its examples."""
    self.start_next()
    (_, batch, error), self._ahead = self._ahead, None
    if error is not None:
      raise error
    return batch

  def start_next(self):
    """Reads the next batch and begins to copy it, unless that is done."""
    if self._ahead is not None:
      return
    state = self._batches.get_state()
    try:
      self._ahead = state, self._read(), None
    except Exception as error:
      self._ahead = state, None, error

  def get_state(self):
    return self._ahead[0] if self._ahead else self._batches.get_state()

  def set_state(self, state):
    self._ahead = None
    self._batches.set_state(state)

  def close(self):
    """Ends the data workers."""
    self._batches.close()
    super().close()

  def _read(self):
    start = time.perf_counter()
    local = next(self._batches)
    self.seconds_waited += time.perf_counter() - start
    counts = {
      "skipped": int((~local["_mask"]).sum()),
      "truncated": int(local.get("truncated", 0 * local["_mask"]).sum()),
    }
    local = {key: local[key] for key in STEP_KEYS}
    return sharding.put_batch(local, self._mesh), counts


def abstract_batch(config, mesh):
  """Shapes and places of what the train step reads; see trainers/step.py."""
  return _abstract(config, mesh, STEP_KEYS, config.text_len + 1)


def abstract_prompts(config, mesh):
  """Shapes and places of what decode.generate reads."""
  keys = [key for key in STEP_KEYS if key != "mask_loss"]
  return _abstract(config, mesh, keys, config.text_len)


def evaluation_ops(config):
  """The ops of the training data but those that augment it."""
  return [op for op in config.train.ops if not augments(op)]


def augments(op):
  """Whether an op is for training alone."""
  return getattr(op, "augments", False)


def make_evaluators(config, tok, **sizes):
  """Evaluators of the config with their intervals.

  Args:
    config: the config; `evals` holds by name the fields of the evaluator
      `kind`, what is in OWN, and a duration every_steps, every_epochs, ...
      (default: only at the first and last step; 0: only at the last). `on_bad`
      is that of the training data, unless it has its own. The metric
      segmentation needs `mask_codec`, the path of vae-oid.npz.
    tok: the tokenizer.
    **sizes: batch_size, examples_per_epoch and total_steps, for durations.

  Returns:
    List of (evaluator, steps between two runs, or None).
  """
  made = []
  for name, spec in config.evals.items():
    spec = spec.to_dict()
    every = schedule.steps(spec, "every", default=None, **sizes)
    kind = spec.pop("kind", None)
    evaluator = registry.lookup(evals.EVALUATORS, kind, f"kind of evals.{name}")
    own = {key: spec.pop(key) for key in OWN if key in spec}
    if codec := spec.pop("mask_codec", None):
      spec["metric"] = _segmentation(codec)
    fields = {
      "name": name,
      "source": _source(spec.pop("source", {})),
      "preprocess": make_preprocess(
        config,
        {**config.train, "ops": evaluation_ops(config), **own},
        tok,
        train=kind == "perplexity",
      ),
      "on_bad": config.train.on_bad,
      **{k: v for k, v in spec.items() if not k.startswith("every_")},
    }
    if kind == "generate":
      fields["tokenizer"] = tok
    try:
      made.append((evaluator(**fields), every))
    except TypeError as error:
      raise ValueError(f"evals.{name}: {error}") from None
  return made


def _abstract(config, mesh, keys, length):
  rows, res = config.batch_size, config.res
  sharding.check_batch_size(rows, mesh)
  frames = (config.frames,) if config.frames else ()
  shapes = {
    "image": ((rows, *frames, res, res, 3), jnp.float32),
    "text": ((rows, length), jnp.int32),
    "mask_ar": ((rows, length), jnp.int32),
    "mask_input": ((rows, length), jnp.bool_),
    "mask_loss": ((rows, length), jnp.int32),
    "_mask": ((rows,), jnp.bool_),
  }
  place = sharding.batch_sharding(mesh)
  return {
    key: jax.ShapeDtypeStruct(*shapes[key], sharding=place) for key in keys
  }


def _source(spec):
  spec = {k: v for k, v in spec.items() if k != "weight"}
  return sources.make(spec.pop("kind", None), **spec)


def make_preprocess(config, data, tok, *, train):
  """What makes rows of the examples of `data`, which is laid out as `train`."""
  return preprocess.Preprocess(
    tok,
    res=config.res,
    text_len=data.get("text_len", config.text_len),
    train=train,
    ops=tuple(data["ops"]),
    resize=data["resize"],
    too_long=data["too_long"],
    texts=data.get("texts", "checked"),
    frames=data.get("frames", config.frames),
  )


def _segmentation(path):
  """The metric, which decodes masks with the codec of a file."""
  codec = io.load_mask_codec(path)
  decode = functools.partial(mask_codec.decode, codec)
  return segmentation.Segmentation(decode)
