"""What files may state of a model beside its arrays.

A damaged or made-up file may state any number, which would end up in the model:
values with which no model runs are refused when the file is opened.

Our own files hold one JSON object, in "model/metadata" of an Orbax folder and
in the comment of an npz:

    {"img": ..., "llm": ...}  fields of both towers that shapes cannot tell, of
                              a SigLIP also "txt"
    "metadata"                what is of no tower, see Checkpoint.metadata
    "dtype"                   what the model computes in
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from paligemma import parameters, registry
from paligemma.lora.config import Lora

# Far beyond any soft cap or epsilon, and within float32.
_SMALL, _BIG = 1e-30, 1e30


def _size(value):
  return type(value) is int and 0 < value < 2**31


def _positive(value):
  return _size(value) or (type(value) is float and _SMALL < value < _BIG)


def _flag(value):
  return type(value) is bool


def _optional(is_valid):
  return lambda value: value is None or is_valid(value)


def _one_of(*options):
  return lambda value: isinstance(value, str) and value in options


_POOLS = ("none", "gap", "map", "tok", "0")
# Field that array shapes cannot tell -> what is valid, in code and in words.
IMG: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  "num_classes": (_optional(_size), "a size or null"),
  "posemb": (_one_of("learn", "sincos2d"), '"learn" or "sincos2d"'),
  "pool_type": (_one_of(*_POOLS), '"none", "gap", "map", "tok" or "0"'),
  "rep_size": (_optional(_size), "a size or null"),
  "head_zeroinit": (_flag, "true or false"),
  "lora": (lambda value: isinstance(value, Lora), "a Lora"),
}
LLM: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  "norm_eps": (_positive, "a number > 0"),
  "query_scale": (
    lambda x: _one_of("head_dim", "width_per_head")(x) or _positive(x),
    'a number > 0, "head_dim" or "width_per_head"',
  ),
  "post_norms": (_flag, "true or false"),
  "attn_logits_softcap": (_optional(_positive), "a number > 0 or null"),
  "final_logits_softcap": (_optional(_positive), "a number > 0 or null"),
  "sliding_window": (_optional(_size), "a number of positions or null"),
  "lora": (lambda value: isinstance(value, Lora), "a Lora"),
}
TXT: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  "num_classes": IMG["num_classes"],
  "pool_type": (
    _one_of("last", "first", "mean", "max", "map"),
    '"last", "first", "mean", "max" or "map"',
  ),
  "lora": IMG["lora"],
}

# What files state of no tower.
METADATA: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  # A key of image.PREPROCESSING: how pictures are to be prepared.
  "preprocessing": (lambda value: isinstance(value, str), "a name"),
  # Row of the table that stands for an image. Absent: the one after the last.
  "image_token_id": (_size, "a size"),
  # Of a Hugging Face folder: generation_config.json, the image processor in
  # preprocessor_config.json or processor_config.json, and the chat template.
  "generation": (lambda value: isinstance(value, Mapping), "an object"),
  "processor": (lambda value: isinstance(value, Mapping), "an object"),
  "chat_template": (lambda value: isinstance(value, str), "a text"),
}

# Fields of towers that shapes do tell.
SIZES = frozenset(
  {"num_classes", "scan", "grid"}.union(*parameters.SIZES.values())
)

DTYPES = ("float32", "bfloat16", "float16")
_OBJECTS = ("img", "llm", "txt", "metadata")


def check(
  where: epath.PathLike,
  img: Mapping[str, Any],
  llm: Mapping[str, Any],
  txt: Mapping[str, Any],
  metadata: Mapping[str, Any],
) -> None:
  """Checks fields of towers, and metadata.

  Args:
    where: The file or folder that states them.
    img, llm, txt, metadata: As in Checkpoint.

  Raises:
    ValueError: An unknown field, or a value that no model has.
  """
  for known, stated, what in (
    (IMG, img, "image tower field"),
    (LLM, llm, "decoder field"),
    (TXT, txt, "text tower field"),
    (METADATA, metadata, "metadata"),
  ):
    for field, value in stated.items():
      try:
        is_valid, expected = registry.lookup(known, field, what)
      except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
      if not is_valid(value):
        raise ValueError(f"{where}: {field} is {value!r}, expected {expected}")


def dump(*, compute_dtype: str | None = None, **objects: Any) -> str:
  """One line of JSON; the arguments are those of Checkpoint."""
  stated = {name: objects.get(name) or {} for name in _OBJECTS}
  if not stated["txt"]:
    del stated["txt"]
  if compute_dtype is not None:
    stated["dtype"] = compute_dtype
  return json.dumps(stated)


def parse(text: str) -> dict[str, Any]:
  """Arguments for Checkpoint from what `dump` wrote, without sizes of towers.

  Raises:
    ValueError: No JSON, or not the values of `dump`.
  """
  try:
    found = json.loads(text)
  except RecursionError:
    raise ValueError("nested too deeply") from None
  if not isinstance(found, dict):
    raise ValueError("expected a JSON object")
  # Before version 0.3 the metadata were called "export".
  found.setdefault("metadata", found.pop("export", None))
  found.setdefault("txt", {})
  settings = {name: found.pop(name, None) for name in _OBJECTS}
  dtype = found.pop("dtype", None)
  if found or not all(isinstance(x, dict) for x in settings.values()):
    raise ValueError(f"expected objects: {', '.join(_OBJECTS)}")
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}, expected one of: {DTYPES}")
  for tower in parameters.SIZES:
    stated = settings[tower].items()
    settings[tower] = {k: v for k, v in stated if k not in SIZES}
  return {**settings, "compute_dtype": dtype}
