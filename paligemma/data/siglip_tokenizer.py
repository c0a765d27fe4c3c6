"""Texts for the text tower of SigLIP: canonical, tokenized, of one length."""

import re
import string
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Int32

from paligemma import disk, messages
from paligemma.data import tokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
# In a folder of transformers: SigLIP 1, a Gemma, SigLIP 2.
_FILES = ("spiece.model", "tokenizer.model", "tokenizer.json")


# By how many a tokenizer and a table of embeddings may differ: 1152 pieces of
# PaliGemma, 100 of mc4, padding of the table.
_OTHER_PIECES = len(tokenizer.LOC + tokenizer.SEG)


def check_size(tok: "SiglipTokenizer", rows: int) -> None:
  """Raises a ValueError if a text tower of so many rows is for another one."""
  if abs(tok.vocab_size - rows) > _OTHER_PIECES:
    raise ValueError(
      f"the tokenizer has {tok.vocab_size:,} pieces, but the text tower "
      f"{rows:,} rows; give the tokenizer of the checkpoint"
    )


def canonicalize(text: str, *, keep: str = "") -> str:
  """Returns a text in lower case, without punctuation, with single spaces.

      "A photo of {}, zoomed-in!"  ->  "a photo of zoomedin"
      the same with keep="{}"      ->  "a photo of {} zoomedin"

  Args:
    text: Of which the punctuation of ASCII is removed.
    keep: Punctuation that stays where exactly this stands.

  Source: transformers 5.23, SiglipTokenizer.canonicalize_text; so does
  big_vision, evaluators/proj/image_text/prompt_engineering.py, which first
  turns "_" into a space.
  """
  parts = text.lower().split(keep) if keep else [text.lower()]
  text = keep.join(part.translate(_PUNCTUATION) for part in parts)
  return re.sub(r"\s+", " ", text).strip()


class SiglipTokenizer:
  """Text -> token ids of one length.

  Attributes:
    is_gemma: Whether it is Gemma's tokenizer (SigLIP 2), which has a bos token,
      or one of T5 (SigLIP: c4_en, multilingual: mc4).
    eos_id: 1. It ends every text, also one that is cut.
    pad_id: What fills a text up behind it: eos again, or 0 with Gemma's.

  Args:
    path: The SentencePiece file c4_en, mc4 or Gemma's, a tokenizer.json of
      Gemma's kind, or a folder with one of them, on any file system that
      etils.epath opens.

  Raises:
    ValueError: The file is missing, is no tokenizer, or its eos is not 1.

  Sources: big_vision, SigLIP_demo.ipynb and SigLIP2_demo.ipynb; transformers
  5.23, SiglipTokenizer and Siglip2Tokenizer.
  """

  eos_id = 1

  def __init__(self, path: epath.PathLike):
    try:
      path = disk.file_in(path, _FILES)
      data = disk.path(path).read_bytes()
    except OSError as error:
      raise ValueError(f"{path}: cannot read tokenizer: {error}") from None
    self._engine = tokenizer.engine(data, path)
    eos = [self._engine.special_id("eos"), self._engine.id_of("</s>")]
    if self.eos_id not in eos:
      raise ValueError(f"{path}: eos has id {eos[0]}, expected {self.eos_id}")
    self.is_gemma = self._engine.special_id("bos") in range(self.vocab_size)
    self.pad_id = 0 if self.is_gemma else self.eos_id

  @property
  def vocab_size(self) -> int:
    """Number of pieces; every id is below it."""
    return self._engine.size()

  def canonicalize(self, text: str, *, keep: str = "") -> str:
    """Returns a text as the tower was trained: with Gemma's only in lower case.

    Each letter is lowered by itself, as by the tokenizers library; the `lower`
    of big_vision leaves letters beyond ASCII as they are.
    """
    if self.is_gemma:
      return "".join(map(str.lower, text))
    return canonicalize(text, keep=keep)

  def encode(
    self, texts: Sequence[str], length: int
  ) -> tuple[Int32[np.ndarray, "N T"], Bool[np.ndarray, " N"]]:
    """Tokenizes texts as they are, see `canonicalize`.

        "a cat", length 5     a cat eos pad pad
        "a cat on a mat"      a cat on  a   eos

    Args:
      texts: Control tokens spelled in them are text.
      length: Tokens of a text, eos included: text_len of the tower.

    Returns:
      The ids, and which texts are cut.

    Raises:
      ValueError: Half a surrogate pair in a text.
    """
    rows = np.full((len(texts), length), self.pad_id, np.int32)
    is_cut = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
      try:
        ids = self._engine.encode(text)
      except (RuntimeError, TypeError, UnicodeError):
        raise ValueError(
          f'text {i}, "{messages.shown(text)}", is not valid Unicode'
        ) from None
      is_cut[i] = len(ids) >= length
      ids = [*ids[: length - 1], self.eos_id]
      rows[i, : len(ids)] = ids
    return rows, is_cut

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids, all of them."""
    return self._engine.decode(list(ids))

  @property
  def file_name(self) -> str:
    """Name of its file in a folder of transformers."""
    return self._engine.file_name if self.is_gemma else _FILES[0]

  def save(self, path: epath.PathLike) -> None:
    """Writes the tokenizer in the format it came in."""
    epath.Path(path).write_bytes(self._engine.data)

  def __getstate__(self):
    return self._engine.data, self.is_gemma, self.pad_id

  def __setstate__(self, state):
    data, self.is_gemma, self.pad_id = state
    self._engine = tokenizer.engine(data, "unpickled tokenizer")
