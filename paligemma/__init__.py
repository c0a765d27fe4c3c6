"""PaliGemma and SigLIP 1 and 2 in JAX: load, ask, fine-tune, evaluate, save."""

from etils import epy

__version__ = "0.2.0"

# A name is imported when it is first used: data workers and
# `paligemma --help` need no JAX.
with epy.lazy_api_imports(globals()):
  from paligemma.api import (
    classify,
    draw,
    embed_images,
    embed_texts,
    generate,
    parse,
  )
  from paligemma.checkpoints.lora.adapters import load_adapter, save_adapter
  from paligemma.data.siglip_tokenizer import SiglipTokenizer
  from paligemma.data.tokenizer import Tokenizer
  from paligemma.io import load, load_mask_codec, save
  from paligemma.lora.apply import enable_lora, merge_lora

__all__ = [
  "SiglipTokenizer",
  "Tokenizer",
  "classify",
  "draw",
  "embed_images",
  "embed_texts",
  "enable_lora",
  "generate",
  "load",
  "load_adapter",
  "load_mask_codec",
  "merge_lora",
  "parse",
  "save",
  "save_adapter",
]
