"""How sure a model is of what it wrote: of each object, and of its fields."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from paligemma.data import location

_LOCATIONS = re.compile("<loc[0-9]+>(?:[^<]*<loc[0-9]+>){3}")
_CODES = re.compile("<seg[0-9]+>(?:[^<]*<seg[0-9]+>)*")


@dataclasses.dataclass(frozen=True)
class Confidence:
  """Confidences in one object; None where it has no such field.

  Each is exp(mean of the log-probabilities of the field's tokens), in [0, 1]:
  their geometric mean, which does not fall with the number of tokens.

  Attributes:
    thing: the object, as location.parse gives it.
    box: of its four locations; what the detection metric takes.
    codes: of the 16 codes of its mask.
    label: of the tokens with a letter of its label.
    overall: of all its tokens, without the separator behind it.
  """

  thing: location.Object
  box: float | None
  codes: float | None
  label: float | None
  overall: float


def of_objects(
  pieces: Sequence[str], log_probs: Sequence[float], size: tuple[int, int]
) -> list[Confidence]:
  """Reads the objects of a decoded text, and how sure the model is of each.

  Args:
    pieces: what each token adds to the text, such as "<loc0012>" and " cat";
      joined, they are the text. "" belongs to the character that follows, as
      the first bytes of one do, which SentencePiece shows with the last; so
      does eos, behind which nothing follows, to none.
    log_probs: float[T], log-probability of each, of decode.Decoded.
    size: (height, width) of the original image in pixels.

  Returns:
    One Confidence per object, in the order of location.parse.

  Raises:
    ValueError: there are not as many log-probabilities as pieces.
  """
  if len(pieces) != len(log_probs):
    raise ValueError(
      f"{len(log_probs)} log-probabilities of {len(pieces)} pieces, expected"
      " one for each."
    )
  text = "".join(pieces)
  stops = np.cumsum([len(piece) for piece in pieces])
  starts = stops - [len(piece) for piece in pieces]
  stops = np.maximum(stops, starts + 1)
  log_probs = np.asarray(log_probs, np.float64)

  def confidence(span):
    start, stop = span
    own = log_probs[(starts < stop) & (stops > start)]
    return math.exp(own.mean())

  found = []
  for thing in location.parse(text, size):
    start, stop = thing.span
    fields = {
      "box": thing.box and _LOCATIONS.match(text, start, stop).span(),
      "codes": thing.codes and _CODES.search(text, start, stop).span(),
      "label": thing.label and (stop - len(thing.label), stop),
    }
    sure = {name: confidence(s) if s else None for name, s in fields.items()}
    found.append(Confidence(thing, overall=confidence(thing.span), **sure))
  return found
