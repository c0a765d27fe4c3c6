"""Contrastive training of a SigLIP on images and their captions."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paligemma import evals, registry
from paligemma.data import pairs, siglip_tokenizer
from paligemma.lora import apply as lora
from paligemma.lora.config import Lora
from paligemma.models import siglip
from paligemma.models.siglip import Model
from paligemma.planning import flops
from paligemma.training import contrastive
from trainers.tasks.task import Loss

_PATCHES = ("patches", "type", "yidx", "xidx")


class Contrastive:
  """The task; see task.Task for its methods."""

  evaluators: ClassVar[dict[str, type]] = {
    "zero_shot": evals.ZeroShot,
    "retrieval": evals.Retrieval,
    "few_shot": evals.FewShot,
  }
  # The pairs of a batch are not those of its parts.
  is_additive = False

  def make_model(self, config: ConfigDict) -> Model:
    fields = config.model.to_dict()
    adapters = fields.pop("lora", None)
    model = siglip.make(**fields)
    if adapters is not None:
      model = lora.with_lora(model, Lora(**adapters))
    return model

  def make_tokenizer(
    self, config: ConfigDict, model: Model
  ) -> siglip_tokenizer.SiglipTokenizer:
    tok = siglip_tokenizer.SiglipTokenizer(config.tokenizer)
    siglip_tokenizer.check_size(tok, model.txt.vocab_size)
    return tok

  def make_preprocess(
    self,
    config: ConfigDict,
    tok: siglip_tokenizer.SiglipTokenizer,
    *,
    train: bool,
    **own: Any,
  ) -> pairs.Pairs:
    """The arrays of an example; those for the loss hold a caption too."""
    model, data = self.make_model(config), config.train
    shared = {
      "res": config.res,
      "text_len": model.txt.text_len,
      "vocab_size": model.txt.vocab_size,
      "resize": data.resize,
      "too_long": data.too_long,
      "texts": "plain",
    }
    if siglip.is_naflex(model):
      shared["patch_size"] = model.img.patch_size
      shared["max_patches"] = config.max_patches
    return pairs.Pairs(tok, train=train, **shared | own)

  def batch_shapes(
    self, config: ConfigDict, *, decodes: bool = False
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """image or, for a NaFlex, its patches; text; _mask."""
    if decodes:
      raise ValueError('task "contrastive" decodes nothing, expected "train"')
    size, model = config.batch_size, self.make_model(config)
    if size < 2:
      raise ValueError(
        f"batch_size is {size}, but a contrastive loss compares the examples "
        "of a batch with each other; expected 2 or more"
      )
    shapes = {
      "text": jax.ShapeDtypeStruct((size, model.txt.text_len), jnp.int32),
      "_mask": jax.ShapeDtypeStruct((size,), jnp.bool_),
    }
    if not siglip.is_naflex(model):
      image = (size, config.res, config.res, 3)
      return {**shapes, "image": jax.ShapeDtypeStruct(image, jnp.float32)}
    most, values = config.max_patches, 3 * model.img.patch_size**2
    patches = jax.ShapeDtypeStruct((size, most, values), jnp.float32)
    index = jax.ShapeDtypeStruct((size, most), jnp.int32)
    return {**shapes, **dict.fromkeys(_PATCHES, index), "patches": patches}

  def make_loss(self, config: ConfigDict, model: Model) -> Loss:
    return make_loss(
      model, loss=config.loss, num_microbatches=config.accumulate_steps
    )

  def count_flops(
    self,
    config: ConfigDict,
    model: Model,
    shapes: Mapping[str, Any],
    trainable: Mapping[str, Any],
    supervised: float | None = None,
  ) -> int:
    del supervised
    patches = config.max_patches
    if not siglip.is_naflex(model):
      patches = (config.res // model.img.patch_size) ** 2
    return flops.contrastive_step(
      model,
      shapes,
      trainable,
      batch_size=config.batch_size,
      patches=patches,
    )


def make_loss(
  model: Model, *, loss: str = "sigmoid", num_microbatches: int = 1
) -> Loss:
  """Builds the loss over all pairs of a batch.

  With microbatches all embeddings are computed first, then the loss over the
  whole batch, and each microbatch is computed again for its gradient, as in
  GradCache (arXiv:2101.06983): the loss and the gradient are those of the whole
  batch, the activations those of one microbatch. The mean of the losses of
  microbatches would be another loss, with fewer negatives.

  Args:
    model: to train.
    loss: key of contrastive.LOSSES.
    num_microbatches: the batch is split into.

  Returns:
    Function of parameters, a batch (image float32[B, H, W, 3], or of a NaFlex
    patches, type, yidx and xidx; text int32[B, T]; _mask bool[B]) and a key
    that returns the sum over the images, and measurements: accuracy, the share
    of images whose own text has the largest logit; temperature and bias, the
    factor and the bias of the logits; equal_texts, how many texts of the batch
    are those of an example before them, which count as negatives.

  Raises:
    ValueError: unknown loss; on tracing, if the batch does not divide into the
      microbatches.
  """
  of_pairs = registry.lookup(contrastive.LOSSES, loss, "loss")

  def embed(params, batch, rng):
    image = batch.get("image")
    if image is None:
      image = tuple(batch[name] for name in _PATCHES)
    zimg, ztxt, _ = model.apply(
      {"params": params},
      image,
      batch["text"],
      train=True,
      rngs={"dropout": rng},
    )
    return zimg, ztxt

  def embed_in_microbatches(params, batch, rng):
    size, rest = divmod(len(batch["_mask"]), num_microbatches)
    if rest:
      raise ValueError(
        f"batch_size {len(batch['_mask'])} does not divide into "
        f"accumulate_steps {num_microbatches}"
      )

    # Row i is in microbatch i % num_microbatches, so that each keeps an equal
    # share on every device.
    def split(x):
      return x.reshape(size, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

    @jax.checkpoint
    def embed_one(params, batch, rng):
      return embed(params, batch, rng)

    _, found = jax.lax.scan(
      lambda params, one: (params, embed_one(params, *one)),
      params,
      (jax.tree.map(split, batch), jax.random.split(rng, num_microbatches)),
    )
    return [z.swapaxes(0, 1).reshape(-1, z.shape[2]) for z in found]

  def summed_loss(params, batch, rng):
    whole = num_microbatches == 1
    zimg, ztxt = (embed if whole else embed_in_microbatches)(params, batch, rng)
    _, _, logit = model.apply({"params": params}, None, None)
    t, b = logit["t"][0], logit.get("b", jnp.zeros(1))[0]
    is_real = batch["_mask"]
    total, num_correct = of_pairs(zimg, ztxt, t, b, is_real)
    if "_weight" in batch:
      total *= batch["_weight"][0]
    num_real = jnp.maximum(jnp.sum(is_real, dtype=jnp.float32), 1.0)
    return total, {
      "accuracy": num_correct / num_real,
      "temperature": t,
      "bias": b,
      "equal_texts": contrastive.count_equal(batch["text"], is_real),
    }

  return summed_loss
