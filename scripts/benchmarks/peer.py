"""transformers with PyTorch, given the same weights and the same batch.

The only module of ours outside the parity tests that imports them, and only
when a command line asks for it. Both dtypes run as `from_pretrained` makes
them, with fused attention and as many threads as there are cores; the loss is
the one that the model computes from labels.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from paligemma import io, tree
from paligemma.checkpoints.huggingface import layout
from paligemma.models.paligemma import Model

DTYPES = ("float32", "bfloat16")
VERSION = f"transformers {transformers.__version__}, torch {torch.__version__}"
_IGNORED = -100  # a label without a loss


def trainers(
  config: ConfigDict,
  model: Model,
  params: Mapping[str, Any],
  batch: Mapping[str, np.ndarray],
) -> dict[str, Callable[[int], list[float]]]:
  """Dtype -> a function that takes steps and returns the loss of each.

  They are steps of plain SGD on what trains on our side.

  Args:
    config: of the run.
    model, params: ours; parameters are flat.
    batch: of training, see subject.batch.

  Raises:
    ValueError: something that trains is not in transformers' PaliGemma.
  """
  fields = io.model_fields(model)
  num_positions = (config.res // model.img.patch_size) ** 2
  layers = layout.entries(fields["img"], fields["llm"], num_positions)
  is_trained = tree.match_any(config.trainable, {x.leaf for x in layers})
  keys = [x.key.partition(".") for x in layers if is_trained[x.leaf]]
  return {
    dtype: _trainer(theirs, keys, config.learning_rate, batch)
    for dtype, theirs in _models(model, params).items()
  }


def _trainer(model, keys, learning_rate, batch):
  for name, parameter in model.train().named_parameters():
    parameter.requires_grad_(
      any(
        layout.TOWERS[tower] in name and name.endswith(f".{rest}")
        for tower, _, rest in keys
      )
    )
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.SGD(trained, lr=learning_rate)
  text = {
    key: batch[key][:, :-1]
    for key in ("text", "mask_ar", "mask_input", "mask_loss")
  }
  inputs = _inputs(model, batch["image"], **text)
  ids = inputs["input_ids"]
  supervised = _behind_image(text["mask_loss"], ids, 0).bool()
  inputs["labels"] = torch.where(supervised, ids, _IGNORED)

  def steps(count):
    losses = []
    for _ in range(count):
      loss = model(**inputs).loss
      loss.backward()
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
      losses.append(loss.item())
    return losses

  return steps


def decoders(
  model: Model,
  params: Mapping[str, Any],
  prompts: Mapping[str, np.ndarray],
  new_tokens: int,
) -> dict[str, Callable[[], np.ndarray]]:
  """Dtype -> a function that decodes greedily: int[B, new_tokens].

  Args:
    model, params: ours; parameters are flat.
    prompts: see subject.prompts.
    new_tokens: of every answer.
  """
  return {
    dtype: _decoder(theirs.eval(), prompts, new_tokens)
    for dtype, theirs in _models(model, params).items()
  }


def _decoder(model, prompts, new_tokens):
  inputs = _inputs(model, **prompts)

  @torch.inference_mode()
  def generate():
    ids = model.generate(
      **inputs,
      max_new_tokens=new_tokens,
      min_new_tokens=new_tokens,
      do_sample=False,
      use_cache=True,
    )
    return ids[:, -new_tokens:].numpy()

  return generate


def _models(model, params):
  """Dtype -> their model with our weights."""
  if jax.default_backend() != "cpu":
    raise ValueError("--peer transformers is measured on a CPU alone")
  torch.set_num_threads(os.cpu_count())
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder) / "weights"
    nested = tree.unflatten(params)
    io.save(folder, model, nested, format="huggingface")
    return {
      dtype: transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
      )
      for dtype in DTYPES
    }


def _inputs(model, image, text, mask_ar, mask_input, **_):
  """Our batch under their names; image tokens are among their ids."""
  vision = model.config.vision_config
  rows = len(text)
  image_tokens = (vision.image_size // vision.patch_size) ** 2
  ids = np.full((rows, image_tokens), model.config.image_token_id)
  ids = torch.tensor(np.concatenate([ids, text], axis=1)).long()
  return {
    "input_ids": ids,
    "pixel_values": torch.tensor(image.transpose(0, 3, 1, 2)).to(model.dtype),
    "attention_mask": _behind_image(mask_input, ids, 1),
    "token_type_ids": _behind_image(mask_ar, ids, 0),
  }


def _behind_image(mask, ids, value):
  """Extends a mask of the text to their sequence, where images get `value`."""
  width = [(0, 0), (ids.shape[1] - mask.shape[1], 0)]
  mask = np.pad(mask.astype(np.int64), width, constant_values=value)
  return torch.tensor(mask)
