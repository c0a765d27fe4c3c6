"""The input pipeline of one core: decode, resize, tokenize."""

import io
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paligemma.data import batches, preprocess, tokenizer
from scripts.benchmarks import contest

_SIZE = (640, 480)
_JPEG = "quality 85, 4:2:0"
_IMAGES = 16
_WORDS = "answer en what does the sign on the left say"
_BATCHES = 128  # timed for each number of workers


class _Source(list):
  """Examples with one of the images each, as many as a data set has."""

  def __len__(self):
    return 100_000  # shuffling a handful takes longer than reading them

  def __getitem__(self, index):
    image = super().__getitem__(index % _IMAGES)
    return _example(image) | {"_where": f"image {index % _IMAGES}"}


def measure(
  config: ConfigDict, *, runs: int, workers: int | None = None
) -> dict[str, Any]:
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
      row(_example(data), rng)

  def jpeg_alone():
    for data in images:
      np.asarray(Image.open(io.BytesIO(data)))

  contestants = {"ours": ours, "floor": jpeg_alone}
  rate = contest.rates(contestants, _IMAGES, runs, clock=time.process_time)
  figure = {"dtype": "float32", "floor": rate["floor"]["median"]}
  counts = {1, workers} if workers else ()
  return {
    "what": "data",
    "hardware": contest.hardware(),
    "images_per_s": rate["ours"] | figure,
    "workers": {
      str(n): contest.spread([_rate(images, row, n) for _ in range(runs)])
      for n in sorted(counts)
    },
    "jpeg": f"{_SIZE[0]}x{_SIZE[1]}, {_JPEG}, {len(images[0])} bytes",
    "res": config.res,
  }


def _example(data):
  return {"image": data, "prefix": _WORDS, "suffix": "exit"}


def _rate(images, row, workers):
  """Images per second of so many worker processes, once all have begun."""
  read = batches.train(
    [(_Source(images), 1)],
    row,
    batch_size=_IMAGES,
    seed=0,
    num_workers=workers,
  )
  for _ in range(4 * workers):  # more than they read ahead
    next(read)
  start = time.perf_counter()
  for _ in range(_BATCHES * workers):
    next(read)
  seconds = time.perf_counter() - start
  read.close()
  return _BATCHES * workers * _IMAGES / seconds


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
