"""The tokenizer: SentencePiece with one id for each <locNNNN> and <segNNN>."""

from collections.abc import Sequence

import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from paligemma import disk
from paligemma.data.fast_tokenizer import FastTokenizer

LOC = tuple(f"<loc{i:04d}>" for i in range(1024))
SEG = tuple(f"<seg{i:03d}>" for i in range(128))

_PLAIN_GEMMA_SIZE = 256_000  # the public Gemma file, without loc and seg


class Tokenizer:
  """Text <-> token ids, with the ids that PaliGemma needs.

  Loading checks that pad is 0, eos is 1, bos is 2, a newline is one piece, each
  location and each segmentation code is one id, and these are consecutive.

      PaliGemma file (257,152 pieces):
      <loc0000> 256000 ... <loc1023> 257023 <seg000> 257024 ... <seg127> 257151

  Args:
    path: A SentencePiece model, a tokenizer.json of transformers, or a folder
      with tokenizer.model, else tokenizer.json, on any file system that
      etils.epath opens. The 1024 locations and then the 128 codes are appended
      to a file of exactly 256,000 pieces (plain Gemma).
    add_loc_seg: Whether to append them to a file of another size too. Default
      False: such a file raises, because a checkpoint was not trained with its
      ids.
    plain: Whether a file without them is left as it is, for a Gemma alone.

  Raises:
    ValueError: The file is missing, of another kind or has other ids, or the
      tokenizers library is missing.

  Source: PaliGemma (arXiv:2407.07726), section 3.2; the order of appended
  pieces is that of the official 257,152-piece file.
  """

  pad_id = 0
  eos_id = 1
  bos_id = 2

  def __init__(
    self,
    path: epath.PathLike,
    *,
    add_loc_seg: bool = False,
    plain: bool = False,
  ):
    try:
      names = (_SentencePiece.file_name, FastTokenizer.file_name)
      path = disk.file_in(path, names)
      data = disk.path(path).read_bytes()
    except OSError as error:
      raise ValueError(f"{path}: cannot read tokenizer: {error}") from None
    found = engine(data, path)
    needed = () if plain else LOC + SEG
    missing = [p for p in needed if found.id_of(p) is None]
    may_add = add_loc_seg or found.size() == _PLAIN_GEMMA_SIZE
    if missing == list(LOC + SEG) and may_add:
      found = found.with_pieces(LOC + SEG, path)
    elif missing:
      raise ValueError(
        f"{path}: {len(missing)} of {len(LOC + SEG)} <loc> and <seg> pieces "
        f"are missing, the first is {missing[0]}; use the PaliGemma file of "
        "257,152 pieces, or pass add_loc_seg=True to a file that has none"
      )
    _check_layout(found, path, needed)
    self._engine = found

  @property
  def vocab_size(self) -> int:
    """Number of pieces; every id is below it."""
    return self._engine.size()

  def encode(
    self, text: str, *, bos: bool = False, eos: bool = False
  ) -> list[int]:
    """Returns the ids of a text, with bos and eos if requested."""
    try:
      ids = self._engine.encode(text)
    except (RuntimeError, TypeError, UnicodeError):
      half = next(c for c in text if "\ud800" <= c <= "\udfff")
      raise ValueError(
        f"the text holds {half!a}, half a surrogate pair, which is no "
        "character; was it cut within an emoji?"
      ) from None
    return [self.bos_id] * bos + ids + [self.eos_id] * eos

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids up to the first eos, without pad and bos."""
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
    return self._engine.decode(kept)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns what each id adds to the text; joined, they are `decode(ids)`.

    bos, eos and pad add "", and so do all but the last byte of a character that
    is encoded as several byte tokens.
    """
    return self._engine.surfaces(list(map(int, ids)))

  def loc_id(self, i: int) -> int:
    """Returns the id of the i-th location, i in [0, 1024)."""
    return self._engine.id_of(LOC[i])

  def seg_id(self, i: int) -> int:
    """Returns the id of the i-th segmentation code, i in [0, 128)."""
    return self._engine.id_of(SEG[i])

  @property
  def file_name(self) -> str:
    """Name of a file in this format: tokenizer.model or tokenizer.json."""
    return self._engine.file_name

  def save(self, path: epath.PathLike) -> None:
    """Writes the tokenizer, added pieces included, in the format it came in."""
    epath.Path(path).write_bytes(self._engine.data)

  def __getstate__(self):
    return self._engine.data

  def __setstate__(self, data):
    self._engine = engine(data, "unpickled tokenizer")


class _SentencePiece:
  """A SentencePiece model with the methods of FastTokenizer."""

  file_name = "tokenizer.model"

  def __init__(self, data, where):
    self.data = data
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.load_from_serialized_proto(data)
    except RuntimeError:
      raise ValueError(
        f"{where}: not a SentencePiece model ({len(data)} bytes)"
      ) from None
    self.size = self._processor.get_piece_size
    self.encode = self._processor.encode
    self.decode = self._processor.decode

  def id_of(self, piece):
    i = self._processor.piece_to_id(piece)  # that of <unk> if it is missing
    return i if self._processor.id_to_piece(i) == piece else None

  def special_id(self, name):
    return getattr(self._processor, f"{name}_id")()

  def surfaces(self, ids):
    found = self._processor.decode(ids, return_type="proto")
    return [piece.surface for piece in found.pieces]

  def with_pieces(self, pieces, where):
    model = sentencepiece_model_pb2.ModelProto.FromString(self.data)
    # Only user-defined pieces are matched before the text is segmented.
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    for piece in pieces:
      model.pieces.add(piece=piece, score=0.0, type=kind)
    return _SentencePiece(model.SerializeToString(), where)


def engine(
  data: bytes, where: epath.PathLike
) -> "_SentencePiece | FastTokenizer":
  """Returns what encodes and decodes by the contents of a file.

  Raises:
    ValueError: It is neither a SentencePiece model nor a tokenizer.json.
  """
  # A SentencePiece model begins with another byte.
  kind = FastTokenizer if data.startswith(b"{") else _SentencePiece
  return kind(data, where)


def _check_layout(engine, path, needed):
  for name in ("pad", "eos", "bos"):
    found, expected = engine.special_id(name), getattr(Tokenizer, f"{name}_id")
    if found != expected:
      raise ValueError(f"{path}: {name} has id {found}, expected {expected}")
  newline = engine.encode("\n")
  if len(newline) != 1 or engine.decode(newline) != "\n":
    raise ValueError(
      f"{path}: the newline, which separates prompt and answer, has ids "
      f"{newline}, expected one piece; train with user_defined_symbols"
    )
  expected = []
  for pieces in (LOC, SEG) if needed else ():
    first = engine.id_of(pieces[0])
    expected += range(first, first + len(pieces))
  # One text of all pieces: a piece that is split shifts all later ones.
  found = engine.encode("".join(needed))
  for piece, a, b in zip(needed, expected, found, strict=False):
    if a != b:
      raise ValueError(
        f"{path}: {piece} encodes to id {b}, expected the one id {a}; the "
        "pieces must be user-defined symbols with consecutive ids"
      )
