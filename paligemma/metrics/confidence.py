"""Confidence of a model in each object that it wrote, and in its fields."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from paligemma.data import location

_LOCATIONS = re.compile("<loc[0-9]+>(?:[^<]*<loc[0-9]+>){3}")
_CODES = re.compile("<seg[0-9]+>(?:[^<]*<seg[0-9]+>)*")


@dataclasses.dataclass(frozen=True)
class Confidence:
  """Confidences in one object; None for a field that it lacks.

  Each is exp(mean of the log-probabilities of the field's tokens), in [0, 1]:
  the geometric mean, which does not fall with the number of tokens.

  Attributes:
    box: of its four locations; the detection metric reads it.
    codes: of the 16 codes of its mask.
    label: of the tokens with a letter of its label.
    overall: of all its tokens, without the separator after it.
  """

  object: location.Object
  box: float | None
  codes: float | None
  label: float | None
  overall: float


def of_boxes(
  pieces: Sequence[str], log_probs: Sequence[float] | Float[np.ndarray, " T"]
) -> list[float]:
  """Returns the confidence in each box; arguments as of `of_objects`."""
  found = of_objects(pieces, log_probs, (1, 1))
  return [item.box for item in found if item.box is not None]


def of_objects(
  pieces: Sequence[str],
  log_probs: Sequence[float] | Float[np.ndarray, " T"],
  size: tuple[int, int],
) -> list[Confidence]:
  """Returns the objects of a decoded text with their confidences.

  Args:
    pieces: the text that each token adds, such as "<loc0012>" and " cat". A
      token that adds "" counts for the character that follows, because
      SentencePiece shows a character of several byte tokens with the last; eos,
      which nothing follows, counts for none.
    log_probs: log-probability of each token, of decode.Decoded.
    size: (height, width) of the original image in pixels.

  Raises:
    ValueError: the numbers of log-probabilities and pieces differ.
  """
  if len(pieces) != len(log_probs):
    raise ValueError(
      f"{len(log_probs)} log-probabilities of {len(pieces)} pieces, expected"
      " one for each."
    )
  text = "".join(pieces)
  lengths = list(map(len, pieces))
  stops = np.cumsum(lengths)
  starts = stops - lengths
  stops = np.maximum(stops, starts + 1)
  log_probs = np.asarray(log_probs, np.float64)

  def confidence(span):
    start, stop = span
    own = log_probs[(starts < stop) & (stops > start)]
    return math.exp(own.mean())

  found = []
  for item in location.parse(text, size):
    start, stop = item.span
    spans = {
      "box": item.box and _LOCATIONS.match(text, start, stop).span(),
      "codes": item.codes and _CODES.search(text, start, stop).span(),
      "label": item.label and (stop - len(item.label), stop),
    }
    values = {name: confidence(s) if s else None for name, s in spans.items()}
    found.append(Confidence(item, overall=confidence(item.span), **values))
  return found
