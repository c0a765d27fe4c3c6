"""Writes a tokenizer as the files of transformers."""

import json
import pathlib
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2

from paligemma import disk

_ModelProto = sentencepiece_model_pb2.ModelProto
_Piece = _ModelProto.SentencePiece

_MODEL, _FAST = "tokenizer.model", "tokenizer.json"
_SIGLIP_MODEL = "spiece.model"
_CONFIG, _SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"

IMAGE = "<image>"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for " "
_SPECIAL = {"pad_token": 0, "eos_token": 1, "bos_token": 2, "unk_token": 3}


def save(
  path: pathlib.Path, tokenizer: Any, image_token_id: int | None
) -> None:
  """Writes tokenizer.model, tokenizer.json and two more into a directory.

  Args:
    tokenizer: SentencePiece file, tokenizer.json, or a folder with one of them;
      or an object with `save(path)` that writes one. Of a tokenizer.json no
      tokenizer.model is made.
    image_token_id: Id of "<image>", normally the number of pieces. None: there
      is no such token, as in a Gemma alone.

  Raises:
    ValueError: The file is unreadable or not of Gemma's kind, or another piece
      has the id of the image token.

  Source of tokenizer.json: the format of the tokenizers library, and
  transformers' conversion of Gemma (convert_slow_tokenizer.py). There "  " is
  one token only by way of merges, here already as a symbol of the user, as in
  SentencePiece.
  """
  model_file = path / _MODEL
  where, data = _copy(tokenizer, model_file, (_MODEL, _FAST))
  if data.startswith(b"{"):
    model_file.unlink()
    fast, pieces = _parse_fast(where, data, image_token_id)
    added = fast["added_tokens"]
  else:
    model = _parse(where, data)
    pieces = [piece.piece for piece in model.pieces]
    fast, added = None, _added_tokens(model, image_token_id)
  is_image = slice(image_token_id, (image_token_id or 0) + 1)
  if image_token_id is not None and [*pieces, IMAGE][is_image] != [IMAGE]:
    raise ValueError(
      f"{where}: has {len(pieces)} pieces, expected {image_token_id}, so that "
      f"{IMAGE} gets the next id, or a piece {IMAGE} of id {image_token_id}"
    )
  special = {name: pieces[i] for name, i in _SPECIAL.items()}
  images = [] if image_token_id is None else [IMAGE]
  files = {
    _FAST: fast or _fast(model, added, special),
    _CONFIG: {
      **special,
      "add_bos_token": True,
      "add_eos_token": False,
      "added_tokens_decoder": {
        str(token["id"]): {k: v for k, v in token.items() if k != "id"}
        for token in added
      },
      "additional_special_tokens": images,
      "clean_up_tokenization_spaces": False,
      # Else GemmaTokenizer adds one behind the image token.
      "mask_token": "<mask>" if "<mask>" in pieces else None,
      "model_max_length": 10**30,  # no limit, as transformers writes it
      **({"processor_class": "PaliGemmaProcessor"} if images else {}),
      "sp_model_kwargs": {},
      "spaces_between_special_tokens": False,
      "tokenizer_class": "GemmaTokenizer",
    },
    _SPECIAL_MAP: special | {"additional_special_tokens": images},
  }
  _write(path, files)


def save_siglip(path: pathlib.Path, tokenizer: Any, text_len: int) -> None:
  """Writes the tokenizer of a SigLIP, so that transformers encodes as we do.

  That of T5, which has no bos, as spiece.model for SiglipTokenizer; Gemma's as
  a tokenizer.json that lowers text and ends it with eos.

  Args:
    tokenizer: As in `save`.
    text_len: Tokens of a text.

  Raises:
    ValueError: As `save`.
  """
  model_file = path / _SIGLIP_MODEL
  where, data = _copy(tokenizer, model_file, (_SIGLIP_MODEL, _MODEL, _FAST))
  is_fast = data.startswith(b"{")
  if not is_fast and _parse_any(where, data).trainer_spec.bos_id < 0:
    special = dict.fromkeys(("eos_token", "pad_token"), "</s>")
    special["unk_token"] = "<unk>"
    config = {
      **special,
      "do_lower_case": True,
      "model_input_names": ["input_ids"],
      "model_max_length": text_len,
      "processor_class": "SiglipProcessor",
      "tokenizer_class": "SiglipTokenizer",
    }
    _write(path, {_CONFIG: config, _SPECIAL_MAP: special})
    return
  model_file.unlink()
  save(path, tokenizer, None)
  fast, config = (disk.read_json(path / name) for name in (_FAST, _CONFIG))
  if fast["normalizer"]["type"] != "Sequence":
    steps = [{"type": "Lowercase"}, fast["normalizer"]]
    fast["normalizer"] = {"type": "Sequence", "normalizers": steps}
  eos = config["eos_token"]
  end = {"SpecialToken": {"id": eos, "type_id": 0}}
  fast["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
    "pair": [
      {"Sequence": {"id": "A", "type_id": 0}},
      {"Sequence": {"id": "B", "type_id": 0}},
      end,
    ],
    "special_tokens": {
      eos: {"id": eos, "ids": [_SPECIAL["eos_token"]], "tokens": [eos]}
    },
  }
  config |= {
    "add_bos_token": False,
    "add_eos_token": True,
    "model_input_names": ["input_ids"],
    "model_max_length": text_len,
    "padding_side": "right",
    "processor_class": "Siglip2Processor",
    # Takes tokenizer.json as it is, in every release.
    "tokenizer_class": "PreTrainedTokenizerFast",
  }
  _write(path, {_FAST: fast, _CONFIG: config})


