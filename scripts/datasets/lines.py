"""The line of an example: a JSON object with fields of the right kinds."""

import json
from collections.abc import Mapping
from typing import Any

_TEXT, _NUMBER, _EITHER = str, int, str | int
# Fields of one value, and the types of it.
_KINDS = {
  **dict.fromkeys(("question", "question_type", "answer_type"), _TEXT),
  **dict.fromkeys(("sentence", "label", "caption", "imgname"), _TEXT),
  **dict.fromkeys(("hint", "lecture", "solution", "language"), _TEXT),
  **dict.fromkeys(("correct", "answerable", "issimple", "pair"), _NUMBER),
  **dict.fromkeys(("height", "width"), _NUMBER),
  **dict.fromkeys(("question_id", "image_id"), _EITHER),
}
_LISTS = ("answers", "direct_answers", "captions", "choices", "sentences")
_NAMES = {_TEXT: "a text", _NUMBER: "a number", _EITHER: "a text or a number"}


def encode(example: Mapping[str, Any], answer: type = str) -> str:
  """Returns the line of an example, without its end.

  Args:
    example: Its fields.
    answer: Type of the field "answer", str or int.

  Raises:
    ValueError: A field is of another kind, such as a question that is null, or
      holds what a JSON file cannot: NaN, or half a character.
  """
  kinds = {**_KINDS, "answer": answer}
  for name, value in example.items():
    if name in _LISTS:
      if not (isinstance(value, list) and all(_is(x, _TEXT) for x in value)):
        raise ValueError(f"{name} is {value!r:.60}, expected a list of texts")
    elif name in kinds and not _is(value, kinds[name]):
      expected = _NAMES[kinds[name]]
      raise ValueError(f"{name} is {value!r:.60}, expected {expected}")
  line = json.dumps(example, ensure_ascii=False, allow_nan=False)
  try:
    line.encode()
  except UnicodeEncodeError as error:
    character = error.object[error.start]
    raise ValueError(
      f"a text holds {character!a}, half a surrogate pair, which is no "
      "character"
    ) from None
  return line


def _is(value, kind):
  return isinstance(value, kind) and not isinstance(value, bool)
