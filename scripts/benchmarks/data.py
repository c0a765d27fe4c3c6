"""The input pipeline of one core: decode, resize, tokenize."""

import io
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paligemma.data import preprocess, tokenizer
from scripts.benchmarks import contest

_SIZE = (640, 480)
_JPEG = "quality 85, 4:2:0"
_IMAGES = 16
_WORDS = "answer en what does the sign on the left say"


def measure(config: ConfigDict, *, runs: int) -> dict[str, Any]:
  """What `scripts.benchmark data` prints."""
  row = preprocess.Preprocess(
    tokenizer.Tokenizer(config.tokenizer),
    res=config.res,
    text_len=config.text_len,
    train=True,
    resize=config.train.resize,
  )
  images = [_image(seed) for seed in range(_IMAGES)]
  rng = np.random.default_rng(0)

  def ours():
    for data in images:
      row({"image": data, "prefix": _WORDS, "suffix": "exit"}, rng)

  def jpeg_alone():
    for data in images:
      np.asarray(Image.open(io.BytesIO(data)))

  contestants = {"ours": ours, "floor": jpeg_alone}
  rate = contest.rates(contestants, _IMAGES, runs, clock=time.process_time)
  figure = {"dtype": "float32", "floor": rate["floor"]["median"]}
  return {
    "what": "data",
    "hardware": contest.hardware(),
    "images_per_s": rate["ours"] | figure,
    "jpeg": f"{_SIZE[0]}x{_SIZE[1]}, {_JPEG}, {len(images[0])} bytes",
    "res": config.res,
  }


def _image(seed):
  """A JPEG of smooth shapes with some grain, as large as a photograph's."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (15, 20, 3), np.uint8)
  smooth = Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC)
  grain = rng.normal(0, 6, (_SIZE[1], _SIZE[0], 1))
  pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=85, subsampling="4:2:0")
  return file.getvalue()
