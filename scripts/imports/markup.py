"""XML files."""

import pathlib
from xml.etree import ElementTree

from scripts.imports import files


def read(path: pathlib.Path) -> ElementTree.Element:
  """The root of an XML file.

  A file that declares entities is refused: no annotation needs them, and a few
  lines of them can grow to gigabytes.

  Raises:
    ValueError: it cannot be read, is malformed, or declares entities.
  """
  text = files.read_text(path)
  if "<!ENTITY" in text:
    raise ValueError(f"{path}: declares XML entities, expected none")
  try:
    return ElementTree.fromstring(text)
  except ElementTree.ParseError as error:
    line, column = error.position
    reason = str(error).partition(":")[0]
    raise ValueError(
      f"{path}:{line}: malformed XML at column {column + 1}: {reason}"
    ) from None
