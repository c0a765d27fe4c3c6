"""Embeddings of pictures, kept by what they show."""

import collections
import hashlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32

from paligemma import registry, tree
from paligemma.data import image as image_lib
from paligemma.data import pictures
from paligemma.decoding import decode
from paligemma.lora import apply, gather
from paligemma.models import paligemma as paligemma_model


class Picture(NamedTuple):
  """A picture as the image tower reads it.

  Attributes:
    digest: Of the pixels.
    pixels: In [-1, 1].
  """

  digest: bytes
  pixels: Float32[np.ndarray, "res res 3"]


class Images:
  """Runs image towers, and keeps what they return for the next question.

  Args:
    adapted: As of lora.gather.stack. An adapter beside the decoder alone shares
      the embeddings of the first one.
    max_bytes: Of the embeddings that are kept; the ones used last stay.

  Attributes:
    hits, misses: How often a picture was there, and was not.
  """

  def __init__(self, adapted: Sequence[gather.Adapted], max_bytes: int):
    self._max_bytes = max_bytes
    self._towers = [
      (model, {"img": params["img"]}) for model, params in adapted
    ]
    model, params = self._towers[0]
    adapts = [
      any(apply.is_adapter(tree.flatten(x)).values()) for _, x in self._towers
    ]
    self._shares = [not (adapts[0] or own) for own in adapts]
    self._res = paligemma_model.resolution(model, params)
    self._to_model = registry.lookup(
      image_lib.PREPROCESSING,
      model.metadata.get("preprocessing", "reference"),
      "preprocessing",
    )
    self._kept = collections.OrderedDict()
    self._bytes = 0
    self._lock = threading.Lock()
    self.hits = self.misses = 0

  @property
  def tokens(self) -> int:
    """Of a picture."""
    model, _ = self._towers[0]
    return (self._res // model.img.patch_size) ** 2

  def read(self, picture: pictures.Picture, where: str) -> Picture:
    """Resizes a picture as the checkpoint says.

    Raises:
      ValueError: As pictures.pixels.
    """
    pixels = pictures.pixels(picture, where=where)
    pixels = self._to_model(pixels, (self._res, self._res))
    return Picture(hashlib.blake2b(pixels.tobytes()).digest(), pixels)

  def warm_up(self) -> Float[Array, "N D"]:
    """Compiles the towers; returns the tokens of a gray picture."""
    gray = Picture(b"", np.zeros((self._res, self._res, 3), np.float32))
    for i, shares in enumerate(self._shares):
      if i and not shares:
        self._run(gray, i)
    return self._run(gray, 0)

  def embed(self, picture: Picture, adapter: int = 0) -> Float[Array, "N D"]:
    """Returns the tokens of a picture; from any thread.

    It returns before they are there. The adapter is an index into `adapted`.
    """
    tower = 0 if self._shares[adapter] else adapter
    key = tower, picture.digest
    with self._lock:
      if key in self._kept:
        self.hits += 1
        self._kept.move_to_end(key)
        return self._kept[key]
      self.misses += 1
    embedded = self._run(picture, tower)
    with self._lock:
      if key not in self._kept:
        self._kept[key] = embedded
        self._bytes += embedded.nbytes
      while self._bytes > self._max_bytes:
        _, oldest = self._kept.popitem(last=False)
        self._bytes -= oldest.nbytes
    return embedded

  def _run(self, picture, tower):
    model, params = self._towers[tower]
    return decode.embed_images(model, params, picture.pixels[None])[0]
