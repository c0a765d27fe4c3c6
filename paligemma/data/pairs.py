"""A raw example -> image and caption, for a SigLIP."""

import dataclasses

import numpy as np

from paligemma import messages
from paligemma.data import example_fields, naflex, preprocess, text_ops
from paligemma.data import image as image_lib
from paligemma.data.example_fields import Example
from paligemma.data.pictures import pixels
from paligemma.data.sequence import Arrays
from paligemma.data.siglip_tokenizer import SiglipTokenizer

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
    ops, resize, too_long: As of Preprocess; "truncate" cuts the caption, and
      `truncated` says so.
  """

  tokenizer: SiglipTokenizer
  vocab_size: int = 0
  patch_size: int = 0
  max_patches: int = 0

  def __call__(self, example: Example, rng: np.random.Generator) -> Arrays:
    """Returns the arrays of an example.

    Returns:
      dict of image float32[res, res, 3] in [-1, 1], or of a NaFlex those of
      naflex.patchify under "patches", "type", "yidx" and "xidx"; for the loss
      also text int32[text_len], and truncated int32[] where it may be cut.

    Raises:
      ValueError: As Preprocess; there is no caption, or it is too long or
        empty; begins with "_where".
    """
    example = self.apply_ops(example, rng)
    arrays = self.tokenize(example, caption(example, rng)) if self.train else {}
    image = example_fields.read(example, "image")
    return self._image_arrays(image, example_fields.where(example)) | arrays

  def tokenize(self, example: Example, text: str) -> Arrays:
    """Returns the arrays of a caption of an example, which errors name."""
    canonical = self.tokenizer.canonicalize(text)
    shown = messages.shown(text)
    if not canonical or canonical.isspace():
      raise example_fields.error(
        example, f'the caption "{shown}" is empty for the text tower'
      )
    try:
      (row,), (is_cut,) = self.tokenizer.encode([canonical], self.text_len)
    except ValueError:
      raise example_fields.error(
        example, f'the caption "{shown}" is not valid Unicode'
      ) from None
    if (beyond := row.max()) >= self.vocab_size:
      raise example_fields.error(
        example,
        f'the caption "{shown}" has token {beyond}, beyond the '
        f"{self.vocab_size:,} rows of the text tower",
      )
    arrays = {"text": row}
    if self.too_long == "truncate":
      arrays["truncated"] = np.int32(is_cut)
    elif is_cut:
      raise example_fields.error(
        example,
        f'the caption "{shown}" is longer than the {self.text_len} tokens of '
        'the text tower, eos among them; shorten it, or too_long="truncate" '
        "cuts it",
      )
    return arrays

  def padding(self) -> Arrays:
    """Returns zeros with the keys and shapes of every example's arrays."""
    arrays = self.tokenize({}, "a") if self.train else {}
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
