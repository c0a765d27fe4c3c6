"""Next-token training on the suffix: PaliGemma, or a decoder alone."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paligemma import evals, variants
from paligemma.data import preprocess, tokenizer
from paligemma.models import paligemma as paligemma_model
from paligemma.models.paligemma import Model
from paligemma.planning import flops
from paligemma.training import losses
from trainers.tasks import texts
from trainers.tasks.task import Loss


class NextToken:
  """The task; see task.Task for its methods."""

  dataset = texts.TextDataset
  evaluators: ClassVar[dict[str, type]] = {
    "generate": evals.Generate,
    "perplexity": evals.Perplexity,
  }
  is_additive = True

  def make_model(self, config: ConfigDict) -> Model:
    return paligemma_model.make(**config.model.to_dict())

  def make_tokenizer(
    self, config: ConfigDict, model: Model
  ) -> tokenizer.Tokenizer:
    tok = tokenizer.Tokenizer(config.tokenizer, plain=model.img is None)
    check_tokenizer(tok, model, config.tokenizer)
    return tok

  def make_preprocess(
    self,
    config: ConfigDict,
    tok: tokenizer.Tokenizer | None,
    *,
    train: bool,
    **own: Any,
  ) -> preprocess.Preprocess:
    """The arrays of an example; those for the loss hold the answer too."""
    data = config.train
    shared = {
      "res": None if _is_alone(config) else config.res,
      "text_len": config.text_len,
      "frames": config.frames,
      "resize": data.resize,
      "too_long": data.too_long,
      "texts": data.texts,
    }
    return preprocess.Preprocess(tok, train=train, **shared | own)

  def batch_shapes(
    self, config: ConfigDict, *, decodes: bool = False
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """image, if the model sees; text and its masks; _mask."""
    size, res = config.batch_size, config.res
    text = (size, config.text_len if decodes else config.text_len + 1)
    shapes = {
      "text": jax.ShapeDtypeStruct(text, jnp.int32),
      "mask_ar": jax.ShapeDtypeStruct(text, jnp.int32),
      "mask_input": jax.ShapeDtypeStruct(text, jnp.bool_),
      "mask_loss": jax.ShapeDtypeStruct(text, jnp.int32),
      "_mask": jax.ShapeDtypeStruct((size,), jnp.bool_),
    }
    if config.train.packing and not decodes:
      shapes["segment_ids"] = shapes["text"]
    if not _is_alone(config):
      frames = (config.frames,) if config.frames else ()
      image = (size, *frames, res, res, 3)
      shapes["image"] = jax.ShapeDtypeStruct(image, jnp.float32)
    if decodes:
      del shapes["mask_loss"]
    return shapes

  def make_loss(self, config: ConfigDict, model: Model) -> Loss:
    return make_loss(model, label_smoothing=config.label_smoothing)

  def teach_from(self, config: ConfigDict, total_steps: int) -> None:
    return None

  def count_flops(
    self,
    config: ConfigDict,
    model: Model,
    shapes: Mapping[str, Any],
    trainable: Mapping[str, Any],
    supervised: float | None = None,
  ) -> int:
    return flops.train_step(
      model,
      shapes,
      trainable,
      batch_size=config.batch_size,
      res=config.res,
      text_len=config.text_len,
      frames=config.frames,
      supervised=supervised,
    )


def _is_alone(config):
  """Whether the model of a config is a decoder without image tower."""
  return config.model.variant in variants.GEMMA


def check_tokenizer(tok: tokenizer.Tokenizer, model: Model, path: str) -> None:
  """Raises if the decoder has no row for some id of the tokenizer at a path."""
  if tok.vocab_size > model.llm.vocab_size:
    raise ValueError(
      f"{path}: {tok.vocab_size} ids, but the model has only "
      f"{model.llm.vocab_size} rows; give the tokenizer of the checkpoint"
    )


def make_loss(model: Model, *, label_smoothing: float = 0.0) -> Loss:
  """Builds the loss of a batch.

  It is the mean over the supervised tokens of an example, summed over the
  examples with `_mask`, as in big_vision's trainers/proj/paligemma/train.py.

  Args:
    model: to train; without an image tower, batches have no image.
    label_smoothing: see losses.next_token.

  Returns:
    Function of parameters, a batch (image float32[B, H, W, 3]; text, mask_ar,
    mask_input and mask_loss [B, L+1]; _mask bool[B]) and a key that returns the
    sum, and {"num_tokens": number of supervised tokens}. With segment_ids [B,
    L+1] a row holds several examples, and "num_examples" is their number.
  """

  def summed_loss(params, batch, rng):
    segment_ids = batch.get("segment_ids")
    packed = {} if segment_ids is None else {"segment_ids": segment_ids[:, :-1]}
    features, _ = model.apply(
      {"params": params},
      batch.get("image"),
      batch["text"][:, :-1],
      batch["mask_ar"][:, :-1],
      train=True,
      input_mask=batch["mask_input"][:, :-1],
      rngs={"dropout": rng},
      method="compute_features",
      **packed,
    )
    supervised = batch["mask_loss"][:, 1:]
    targets = batch["text"][:, 1:]
    weights = batch["_mask"].astype(jnp.float32)
    if "_weight" in batch:
      weights *= batch["_weight"]
    total = losses.mean_next_token(
      *model.output_layer(params),
      features,
      targets,
      supervised,
      weights,
      label_smoothing=label_smoothing,
      segment_ids=None if segment_ids is None else segment_ids[:, 1:],
    )
    measured = {"num_tokens": jnp.sum(supervised, dtype=jnp.float32)}
    if segment_ids is not None:
      count = segment_ids.max(axis=1) * batch["_mask"]
      measured["num_examples"] = jnp.sum(count, dtype=jnp.float32)
    return total, measured

  return summed_loss
