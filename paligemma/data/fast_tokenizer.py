"""A tokenizer.json of Gemma, which encodes as its SentencePiece file does.

transformers 5 writes only tokenizer.json. The tokenizers library reads it;
decoding follows SentencePiece and is done here.

Source: the format of the tokenizers library; sentencepiece_processor.cc,
Decode.
"""

import itertools
import json
import re
from collections.abc import Sequence

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_CONTROL = (0, 1, 2)  # pad, eos, bos
_UNKNOWN_ID, _UNKNOWN = 3, " \u2047 "
_REPLACEMENT = "\ufffd"
_IMAGE = "<image>"
_BYTE = r"<0x([0-9A-F]{2})>"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# As transformers 5 writes it for SigLIP 2.
_LOWER = {
  "type": "Sequence",
  "normalizers": [{"type": "Lowercase"}, _NORMALIZER],
}


class FastTokenizer:
  """Text <-> ids, without bos and eos, by the contents of a tokenizer.json."""

  file_name = "tokenizer.json"

  def __init__(self, data: bytes, where: str):
    try:
      import tokenizers
    except ImportError:
      raise ValueError(
        f"{where}: tokenizer.json is read by the tokenizers library, which is "
        'missing: pip install "paligemma[tokenizers]"'
      ) from None
    self.data = data
    values = _parse(data, where)
    values["added_tokens"] = _added_tokens(values, where)
    try:
      self._engine = tokenizers.Tokenizer.from_str(json.dumps(values))
    except Exception as e:  # the library raises a bare Exception
      reason = " ".join(str(e).split())[:200]
      raise ValueError(f"{where}: not a tokenizer.json ({reason})") from None
    # Control tokens spelled in a text are encoded as text.
    self._engine.encode_special_tokens = True
    ids = self._engine.get_vocab(with_added_tokens=True)
    self._size = max(ids.values()) + 1
    self._bytes = {
      i: int(match[1], 16)
      for piece, i in ids.items()
      if (match := re.fullmatch(_BYTE, piece))
    }
    self._texts = {i: piece.replace(_SPACE, " ") for piece, i in ids.items()}
    self._texts |= {**dict.fromkeys(_CONTROL, ""), _UNKNOWN_ID: _UNKNOWN}

  def size(self) -> int:
    return self._size

  def encode(self, text: str) -> list[int]:
    return self._engine.encode(text, add_special_tokens=False).ids

  def id_of(self, piece: str) -> int | None:
    return self._engine.token_to_id(piece)

  def special_id(self, name: str) -> int | None:
    """Returns the id of "pad", "eos" or "bos"."""
    return self.id_of(f"<{name}>")

  def decode(self, ids: Sequence[int]) -> str:
    return "".join(self.surfaces(ids))

  def surfaces(self, ids: Sequence[int]) -> list[str]:
    """Returns what each id adds to the text; the last byte adds a character."""
    found = []
    for is_bytes, run in itertools.groupby(ids, self._bytes.__contains__):
      if is_bytes:
        found += _surfaces_of_bytes(bytes(map(self._bytes.get, run)))
      else:
        found += [self._texts.get(i, "") for i in run]
    return found

  def with_pieces(self, pieces: Sequence[str], where: str) -> "FastTokenizer":
    """Returns a tokenizer with more pieces, matched before segmentation."""
    values = json.loads(self.data)
    values["added_tokens"] = _added_tokens(values, where)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for i, piece in enumerate(pieces, self.size()):
      values["model"]["vocab"][piece] = i
      values["added_tokens"].append(
        {"id": i, "content": piece, **dict.fromkeys(flags, False)}
      )
    return FastTokenizer(json.dumps(values, ensure_ascii=False).encode(), where)


def _parse(data, where):
  try:
    values = json.loads(data)
    model = values["model"]
    as_in_gemma = {
      "byte pairs": model["type"] == "BPE",
      "byte_fallback": model["byte_fallback"] is True,
      "spaces as pieces spell them": values["normalizer"]
      in (_NORMALIZER, _LOWER),
      "a vocabulary": isinstance(model["vocab"], dict),
      "a list of added tokens": isinstance(values["added_tokens"], list),
    }
  except (KeyError, TypeError, ValueError, RecursionError):
    raise ValueError(
      f"{where}: not a tokenizer.json ({len(data)} bytes)"
    ) from None
  if missing := [name for name, holds in as_in_gemma.items() if not holds]:
    raise ValueError(
      f"{where}: not a tokenizer.json of Gemma's kind, it lacks: "
      f"{', '.join(missing)}"
    )
  return values


def _added_tokens(values, where):
  """Returns the tokens that SentencePiece has; only control tokens are special.

  The image token, if it is the last one, is dropped: no text spells it.
  """
  added, vocabulary = values["added_tokens"], values["model"]["vocab"]
  kept = []
  try:
    last = max([*vocabulary.values()] + [token["id"] for token in added])
    for token in added:
      is_image = token["content"] == _IMAGE
      if not is_image or token["id"] != last:
        special = is_image or token["id"] in (*_CONTROL, _UNKNOWN_ID)
        kept.append({**token, "special": special})
  except (AttributeError, KeyError, TypeError, ValueError):
    raise ValueError(f"{where}: malformed added_tokens") from None
  if len(kept) < len(added):
    vocabulary.pop(_IMAGE, None)
  return kept


def _surfaces_of_bytes(run: bytes) -> list[str]:
  """Returns per byte of UTF-8 the character that ends there, "" within one."""
  found = []
  for char in run.decode(errors="surrogateescape"):
    length = len(char.encode(errors="surrogateescape"))
    is_damaged = "\udc80" <= char <= "\udcff"
    found += [""] * (length - 1) + [_REPLACEMENT if is_damaged else char]
  return found
