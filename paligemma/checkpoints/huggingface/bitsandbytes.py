"""Decoders in nf4 as transformers reads them, with bitsandbytes.

    ....down_proj.weight                                uint8[n / 2, 1]
    ....down_proj.weight.absmax                         float32[n / 64]
    ....down_proj.weight.quant_map                      float32[16]
    ....down_proj.weight.quant_state.bitsandbytes__nf4  uint8[...], JSON

A block is BLOCK numbers of a weight [outputs, inputs] in C order; the first of
two numbers is in the upper half of a byte. The 16 values and the rounding are
those of quantization.py, where a scale is for as many inputs of one output: if
their number is divisible by BLOCK, both hold the same. What was rounded once,
and is written out in full precision, is rounded to the same again, as the
largest number of a block is its scale.

The image tower and the table are in full precision, rounded as here.

Source: bitsandbytes 0.50, functional.py (QuantState) and
backends/default/ops.py; transformers 5.23, quantizers/quantizer_bnb_4bit.py.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from paligemma import quantization
from paligemma.checkpoints.leaves import Computed, Tensor
from paligemma.parameters import LAYERS

BLOCK = 64
_MATRIX = re.compile(r"text\.layers\.\d+\..*_proj\.weight")
_LLM = f"{LAYERS['llm'][0]}/"
_REASONS = {
  "int8": "its int8 rounds what matrices are multiplied with, too, so answers "
  "are others",
  "int4": "it has no 4-bit integers",
}
# From the start of a name, which has "model." since transformers 4.52.
_SKIPPED = (
  *("vision_tower", "model.vision_tower", "lm_head"),
  *("multi_modal_projector", "model.multi_modal_projector"),
)


def check(arrays: Mapping[str, Any], kind: str) -> None:
  """Checks that a kind means the same to bitsandbytes, and to every matrix.

  Args:
    arrays: Name -> anything with a shape, in full precision.
    kind: One of quantization.KINDS.

  Raises:
    ValueError: It does not; says why.
  """
  if reason := _REASONS.get(kind):
    raise ValueError(
      f"a Hugging Face folder has no form for {kind}: of bitsandbytes, "
      f'{reason}; give "nf4", write an npz or Orbax, or leave quantize out'
    )
  if not any(name.startswith(_LLM) for name in arrays):
    raise ValueError(
      f"there is no decoder, of which alone a Hugging Face folder holds {kind},"
      " leave quantize out"
    )
  for name, array in arrays.items():
    if not name.startswith(_LLM) or quantization.kind_for(name, kind) != kind:
      continue
    scale = quantization.shapes(name, array.shape, kind)[quantization.SCALE]
    count = math.prod(array.shape) // math.prod(scale.shape)
    if count != BLOCK:
      raise ValueError(
        f"{name}: {kind} has a scale for every {count} inputs here, but for "
        f"every {BLOCK} in bitsandbytes; write an npz or Orbax, or leave "
        "quantize out"
      )


def config(dtype: str) -> dict[str, Any]:
  """Returns quantization_config of config.json.

  Args:
    dtype: In which transformers computes.
  """
  return {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": dtype,
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_skip_modules": list(_SKIPPED),
  }


def is_matrix(key: str) -> bool:
  """Whether a tensor of huggingface/layout.py is a matrix of the decoder."""
  return bool(_MATRIX.fullmatch(key))


def pack(tensor: Tensor, dtype: str) -> dict[str, Tensor]:
  """Returns what stands for a matrix, by what follows its name.

  Args:
    tensor: In float32.
    dtype: In which transformers computes.
  """
  size = math.prod(tensor.shape)
  state = {
    "quant_type": "nf4",
    "blocksize": BLOCK,
    "dtype": dtype,
    "shape": list(tensor.shape),
  }
  state = np.frombuffer(json.dumps(state).encode(), np.uint8)

  @functools.cache
  def rounded():
    blocks = np.asarray(tensor[...], np.float32).reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1)
    scaled = blocks / np.where(largest, largest, 1)[:, None]
    # The nearest value, the lower of two that are as near.
    middles = (_values()[1:] + _values()[:-1]) / 2
    codes = np.searchsorted(middles, scaled).astype(np.uint8)
    first, second = codes.reshape(-1, 2).T
    return (first << 4 | second)[:, None], largest

  def part(shape, dtype, number):
    return Computed(shape, np.dtype(dtype), lambda i: rounded()[number][i])

  return {
    "": part((size // 2, 1), np.uint8, 0),
    ".absmax": part((size // BLOCK,), np.float32, 1),
    ".quant_map": _values(),
    ".quant_state.bitsandbytes__nf4": state,
  }


@functools.cache
def _values():
  """float32[16]: what the codes stand for."""
  both = np.arange(16, dtype=np.uint8).reshape(2, 8)
  found = quantization.dequantize(
    {
      "nf4": (both[0] | both[1] << 4)[None],
      quantization.SCALE: np.ones((1, 1), np.float32),
    },
    np.float32,
  )
  return np.asarray(found).reshape(16)
