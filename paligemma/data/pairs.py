"""A raw example -> image and caption, for a SigLIP."""

import dataclasses
import re

import numpy as np

from paligemma import messages
from paligemma.data import (
  example_fields,
  location,
  naflex,
  objects,
  preprocess,
  text_ops,
)
from paligemma.data import image as image_lib
from paligemma.data.example_fields import Example
from paligemma.data.pictures import pixels
from paligemma.data.sequence import Arrays
from paligemma.data.siglip_tokenizer import SiglipTokenizer

_UNIT = (1, 1)  # size of an image that is not read
_ANY = text_ops.Choice("captions", to="suffix", replace=False)


@dataclasses.dataclass(frozen=True)
class Pairs(preprocess.Preprocess):
  """Turns an example into an image and, for the loss, one of its captions.

  Attributes:
    tokenizer: SiglipTokenizer.
    res: Height and width of the image in pixels; of a NaFlex, not read.
    text_len, vocab_size: Tokens that the text tower reads, and its rows.
    train: Whether the caption is read; else there is the image alone.
    patch_size, max_patches: Of a NaFlex, whose images keep their aspect ratio;
      0: of none.
    regions: Whether the loss also reads an object of the example, for the
      decoder of SigLIP 2.
    ops, resize, too_long: As of Preprocess; "truncate" cuts the caption, and
      `truncated` says so.
  """

  tokenizer: SiglipTokenizer
  vocab_size: int = 0
  patch_size: int = 0
  max_patches: int = 0
  regions: bool = False

  def __call__(self, example: Example, rng: np.random.Generator) -> Arrays:
    """Returns the arrays of an example.

    Returns:
      dict of image float32[res, res, 3] in [-1, 1], or of a NaFlex those of
      naflex.patchify under "patches", "type", "yidx" and "xidx"; for the loss
      also text int32[text_len], and truncated int32[] where it may be cut; with
      `regions` those of `tokenize_region` for one of the objects, zeros where
      there is none.

    Raises:
      ValueError: As Preprocess; there is no caption, or it is too long or
        empty; an object is malformed; begins with "_where".
    """
    example = self.apply_ops(example, rng)
    arrays = self.tokenize(example, caption(example, rng)) if self.train else {}
    image = example_fields.read(example, "image")
    where = example_fields.where(example)
    if self.train and self.regions:
      image = pixels(image, where=where)
      items = read_regions(example)
      item = items[rng.integers(len(items))] if items else None
      own = self.tokenize_region(example, item, image.shape[:2])
      cut = own.pop("truncated", 0)
      arrays |= own
      if "truncated" in arrays:
        arrays["truncated"] |= cut
    return self._image_arrays(image, where) | arrays

  def tokenize(self, example: Example, text: str) -> Arrays:
    """Returns the arrays of a caption of an example, which errors name."""
    row, is_cut = self._encode(example, text, "caption")
    return {"text": row} | self._truncated(example, text, "caption", is_cut)

  def tokenize_region(
    self,
    example: Example,
    item: objects.Object | None,
    size: location.Size = _UNIT,
  ) -> Arrays:
    """Returns the texts of an object in an image of a size (height, width).

        a cat 10 20 30 40 eos    the box is learned: regions_loss is 1 there
        10 20 30 40 a cat eos    the label is learned

    Coordinates are those of location.encode_box, as numbers.

    Returns:
      dict of regions int32[2, text_len], regions_loss int32[2, text_len], which
      is 0 without an object, and truncated as `tokenize`.
    """
    rows = np.zeros((2, 2, self.text_len), np.int32)
    if item is None:
      return {"regions": rows[0], "regions_loss": rows[1]}
    found = re.findall(r"\d+", location.encode_box(item["box"], size))
    box, label = " ".join(str(int(x)) for x in found), item["label"]
    eos, last = self.tokenizer.eos_id, self.text_len - 1
    ids = []
    for text in (label, box):
      row, is_cut = self._encode(example, text, "label")
      ids.append(row[: int((row == eos).argmax())])
    is_cut |= sum(map(len, ids)) > last
    for i, (given, learned) in enumerate((ids, ids[::-1])):
      row = [*given, *learned][:last]
      row.append(eos)
      rows[0, i, : len(row)] = row
      rows[1, i, len(given) : len(row)] = 1
    own = {"regions": rows[0], "regions_loss": rows[1]}
    return own | self._truncated(example, label, "label with its box", is_cut)

  def _encode(self, example, text, what):
    """The ids of a text, and whether it is cut."""
    canonical = self.tokenizer.canonicalize(text)
    shown = messages.shown(text)
    if not canonical or canonical.isspace():
      raise example_fields.error(
        example, f'the {what} "{shown}" is empty for the text tower'
      )
    try:
      (row,), (is_cut,) = self.tokenizer.encode([canonical], self.text_len)
    except ValueError:
      raise example_fields.error(
        example, f'the {what} "{shown}" is not valid Unicode'
      ) from None
    if (beyond := row.max()) >= self.vocab_size:
      raise example_fields.error(
        example,
        f'the {what} "{shown}" has token {beyond}, beyond the '
        f"{self.vocab_size:,} rows of the text tower",
      )
    return row, is_cut

  def _truncated(self, example, text, what, is_cut):
    if self.too_long == "truncate":
      return {"truncated": np.int32(is_cut)}
    if is_cut:
      raise example_fields.error(
        example,
        f'the {what} "{messages.shown(text)}" is longer than the '
        f"{self.text_len} tokens of the text tower, eos among them; shorten "
        'it, or too_long="truncate" cuts it',
      )
    return {}

  def padding(self) -> Arrays:
    """Returns zeros with the keys and shapes of every example's arrays."""
    arrays = self.tokenize({}, "a") if self.train else {}
    if self.train and self.regions:
      arrays |= self.tokenize_region({}, None)
    arrays |= self._image_arrays(np.zeros((1, 1, 3), np.uint8), "padding")
    return {key: np.zeros_like(value) for key, value in arrays.items()}

  def _image_arrays(self, image, where):
    if not self.patch_size:
      return {"image": self._images(image, where)}
    picture = pixels(image, where=where)
    side, most = self.patch_size, self.max_patches
    rows, columns = naflex.grid(picture.shape[:2], side, most)
    to_model = image_lib.PREPROCESSING[self.resize]
    resized = to_model(picture, (rows * side, columns * side))
    cut = naflex.patchify(resized, side, most)
    return dict(zip(("patches", "type", "yidx", "xidx"), cut, strict=True))


def read_regions(example: Example) -> list[objects.Object]:
  """Returns the objects of an example, checked; none if it has none."""
  return objects.read(example) if example.get("objects") is not None else []


def captions(example: Example) -> list[str]:
  """Returns all captions of an example: "suffix", or those in "captions".

  Raises:
    ValueError: It has neither; begins with "_where".
  """
  if "suffix" in example:
    return [example_fields.text(example, "suffix")]
  if "captions" not in example:
    names = ", ".join(name for name in example if not name.startswith("_"))
    raise example_fields.error(
      example,
      'expected a caption under "suffix", or a list of captions under '
      f'"captions", found {messages.shown(names)}',
    )
  return text_ops.texts(example, "captions")


def caption(example: Example, rng: np.random.Generator) -> str:
  """Returns one caption: of several, each once in as many epochs."""
  if "suffix" not in example and captions(example):
    example = _ANY(example, rng)
  return captions(example)[0]
