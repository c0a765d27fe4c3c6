"""What is measured: a model with random weights, and a batch of noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paligemma import init
from trainers import command_line
from trainers.plan import Plan

# A model that two cores of a CPU train at some steps a second, with the whole
# vocabulary of PaliGemma.
BENCH_CONFIG = (
  "configs/transfers/forkme.py:"
  "variant=paligemma_3b,res=224,text_len=64,batch_size=4,"
  "tokenizer=paligemma/assets/tiny_tokenizer.model"
)
# It fits: nothing is recomputed, on neither side.
_LAYERS = {"remat_policy": "none"}
BENCH_IMG = dict(width=384, depth=6, mlp_dim=1536, num_heads=6, **_LAYERS)
BENCH_LLM = dict(
  **dict(width=512, depth=6, mlp_dim=4096, num_heads=8, num_kv_heads=1),
  **dict(head_dim=64, **_LAYERS),
)
PREFIX = 16


def read_config(spec: str | None, dtype: str) -> ConfigDict:
  """The config of FILE or FILE:ARGUMENT, or None for the bench shape.

  Products and what is frozen are in `dtype`; the run has no schedule and no
  clipping.
  """
  config = command_line.load_config(spec or BENCH_CONFIG)
  if spec is None:
    config.model.img.update(BENCH_IMG)
    config.model.llm.update(BENCH_LLM)
  config.model.dtype = config.frozen_dtype = dtype
  config.schedule = ((".*", dict(decay="constant")),)
  config.clip_norm = None
  if config.text_len <= PREFIX:
    raise ValueError(
      f"text_len {config.text_len}, expected more than the {PREFIX} tokens of "
      "the prefix"
    )
  return config


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
  """A copy of a config with other values."""
  config = config.copy_and_resolve_references()
  config.update(values)
  return config


def make_plan(config: ConfigDict) -> Plan:
  """The plan of a run, as the trainer makes it, without the config's data."""
  return Plan(config, examples_per_epoch=config.batch_size)


def trained_parameters(plan: Plan) -> tuple[dict[str, Any], ...]:
  """Random parameters as training holds them: flat, (trainable, frozen)."""
  drawn = _draw(plan, plan.model, {**plan.trainable, **plan.frozen})
  parts = plan.trainable, plan.frozen
  return tuple({name: drawn[name] for name in part} for part in parts)


def served_parameters(plan: Plan) -> dict[str, Any]:
  """Random parameters as decoding holds them: flat, in the stored dtype."""
  return _draw(plan, plan.served_model, plan.decode_arguments()[0])


def batch(config: ConfigDict, vocab_size: int) -> dict[str, np.ndarray]:
  """Noise, laid out as a batch of training on the host.

  All text_len tokens are there, the first PREFIX of them the prompt, and each
  of the others is supervised. The one after them, which the step cuts off its
  input, is padding: so both sides read and predict the same tokens.
  """
  rng = np.random.default_rng(0)
  batch_size, length, res = config.batch_size, config.text_len + 1, config.res
  position = np.broadcast_to(np.arange(length), (batch_size, length))
  valid = position < config.text_len
  answer = position >= PREFIX
  text = rng.integers(3, vocab_size, (batch_size, length), np.int32)
  image = rng.uniform(-1, 1, (batch_size, res, res, 3))
  return {
    "image": image.astype(np.float32),
    "text": np.where(valid, text, 0),
    "mask_ar": answer.astype(np.int32),
    "mask_input": valid,
    "mask_loss": (valid & answer).astype(np.int32),
    "_mask": np.ones(batch_size, bool),
  }


def prompts(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The prompts alone, as decoding takes them."""
  keys = ("text", "mask_ar", "mask_input")
  texts = {key: batch[key][:, :PREFIX] for key in keys}
  return {"image": batch["image"], **texts}


def _draw(plan, model, abstract):
  return init.random_params(model, plan.config.res, abstract, seed=0)
