"""Examples as the model sees them: images, tokens and located objects."""

import dataclasses
import time
from typing import Any

import numpy as np

from paligemma.data import example_fields, location, packing
from paligemma.data import objects as objects_lib
from trainers.tasks.datasets import Dataset, Texts

MEASURED = 1000  # examples of a dataset whose texts are measured, at most
SECONDS = 20.0  # that it may take, as where ops decode videos
_NO_TEXTS = Texts([], [], 0)


@dataclasses.dataclass(frozen=True)
class Sample:
  """An example of a dataset, or a row of its texts."""

  index: int  # its position in the source
  where: str  # the file and line that errors name
  problem: str = ""  # why there is nothing else, "" if nothing is wrong
  frames: tuple[np.ndarray, ...] = ()  # uint8[H, W, 3] of each image
  texts: Texts = _NO_TEXTS
  # in the first two texts, such as prompt and answer, in pixels of a frame
  objects: tuple[objects_lib.Object, ...] = ()
  malformed: tuple[str, ...] = ()  # what is wrong with further ones


def draw(dataset: Dataset, num: int) -> list[int]:
  """Positions of at most so many random examples or rows, always the same."""
  if dataset.rows is not None:
    dataset = dataclasses.replace(dataset, source=dataset.rows)
  return sorted(dataset.draw(num))


def look(
  dataset: Dataset,
  tok: Any,
  index: int,
  decode: objects_lib.DecodeMasks | None = None,
) -> Sample:
  """One example, prepared by the ops and preprocessing of a run.

  Objects have masks where there is a `decode`. Of texts that share rows it is
  a row.
  """
  where = f"{dataset.name} [{index}]"
  rng = np.random.default_rng(index)
  try:
    if dataset.rows is not None:
      texts = dataset.rows[index]
      row = packing.Preprocess(dataset.preprocess)(texts, rng)
      prepared = {}
      where = f"row of {len(texts['texts'])} texts"
    else:
      example = dataset.example(index)
      where = example_fields.where(example)
      prepared = dataset.prepare(example, index)
      # Random ops choose the same again.
      row = dataset.preprocess(example, rng)
  except ValueError as error:
    return Sample(index, where, problem=str(error))
  shown, frames = dataset.show(tok, prepared, row), dataset.images(row)
  located = [text for _, text in shown.labelled[:2]] if frames else []
  size = frames[0].shape[:2] if frames else (1, 1)
  return Sample(
    index,
    where,
    frames=tuple(map(_pixels, frames)),
    texts=shown,
    objects=tuple(
      obj
      for text in located
      for obj in objects_lib.parse(text, size, decode=decode)
    ),
    malformed=tuple(
      f"{obj.label or 'object'}: {obj.problem}"
      for text in located
      for obj in location.parse(text, size)
      if obj.box and obj.problem
    ),
  )


def measure(
  dataset: Dataset, tok: Any, count: int = MEASURED
) -> tuple[np.ndarray, int]:
  """Measures so many examples at most, whether they fit or not.

  No image is decoded but by ops.

  Returns:
    int[examples, rooms], tokens of what dataset.rooms names; and the number of
    examples that could not be read.
  """
  lengths, bad = [], 0
  end = time.perf_counter() + SECONDS
  for index in dataset.draw(count):
    if time.perf_counter() > end:
      break
    try:
      prepared = dataset.prepare(dataset.example(index), index)
      lengths.append(dataset.measure(tok, prepared))
    except ValueError:
      bad += 1
  return np.array(lengths, int).reshape(len(lengths), len(dataset.rooms)), bad


def _pixels(image):
  """uint8 of an image in [-1, 1]."""
  return np.clip((image + 1) * 127.5, 0, 255).round().astype(np.uint8)
