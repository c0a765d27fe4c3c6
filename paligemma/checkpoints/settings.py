"""What a checkpoint of ours says beside its arrays, as one JSON object.

    {"img": ..., "llm": ...}  fields of both towers that shapes cannot tell
    "metadata"                what no tower has, see Checkpoint.metadata
    "dtype"                   what the model computes in

It stands in "model/metadata" of an Orbax folder and in the comment of an npz.
"""

import json
from typing import Any

from paligemma.checkpoints import stated_fields

DTYPES = ("float32", "bfloat16", "float16")
_OBJECTS = ("img", "llm", "metadata")


def dump(*, compute_dtype: str | None = None, **objects: Any) -> str:
  """One line of JSON; the arguments are those of Checkpoint."""
  stated = {name: objects.get(name) or {} for name in _OBJECTS}
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
  settings = {name: found.pop(name, None) for name in _OBJECTS}
  dtype = found.pop("dtype", None)
  if found or not all(isinstance(x, dict) for x in settings.values()):
    raise ValueError(f"expected three objects: {', '.join(_OBJECTS)}")
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}, expected one of: {DTYPES}")
  for tower in ("img", "llm"):
    stated = settings[tower].items()
    settings[tower] = {k: v for k, v in stated if k not in stated_fields.SIZES}
  return {**settings, "compute_dtype": dtype}
