"""Images with captions before the first step; all captions are read."""

import collections
import dataclasses
import functools
import itertools

import numpy as np

from paligemma import messages
from paligemma.data import naflex, pairs, preprocess, sources
from paligemma.data.example_fields import Example
from paligemma.data.sequence import Arrays
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from trainers.tasks.datasets import Dataset, Findings, Texts, Token, TokenCounts

_LONG = 1 << 12  # tokens; no caption is longer


@dataclasses.dataclass(frozen=True)
class CaptionDataset(Dataset):
  """Pictures with one or several captions; an evaluator may read none.

  Attributes:
    reader: an op of an evaluator that reads what else it needs; None: nothing.
  """

  preprocess: pairs.Pairs
  reader: preprocess.Op | None = None

  def read(self, tok: SiglipTokenizer) -> Findings:
    """As Dataset."""
    del tok  # that of the preprocess
    return self._read[0]

  @functools.cached_property
  def _read(self):
    """All findings, and how many images have each caption."""
    found, images_of = Findings(is_complete=True), collections.Counter()
    texts = sources.without_images(self.source)
    if texts is None:
      return Findings(), images_of
    tok = self.preprocess.tokenizer
    for index, example in enumerate(itertools.islice(texts, self.limit)):
      try:
        if isinstance(example, ValueError):
          raise example
        example = self.prepare(self.indexed(example, index), index)
        found.counts[index] = self.count(tok, example)
        images_of.update(set(self._captions(example)))
      except ValueError as error:
        if self.preprocess.ops:
          return Findings(), images_of
        found.errors[index] = str(error)
    if several := [text for text, images in images_of.items() if images > 1]:
      found.notes.append(
        f"{len(several)} of {len(images_of)} captions belong to several "
        f'images, such as "{messages.shown(several[0])}"; two of those in a '
        "batch count as wrong for each other, see equal_texts"
      )
    return found, images_of

  def _captions(self, prepared):
    return pairs.captions(prepared) if self.preprocess.train else []

  def count(self, tok: SiglipTokenizer, prepared: Example) -> TokenCounts:
    """As Dataset: the longest caption of an example."""
    if self.reader is not None:
      self.reader(prepared, np.random.default_rng(0))
    rows = [
      self.preprocess.tokenize(prepared, text)
      for text in self._captions(prepared)
    ]
    longest = max((_length(tok, row["text"]) for row in rows), default=None)
    through = self.preprocess
    if through.train and through.regions:
      regions = pairs.read_regions(prepared)
      rows += [through.tokenize_region(prepared, x) for x in regions]
    cut = any(row.get("truncated", False) for row in rows)
    return TokenCounts(None, longest, None, cut)

  def show(self, tok: SiglipTokenizer, prepared: Example, row: Arrays) -> Texts:
    """As Dataset: all captions, and the tokens of the one that was drawn."""
    if not self.preprocess.train:
      hidden = lambda key: key.startswith("_") or key == "image"  # noqa: E731
      fields = [(k, str(x)) for k, x in prepared.items() if not hidden(k)]
      return Texts(fields, [], 0)
    labelled, cut = [], " (cut to fit)" if row.get("truncated", False) else ""
    for text in self._captions(prepared):
      is_drawn = np.array_equal(
        self.preprocess.tokenize(prepared, text)["text"], row["text"]
      )
      label = f"caption, drawn{cut}" if is_drawn else "caption"
      if (images := self._read[1][text]) > 1:
        label += f", of {images} images"
      labelled.append((label, text))
      if is_drawn and (canonical := tok.canonicalize(text)) != text:
        labelled.append(("read as", canonical))
    length = _length(tok, row["text"])
    pieces = [
      Token("<eos>" if i == tok.eos_id else tok.decode([i]), "caption")
      for i in row["text"][:length].tolist()
    ]
    return Texts(labelled, pieces, len(row["text"]) - length)

  @property
  def rooms(self) -> tuple[tuple[str, int | None], ...]:
    """As Dataset."""
    if not self.preprocess.train:
      return ()
    return (("the longest caption", self.preprocess.text_len),)

  def measure(self, tok: SiglipTokenizer, prepared: Example) -> tuple[int, ...]:
    """As Dataset: the longest caption of an example."""
    if not self.preprocess.train:
      return ()
    texts = [tok.canonicalize(text) for text in self._captions(prepared)]
    rows, _ = tok.encode(texts, _LONG)
    return (max(_length(tok, row) for row in rows),)

  def describe_image(self) -> str:
    """As Dataset; of a NaFlex, how many patches there are at most."""
    side, most = self.preprocess.patch_size, self.preprocess.max_patches
    if not side:
      return super().describe_image()
    return (
      f"at most {most} patches of {side}x{side}, resize "
      f"{self.preprocess.resize}"
    )

  def images(self, row: Arrays) -> list[np.ndarray]:
    """As Dataset; of a NaFlex put together from its patches."""
    if not self.preprocess.patch_size:
      return super().images(row)
    names = ("patches", "type", "yidx", "xidx")
    return [naflex.join(*(row[name] for name in names))]


def _length(tok, row):
  """Tokens of a caption with its eos; of SigLIP's tokenizer eos pads too."""
  return int((row != tok.pad_id).sum()) + (tok.pad_id == tok.eos_id)
