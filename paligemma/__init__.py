"""PaliGemma 1 and 2 in JAX: load, ask, fine-tune, evaluate, save."""

from paligemma.api import generate
from paligemma.data.tokenizer import Tokenizer
from paligemma.interchange import load, load_mask_codec, save

__all__ = ["Tokenizer", "generate", "load", "load_mask_codec", "save"]
