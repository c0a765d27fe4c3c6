"""SentencePiece with one id for every <locNNNN> and <segNNN>."""

from collections.abc import Sequence

import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from paligemma import regular

LOC = tuple(f"<loc{i:04d}>" for i in range(1024))
SEG = tuple(f"<seg{i:03d}>" for i in range(128))

_PLAIN_GEMMA_SIZE = 256_000  # the public Gemma file, without loc and seg


class Tokenizer:
  """Text <-> token ids, with the layout that PaliGemma relies on.

  Checked when the file is loaded: pad is 0, eos is 1, bos is 2, a newline is
  one piece, each location `<loc0000>`..`<loc1023>` and each segmentation code
  `<seg000>`..`<seg127>` is one id, and the ids follow one another.

      PaliGemma file (257,152 pieces):
      <loc0000> 256000 ... <loc1023> 257023 <seg000> 257024 ... <seg127> 257151

  Instances pickle as the serialized model, so they travel to data workers.

  Args:
    path: A SentencePiece model, on any file system that etils.epath opens. To
      a file of exactly 256,000 pieces (plain Gemma) the 1024 locations and
      then the 128 codes are appended, which gives the ids above.
    add_loc_seg: Append them to a file of another size too. Default False: such
      a file without them is an error, as its ids would not be those that a
      checkpoint was trained with.

  Raises:
    ValueError: The file is missing, is no SentencePiece model, or does not
      have the layout above.

  Source: PaliGemma (arXiv:2407.07726), section 3.2; the order of appended
  pieces is that of the official 257,152-piece file.
  """

  pad_id = 0
  eos_id = 1
  bos_id = 2

  def __init__(self, path: epath.PathLike, *, add_loc_seg: bool = False):
    try:
      proto = regular.path(path).read_bytes()
    except OSError as error:
      raise ValueError(f"{path}: cannot read tokenizer: {error}") from None
    processor = _processor(proto, path)
    missing = [p for p in LOC + SEG if not _has_piece(processor, p)]
    plain = processor.get_piece_size() == _PLAIN_GEMMA_SIZE
    if len(missing) == len(LOC + SEG) and (plain or add_loc_seg):
      proto = _append_pieces(proto, LOC + SEG)
      processor = _processor(proto, path)
    elif missing:
      raise ValueError(
        f"{path}: {len(missing)} of {len(LOC + SEG)} <loc> and <seg> pieces "
        f"are missing, the first is {missing[0]}; use the PaliGemma file of "
        "257,152 pieces, or pass add_loc_seg=True to a file that has none"
      )
    _check_layout(processor, path)
    self._proto = proto
    self._processor = processor

  @property
  def vocab_size(self) -> int:
    """Number of pieces; every id is below it."""
    return self._processor.get_piece_size()

  def encode(
    self, text: str, *, bos: bool = False, eos: bool = False
  ) -> list[int]:
    """Returns the ids of the text, with bos before and eos after if asked.

    Raises:
      ValueError: The text holds half a surrogate pair, which no encoding has.
    """
    try:
      ids = self._processor.encode(text)
    except RuntimeError:
      raise _not_unicode(text) from None
    return [self.bos_id] * bos + ids + [self.eos_id] * eos

  def lengths(self, texts: Sequence[str]) -> list[int]:
    """Returns the number of ids of each text, faster than one by one."""
    try:
      return list(map(len, self._processor.encode(list(texts))))
    except TypeError:
      raise _not_unicode("".join(texts)) from None

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids up to the first eos, without pad and bos.

    Raises:
      ValueError: An id lies outside of [0, vocab_size).
    """
    kept = []
    for i in map(int, ids):
      if i == self.eos_id:
        break
      if not 0 <= i < self.vocab_size:
        raise ValueError(
          f"token id {i} is outside of the tokenizer's {self.vocab_size} pieces"
        )
      if i not in (self.pad_id, self.bos_id):
        kept.append(i)
    return self._processor.decode(kept)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns what each id adds to the text.

    bos, eos and pad add "", as do the first bytes of a character that several
    ids stand for; joined, it is `decode(ids)` up to the first eos.
    """
    ids = list(map(int, ids))
    found = self._processor.decode(ids, return_type="proto")
    return [piece.surface for piece in found.pieces]

  def loc_id(self, i: int) -> int:
    """Returns the id of the i-th location, i in [0, 1024)."""
    return self._processor.piece_to_id(LOC[i])

  def seg_id(self, i: int) -> int:
    """Returns the id of the i-th segmentation code, i in [0, 128)."""
    return self._processor.piece_to_id(SEG[i])

  def save(self, path: epath.PathLike) -> None:
    """Writes the model, added pieces included, as a SentencePiece file."""
    epath.Path(path).write_bytes(self._proto)

  def __getstate__(self):
    return self._proto

  def __setstate__(self, proto):
    self._proto = proto
    self._processor = _processor(proto, "unpickled tokenizer")


def _processor(proto, path):
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.load_from_serialized_proto(proto)
  except RuntimeError:
    raise ValueError(
      f"{path}: not a SentencePiece model ({len(proto)} bytes)"
    ) from None
  return processor


def _not_unicode(text):
  half = next(c for c in text if "\ud800" <= c <= "\udfff")
  return ValueError(
    f"the text holds {half!a}, half a surrogate pair, which is no character; "
    "was it cut within an emoji?"
  )


def _has_piece(processor, piece):
  return processor.id_to_piece(processor.piece_to_id(piece)) == piece


def _append_pieces(proto, pieces):
  model = sentencepiece_model_pb2.ModelProto.FromString(proto)
  for piece in pieces:
    # Only user-defined pieces are cut out of the text before it is segmented.
    model.pieces.add(
      piece=piece,
      score=0.0,
      type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
    )
  return model.SerializeToString()


def _check_layout(processor, path):
  special = {
    "pad": (processor.pad_id(), Tokenizer.pad_id),
    "eos": (processor.eos_id(), Tokenizer.eos_id),
    "bos": (processor.bos_id(), Tokenizer.bos_id),
  }
  for name, (found, expected) in special.items():
    if found != expected:
      raise ValueError(f"{path}: {name} has id {found}, expected {expected}")
  newline = processor.encode("\n")
  if len(newline) != 1 or processor.decode(newline) != "\n":
    raise ValueError(
      f"{path}: the newline, which separates prompt and answer, has ids "
      f"{newline}, expected one piece; train with user_defined_symbols"
    )
  first_loc, first_seg = map(processor.piece_to_id, (LOC[0], SEG[0]))
  expected = [first_loc + i for i in range(len(LOC))]
  expected += [first_seg + i for i in range(len(SEG))]
  # One text of all pieces: a piece that is split shifts what follows.
  found = processor.encode("".join(LOC + SEG))
  for piece, a, b in zip(LOC + SEG, expected, found, strict=False):
    if a != b:
      raise ValueError(
        f"{path}: {piece} encodes to id {b}, expected the one id {a}; the "
        "pieces must be user-defined symbols with consecutive ids"
      )
