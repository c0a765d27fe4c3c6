"""PaliGemma 1 and 2 in JAX: load, ask, fine-tune, evaluate, save."""

from paligemma.adapters import (
  enable_lora,
  load_adapter,
  merge_lora,
  save_adapter,
)
from paligemma.api import generate
from paligemma.data.tokenizer import Tokenizer
from paligemma.interchange import load, load_mask_codec, save

__all__ = [
  "Tokenizer",
  "enable_lora",
  "generate",
  "load",
  "load_adapter",
  "load_mask_codec",
  "merge_lora",
  "save",
  "save_adapter",
]
