"""A SigLIP behind the interface of an engine: it embeds and does not answer."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

import paligemma
from paligemma.models import siglip
from paligemma.serving.request import End, Request, Token


class SiglipEngine:
  """Embeds one picture or text at a time.

  Args:
    model, params: as `load` returns them.
    tokenizer: of the checkpoint.
  """

  adapters = ()
  ready = True

  def __init__(
    self,
    model: siglip.Model,
    params: Mapping[str, Any],
    tokenizer: paligemma.SiglipTokenizer,
  ):
    self._model, self._params, self._tokenizer = model, params, tokenizer
    self._one = threading.Lock()

  def submit(
    self,
    request: Request,
    on_token: Callable[[Token], None],
    on_end: Callable[[End], None],
  ) -> Callable[[], None]:
    """Answers nothing."""
    raise ValueError(
      "the model is a SigLIP, which does not answer, expected /v1/embeddings"
    )

  def embed_images(
    self, images: Sequence[np.ndarray]
  ) -> Float32[np.ndarray, "N E"]:
    """Embeds pictures, uint8[H, W, 3]."""
    with self._one:
      return paligemma.embed_images(
        self._model, self._params, list(images), batch_size=1
      )

  def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
    """Embeds texts."""
    with self._one:
      return paligemma.embed_texts(
        self._model, self._params, self._tokenizer, list(texts), batch_size=1
      )

  def counts(self) -> Mapping[str, int]:
    """Counts nothing."""
    return {}

  def close(self, seconds: float) -> None:
    """Has nothing to end."""
