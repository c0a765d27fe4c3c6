"""Embeddings of pictures, kept by what they show."""

import collections
import functools
import hashlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from paligemma import registry, tree
from paligemma.data import image as image_lib
from paligemma.data import pictures
from paligemma.decoding import decode
from paligemma.lora import apply, gather
from paligemma.models import paligemma as paligemma_model
from paligemma.serving import sizes


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
    gray = np.zeros((self._res, self._res, 3), np.float32)
    for i, shares in enumerate(self._shares):
      if not shares or i == 0:
        for count in (1, sizes.TOGETHER):
          tokens = _embed(*self._towers[i], np.stack([gray] * count))
    return tokens[0]

  def embed(
    self, wanted: Sequence[tuple[Picture, int]]
  ) -> list[Float[Array, "N D"]]:
    """Returns the tokens of pictures; from any thread.

    It returns before they are there.

    Args:
      wanted: Pictures and adapters, indices into `adapted`.
    """
    keys = [(0 if self._shares[i] else i, x.digest) for x, i in wanted]
    found, missing = {}, collections.defaultdict(dict)
    with self._lock:
      for key, (picture, _) in zip(keys, wanted, strict=True):
        if key in self._kept:
          self._kept.move_to_end(key)
          found[key] = self._kept[key]
        else:
          missing[key[0]][key] = picture.pixels
      new = sum(map(len, missing.values()))
      self.misses += new
      self.hits += len(keys) - new
    for tower, pixels in missing.items():
      for i in range(0, len(pixels), sizes.TOGETHER):
        some = [*pixels][i : i + sizes.TOGETHER]
        batch = np.stack(sizes.padded([pixels[key] for key in some]))
        found |= zip(some, _embed(*self._towers[tower], batch), strict=False)
    with self._lock:
      for key in (key for some in missing.values() for key in some):
        if key not in self._kept:
          self._kept[key] = found[key]
          self._bytes += found[key].nbytes
      while self._bytes > self._max_bytes:
        _, oldest = self._kept.popitem(last=False)
        self._bytes -= oldest.nbytes
    return [found[key] for key in keys]


@functools.partial(jax.jit, static_argnames="model")
def _embed(model, params, pixels):
  return tuple(decode.embed_images(model, params, pixels))
