"""transformers with PyTorch, given the same weights and the same batch.

The only module of ours outside the parity tests that imports them, and only
when a command line asks for it. Both dtypes run as `from_pretrained` makes
them, with fused attention and as many threads as there are cores; the loss is
the one that the model computes from labels.
"""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

import paligemma
from paligemma import tree
from paligemma.models.paligemma import Model

DTYPES = ("float32", "bfloat16")
VERSION = f"transformers {transformers.__version__}, torch {torch.__version__}"
# What trains, by the key of configs/tuning.py: what their names begin with.
_TRAINS = {
  (r"llm/layers/(\d+/)?attn/.*",): ("model.language_model.", ".self_attn."),
  (".*",): ("", ""),
}
_IGNORED = -100


class Trainer:
  """Plain SGD on the parameters that train on our side."""

  def __init__(self, model, batch, *, learning_rate, trains):
    self._model = model.train()
    start, inside = trains
    for name, parameter in model.named_parameters():
      parameter.requires_grad_(name.startswith(start) and inside in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    self._optimizer = torch.optim.SGD(trained, lr=learning_rate)
    self.num_trained = sum(p.numel() for p in trained)
    text = {
      key: batch[key][:, :-1]
      for key in ("text", "mask_ar", "mask_input", "mask_loss")
    }
    self._inputs = _inputs(model, batch["image"], **text)
    ids = self._inputs["input_ids"]
    supervised = _behind_image(text["mask_loss"], ids, 0).bool()
    self._inputs["labels"] = torch.where(supervised, ids, _IGNORED)

  def steps(self, count: int) -> list[float]:
    """Takes steps; returns the loss of each."""
    losses = []
    for _ in range(count):
      loss = self._model(**self._inputs).loss
      loss.backward()
      self._optimizer.step()
      self._optimizer.zero_grad(set_to_none=True)
      losses.append(loss.item())
    return losses


class Decoder:
  """Greedy text of one length after a prompt."""

  def __init__(self, model, prompts, *, new_tokens):
    self._model = model.eval()
    self._inputs = _inputs(model, **prompts)
    self._length = new_tokens

  @torch.inference_mode()
  def generate(self) -> np.ndarray:
    """Returns the decoded ids, int[B, new_tokens]."""
    ids = self._model.generate(
      **self._inputs,
      max_new_tokens=self._length,
      min_new_tokens=self._length,
      do_sample=False,
      use_cache=True,
    )
    return ids[:, self._inputs["input_ids"].shape[1] :].numpy()


def trainers(
  config: ConfigDict,
  model: Model,
  params: Mapping[str, Any],
  batch: Mapping[str, np.ndarray],
) -> dict[str, Trainer]:
  """Dtype -> Trainer of our model, its flat parameters and a batch.

  Raises:
    ValueError: what trains is neither attention nor everything.
  """
  trains = _TRAINS.get(tuple(config.trainable))
  if trains is None:
    raise ValueError(
      f"trainable is {tuple(config.trainable)}, the peer knows tune=attention "
      "and tune=full"
    )
  return {
    dtype: Trainer(
      theirs, batch, learning_rate=config.learning_rate, trains=trains
    )
    for dtype, theirs in _models(model, params).items()
  }


def decoders(
  model: Model,
  params: Mapping[str, Any],
  prompts: Mapping[str, np.ndarray],
  new_tokens: int,
) -> dict[str, Decoder]:
  """Dtype -> Decoder of our model, its flat parameters and prompts."""
  return {
    dtype: Decoder(theirs, prompts, new_tokens=new_tokens)
    for dtype, theirs in _models(model, params).items()
  }


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
    paligemma.save(folder, model, nested, format="huggingface")
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
