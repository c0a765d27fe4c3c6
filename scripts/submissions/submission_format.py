"""What a server expects of a file of answers."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from paligemma.evals.predictions import Record

Entry = dict[str, Any]


def as_list(entries: Sequence[Entry]) -> str:
  """A JSON list of all entries."""
  return json.dumps(entries, ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Format:
  """The file that a server takes.

  Attributes:
    entry: Record of a prediction -> what the file says of it. The last value is
      the answer, those before it say to what.
    text: All entries -> contents of the file.
    suffix: Of the file.
  """

  entry: Callable[[Record], Entry]
  text: Callable[[Sequence[Entry]], str] = as_list
  suffix: str = ".json"
