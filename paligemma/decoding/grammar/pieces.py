"""The bytes that each token writes."""

import functools
from typing import Protocol, runtime_checkable

_REPLACEMENT = "\ufffd"  # decoded from bytes that are not UTF-8
_UNKNOWN = " \u2047 "  # decoded by SentencePiece from <unk>

# Characters whose bytes are all that occur in characters beyond ASCII.
_EVERY_BYTE = "".join(
  map(chr, [*range(0x80, 0x800), *range(0x800, 0xD800, 0x400)])
) + "".join(map(chr, [0xE000, 0xF000, *range(0x10000, 0x110000, 0x10000)]))


@runtime_checkable
class Tokenizer(Protocol):
  """What grammars need of a tokenizer, such as that of data/tokenizer.py."""

  vocab_size: int
  eos_id: int

  def encode(self, text: str) -> list[int]: ...
  def decode(self, ids: list[int]) -> str: ...
  def loc_id(self, i: int) -> int: ...
  def seg_id(self, i: int) -> int: ...


@functools.lru_cache(maxsize=2)  # it decodes every piece
def of(tokenizer: Tokenizer) -> list[bytes]:
  r"""Returns the bytes that each token adds to a text; none for pad and eos.

      "cat" -> b"cat"   "▁cat" -> b" cat"   "<0xE9>" -> b"\xe9"

  Decoding a single byte token beyond ASCII does not show its byte. These tokens
  are found by their order in SentencePiece, 128 in the order of their bytes,
  and are used if together they decode to the right characters.
  """
  # After a newline, which is one piece, a leading space is kept.
  (newline,) = tokenizer.encode("\n")
  texts = [
    tokenizer.decode([newline, i])[1:] for i in range(tokenizer.vocab_size)
  ]
  found = [
    b"" if text in (_REPLACEMENT, _UNKNOWN) else text.encode() for text in texts
  ]
  for first in range(len(texts) - 127):
    if (
      texts[first] == texts[first + 127] == _REPLACEMENT
      and tokenizer.decode([first + b - 128 for b in _EVERY_BYTE.encode()])
      == _EVERY_BYTE
    ):
      found[first : first + 128] = [bytes([b]) for b in range(128, 256)]
  return found
