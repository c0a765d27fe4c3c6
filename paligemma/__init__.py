"""PaliGemma 1 and 2 in JAX: load, ask, fine-tune, evaluate."""

from paligemma.api import generate, load
from paligemma.data.tokenizer import Tokenizer

__all__ = ["Tokenizer", "generate", "load"]
