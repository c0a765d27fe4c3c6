"""All captions of a source before the first step; no image is opened."""

import collections
import itertools

import numpy as np

from paligemma import messages
from paligemma.data import pairs, sources
from trainers.datasets import Dataset, Findings, TokenCounts


def read(dataset: Dataset) -> Findings:
  """Reads all examples of a dataset whose preprocess is a pairs.Pairs.

  They are complete unless the source cannot give its texts alone, or ops need
  the image.
  """
  found, images_of = Findings(is_complete=True), collections.Counter()
  texts = sources.without_images(dataset.source)
  if texts is None:
    return Findings()
  for index, example in enumerate(itertools.islice(texts, dataset.limit)):
    try:
      if isinstance(example, ValueError):
        raise example
      example = dataset.preprocess.apply_ops(
        dataset.indexed(example, index), np.random.default_rng(index)
      )
      found.counts[index], written = count(dataset, example)
    except ValueError as error:
      if dataset.preprocess.ops:
        return Findings()
      found.errors[index] = str(error)
      continue
    images_of.update(set(written))
  if several := [text for text, images in images_of.items() if images > 1]:
    found.notes.append(
      f"{len(several)} of {len(images_of)} captions belong to several images, "
      f'such as "{messages.shown(several[0])}"; two of those in a batch count '
      "as wrong for each other, see equal_texts"
    )
  return found


def count(dataset: Dataset, example: pairs.Example) -> tuple:
  """The tokens of the longest caption of an example, and all its captions.

  An evaluator reads the images alone.

  Raises:
    ValueError: a caption cannot be used.
  """
  through = dataset.preprocess
  if not through.train:
    return TokenCounts(None, None, None, False), []
  written = pairs.captions(example)
  rows = [through.tokenize(example, text) for text in written]
  regions = pairs.read_regions(example) if through.regions else ()
  of_regions = [through.tokenize_region(example, x) for x in regions]
  tok = through.tokenizer
  lengths = [
    int((row["text"] != tok.pad_id).sum()) + (tok.pad_id == tok.eos_id)
    for row in rows
  ]
  cut = any(row.get("truncated", False) for row in rows + of_regions)
  return TokenCounts(None, max(lengths), None, cut), written
