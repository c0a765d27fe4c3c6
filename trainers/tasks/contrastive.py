"""Contrastive training of a SigLIP on images and their captions."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paligemma import evals, parameters, registry
from paligemma.data import pairs, siglip_tokenizer
from paligemma.lora import apply as lora
from paligemma.lora.config import Lora
from paligemma.models import siglip, text_decoder
from paligemma.models.siglip import Model
from paligemma.planning import flops
from paligemma.training import contrastive, losses
from paligemma.training import distillation as views
from trainers.tasks import captions, distillation
from trainers.tasks.task import Loss

_PATCHES = ("patches", "type", "yidx", "xidx")


class Contrastive:
  """The task; see task.Task for its methods."""

  dataset = captions.CaptionDataset
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
    heads = fields.pop("dec", {}), fields.pop("distill", {})
    if config.decoder_weight:
      _check_decoder(config)
      fields["dec"] = heads[0]
    if config.distill_weight:
      fields["distill"] = heads[1]
    model = siglip.make(**fields)
    if config.distill_weight:
      _check_distillation(config, model)
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
    if model.dec is not None:
      shared["regions"] = True
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
    if model.dec is not None:
      text = (size, 2, model.txt.text_len)
      for name in ("regions", "regions_loss"):
        shapes[name] = jax.ShapeDtypeStruct(text, jnp.int32)
    if not siglip.is_naflex(model):
      image = (size, config.res, config.res, 3)
      return {**shapes, "image": jax.ShapeDtypeStruct(image, jnp.float32)}
    most, values = config.max_patches, 3 * model.img.patch_size**2
    patches = jax.ShapeDtypeStruct((size, most, values), jnp.float32)
    index = jax.ShapeDtypeStruct((size, most), jnp.int32)
    return {**shapes, **dict.fromkeys(_PATCHES, index), "patches": patches}

  def make_loss(self, config: ConfigDict, model: Model) -> Loss:
    return make_loss(
      model,
      loss=config.loss,
      num_microbatches=config.accumulate_steps,
      decoder_weight=config.decoder_weight,
      decoder_parallel=config.decoder_parallel,
      distill_weight=config.distill_weight,
    )

  def teach_from(self, config: ConfigDict, total_steps: int) -> int | None:
    if not config.distill_weight:
      return None
    return round(config.distill_after * total_steps)

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


def _check_decoder(config):
  weight, share = config.decoder_weight, config.decoder_parallel
  if not (weight > 0 and 0 <= share <= 1):
    raise ValueError(
      f"decoder_weight is {weight} and decoder_parallel {share}, expected 0 or "
      "more, and a share in [0, 1]"
    )
  _check_trains(config, "decoder_weight", parameters.DECODER_HEAD)


def _check_distillation(config, model):
  weight, after = config.distill_weight, config.distill_after
  if not (weight > 0 and 0 <= after <= 1):
    raise ValueError(
      f"distill_weight is {weight} and distill_after {after}, expected 0 or "
      "more, and a share in [0, 1]"
    )
  if config.ema_decay is None:
    raise ValueError(
      "distill_weight is set, but ema_decay is None; the moving average is the "
      "teacher: set it, as to 0.996"
    )
  if siglip.is_naflex(model) or model.img.posemb != "learn":
    raise ValueError(
      "distill_weight is set, but views need an image tower of one resolution, "
      "with a learned position embedding; set it to 0"
    )
  _check_trains(config, "distill_weight", parameters.MASK_TOKEN)


def _check_trains(config, key, name):
  if not any(re.fullmatch(rule, name) for rule in config.trainable):
    head = name.partition("/")[0]
    raise ValueError(
      f"{key} is set, but config.trainable leaves its head as it is drawn; add "
      f'"{head}/.*" to it, or set {key} to 0'
    )


def make_loss(
  model: Model,
  *,
  loss: str = "sigmoid",
  num_microbatches: int = 1,
  decoder_weight: float = 0.0,
  decoder_parallel: float = 0.5,
  distill_weight: float = 0.0,
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
    decoder_weight: of the loss of model.dec, if there is one; it is the sum
      over the texts of an image, each the mean over its tokens.
    decoder_parallel: share of the captions that it predicts in parallel.
    distill_weight: of the losses of distillation.py, for a model with such
      heads; the loss then takes a teacher, see step.make_step.

  Returns:
    Function of parameters, a batch (image float32[B, H, W, 3], or of a NaFlex
    patches, type, yidx and xidx; text int32[B, T]; _mask bool[B]; with a
    decoder regions and regions_loss int32[B, 2, T], see pairs.Pairs) and a key
    that returns the sum over the images, and measurements: accuracy, the share
    of images whose own text has the largest logit; temperature and bias, the
    factor and the bias of the logits; equal_texts, how many texts of the batch
    are those of an example before them, which count as negatives; with a
    decoder the means contrastive_loss and decoder_loss; with heads of
    distillation the means distill_loss and masked_loss, 0 until it begins.

  Raises:
    ValueError: unknown loss; on tracing, if the batch does not divide into the
      microbatches.
  """
  of_pairs = registry.lookup(contrastive.LOSSES, loss, "loss")

  if model.distill is not None:
    distill = distillation.make(model)

  def embed(params, batch, rng):
    image = batch.get("image")
    if image is None:
      image = tuple(batch[name] for name in _PATCHES)
    zimg, ztxt, out = model.apply(
      {"params": params},
      image,
      batch["text"],
      train=True,
      rngs={"dropout": rng},
    )
    if model.dec is None:
      return zimg, ztxt, jnp.zeros(())
    is_patch = batch["type"] == 1 if "type" in batch else None
    encoded = out["img/encoded"]
    return zimg, ztxt, decoder_loss(params, encoded, is_patch, batch, rng)

  def decoder_loss(params, encoded, is_patch, batch, rng):
    caption = batch["text"][:, None]
    is_end = caption == siglip_tokenizer.SiglipTokenizer.eos_id
    is_before = jnp.cumsum(is_end, axis=2) == is_end  # up to the first eos
    text = jnp.concatenate([caption, batch["regions"]], axis=1)
    learned = jnp.concatenate([is_before, batch["regions_loss"]], axis=1)
    features = model.apply(
      {"params": params},
      encoded,
      is_patch,
      text,
      batch["parallel"],
      train=True,
      rngs={"dropout": jax.random.fold_in(rng, 1)},
      method="decode",
    )
    number, kinds, length = text.shape
    kind = jnp.repeat(jnp.arange(kinds), length)
    return losses.mean_next_token(
      text_decoder.OutputLayer(model.dec),
      {"head": params["dec"]["head"]},
      features,
      text.reshape(number, -1),
      learned.reshape(number, -1),
      batch["_mask"].astype(jnp.float32),
      segment_ids=jnp.broadcast_to(kind, (number, kinds * length)),
    )

  def embed_and_distill(params, batch, rng, **taught):
    found = embed(params, batch, rng)
    if model.distill is None:
      return *found, {}
    return *found, distill(params, batch, rng, **taught)

  def embed_in_microbatches(params, batch, rng, **taught):
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
      return embed_and_distill(params, batch, rng, **taught)

    _, (*found, of_decoder, distilled) = jax.lax.scan(
      lambda params, one: (params, embed_one(params, *one)),
      params,
      (jax.tree.map(split, batch), jax.random.split(rng, num_microbatches)),
    )
    found = [z.swapaxes(0, 1).reshape(-1, z.shape[2]) for z in found]
    sums = jax.tree.map(lambda x: x.sum(axis=0), (of_decoder, distilled))
    return *found, *sums

  def summed_loss(params, batch, rng, **taught):
    if model.dec is not None:
      key = jax.random.fold_in(rng, 2)
      drawn = jax.random.uniform(key, batch["_mask"].shape)
      batch = {**batch, "parallel": drawn < decoder_parallel}
    if model.distill is not None:
      height, width = batch["image"].shape[1:3]
      side = model.img.patch_size
      patches = (height // side) * (width // side)
      key = jax.random.fold_in(rng, 3)
      batch = {**batch, **views.draw(key, len(batch["_mask"]), patches)}
    run = embed_and_distill if num_microbatches == 1 else embed_in_microbatches
    zimg, ztxt, of_decoder, distilled = run(params, batch, rng, **taught)
    _, _, logit = model.apply({"params": params}, None, None)
    t, b = logit["t"][0], logit.get("b", jnp.zeros(1))[0]
    is_real = batch["_mask"]
    total, num_correct = of_pairs(zimg, ztxt, t, b, is_real)
    if "_weight" in batch:
      total *= batch["_weight"][0]
    num_real = jnp.maximum(jnp.sum(is_real, dtype=jnp.float32), 1.0)
    measured = {
      "accuracy": num_correct / num_real,
      "temperature": t,
      "bias": b,
      "equal_texts": contrastive.count_equal(batch["text"], is_real),
    }
    if model.dec is not None or model.distill is not None:
      measured["contrastive_loss"] = total / num_real
    if model.dec is not None:
      measured["decoder_loss"] = of_decoder / num_real
      total += decoder_weight * of_decoder
    if model.distill is not None:
      means = jax.tree.map(lambda x: x / num_real, distilled)
      measured["distill_loss"] = means["local"]
      measured["masked_loss"] = means["masked"]
      measured["averaged"] = {parameters.CENTERS: means["centers"]}
      both = distilled["local"] + distillation.MASKED * distilled["masked"]
      total += distill_weight * both
    return total, measured

  return summed_loss