def _copy(tokenizer, target, names) -> tuple[epath.PathLike, bytes]:
  """Writes the file of a tokenizer; returns where it was, and its contents."""
  if not isinstance(tokenizer, str | epath.PathLike):
    tokenizer.save(target)
    return "tokenizer", target.read_bytes()
  where = tokenizer
  try:
    where = disk.file_in(tokenizer, names)
    target.write_bytes(disk.path(where).read_bytes())
  except OSError as e:
    reason = e.strerror or e
    raise ValueError(f"{where}: cannot read tokenizer: {reason}") from None
  return where, target.read_bytes()


def _write(path, files):
  for name, content in files.items():
    # Without indentation: Gemma has half a million merges.
    text = json.dumps(content, ensure_ascii=False)
    (path / name).write_text(text + "\n", encoding="utf-8")


def _parse_fast(where, data, image_token_id) -> tuple[dict[str, Any], list]:
  """A tokenizer.json, with the image token if it lacks it, and its pieces."""
  try:
    fast = json.loads(data)
    added = fast["added_tokens"]
    known = {token["content"]: token["id"] for token in added}
    ids = fast["model"]["vocab"] | known
    count = 1 + max(ids.values())
    if image_token_id == count and IMAGE not in known:
      added.append(_added(image_token_id, IMAGE, special=True))
      ids[IMAGE] = image_token_id
    by_id = {i: piece for piece, i in ids.items()}
    pieces = [by_id.get(i, "") for i in range(1 + max(by_id))]
  except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
    message = f"{where}: not a tokenizer.json ({len(data)} bytes)"
    raise ValueError(message) from None
  if any(i not in by_id for i in _SPECIAL.values()):
    raise ValueError(f"{where}: has no pieces of ids 0, 1, 2 and 3")
  return fast, pieces


def _parse_any(where, proto: bytes):
  try:
    return _ModelProto.FromString(proto)
  except Exception:  # DecodeError of whichever protobuf is installed
    raise ValueError(
      f"{where}: not a SentencePiece model ({len(proto)} bytes)"
    ) from None


def _parse(where, proto: bytes):
  model = _parse_any(where, proto)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  ids = (trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id)
  as_in_gemma = {
    "pad 0, eos 1, bos 2, unk 3": ids == tuple(_SPECIAL.values()),
    "byte pairs": trainer.model_type == trainer.BPE,
    "byte_fallback": trainer.byte_fallback,
    "no add_dummy_prefix": not normalizer.add_dummy_prefix,
    "no remove_extra_whitespaces": not normalizer.remove_extra_whitespaces,
    "no normalization": not normalizer.precompiled_charsmap,
    "escape_whitespaces": normalizer.escape_whitespaces,
  }
  if missing := [name for name, holds in as_in_gemma.items() if not holds]:
    raise ValueError(
      f"{where}: not a SentencePiece model of Gemma's kind, it lacks: "
      f"{', '.join(missing)}"
    )
  return model


def _added_tokens(model, image_token_id) -> list[dict[str, Any]]:
  """The tokens that are cut out of a text before it is segmented."""
  tokens = {
    i: _added(i, piece.piece, special=piece.type != _Piece.USER_DEFINED)
    for i, piece in enumerate(model.pieces)
    if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN, _Piece.USER_DEFINED)
  }
  if image_token_id is not None:
    tokens[image_token_id] = _added(image_token_id, IMAGE, special=True)
  return [token for _, token in sorted(tokens.items())]


def _added(i: int, content: str, *, special: bool) -> dict[str, Any]:
  return {
    "id": i,
    "content": content,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    # Looked for when spaces have become what the piece spells them as.
    "normalized": _SPACE in content,
    "special": special,
  }


def _fast(model, added, special) -> dict[str, Any]:
  """The contents of tokenizer.json."""
  space = {"String": " "}
  bos = special["bos_token"]
  first, second = (
    [
      {"SpecialToken": {"id": bos, "type_id": i}},
      {"Sequence": {"id": name, "type_id": i}},
    ]
    for i, name in enumerate("AB")
  )
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": {"type": "Replace", "pattern": space, "content": _SPACE},
    "pre_tokenizer": {
      "type": "Split",
      "pattern": space,
      "behavior": "MergedWithPrevious",
      "invert": False,
    },
    "post_processor": {
      "type": "TemplateProcessing",
      "single": first,
      "pair": first + second,
      "special_tokens": {
        bos: {"id": bos, "ids": [_SPECIAL["bos_token"]], "tokens": [bos]}
      },
    },
    "decoder": {
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
      ],
    },
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": special["unk_token"],
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": True,
      "byte_fallback": True,
      "ignore_merges": False,
      "vocab": {piece.piece: i for i, piece in enumerate(model.pieces)},
      "merges": _merges(model),
    },
  }


def _merges(model) -> list[tuple[str, str]]:
  """Pairs of pieces that form a piece, the best piece first.

  SentencePiece has no list of merges: any two neighbours may merge into a
  piece, the one of the highest score first.
  """
  scores = {p.piece: p.score for p in model.pieces if p.type == _Piece.NORMAL}
  return [
    (piece[:i], piece[i:])
    for piece in sorted(scores, key=scores.get, reverse=True)
    for i in range(1, len(piece))
    if piece[:i] in scores and piece[i:] in scores
  ]
