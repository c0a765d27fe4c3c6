"""The objects in predictions, as a field of their lines.

    {"prediction": "<loc...>x4 cat", "height": 480, "width": 640,
     "objects": [{"box": [12.0, 0.0, 400.5, 320.0], "label": "cat",
                  "score": 0.934, "mask": {"size": [480, 640], "counts": ...}}]}

Boxes are (y0, x0, y1, x1) in pixels of the original image, and scores the
confidences of metrics/confidence.py in them.
"""

import dataclasses
import os
from collections.abc import Sequence

from paligemma.data import location, objects
from paligemma.evals import predictions
from paligemma.evals.predictions import Record


@dataclasses.dataclass(frozen=True)
class AddObjects:
  """Adds "objects" to a record with "height" and "width".

  A prediction with malformed objects also gets "malformed", what is wrong with
  the first of them; they stay in the text of the prediction alone.

  Attributes:
    codec: name of the mask codec, which is compared when a file is continued.
    decode: decodes masks. Default: objects have none.
  """

  codec: str | None = None
  decode: objects.DecodeMasks | None = dataclasses.field(
    default=None, repr=False
  )

  def __call__(self, record: Record) -> Record:
    text, size = record["prediction"], (record["height"], record["width"])
    if not all(isinstance(edge, int) and edge > 0 for edge in size):
      raise ValueError(
        f"{record['where']}: height and width are {size!r:.60}, expected those"
        " of the image in pixels"
      )
    found = objects.parse(
      text,
      size,
      decode=self.decode,
      scores=record.get("confidences", ()),
    )
    record = {**record, "objects": [objects.to_json(item) for item in found]}
    problems = (item.problem for item in location.parse(text, size))
    if problem := next(filter(None, problems), ""):
      record["malformed"] = problem
    return record


@dataclasses.dataclass(frozen=True)
class Answers:
  """The predictions for one image.

  Attributes:
    image: its path, as the predictions name it.
    name: path without suffix for what is written about it, other than that of
      any other image, below the folder that all images have in common.
    size: (height, width) in pixels.
    index: of the first prediction.
    texts: the predictions.
    objects: of all of them, as in their lines.
  """

  image: str
  name: str
  size: location.Size
  index: int
  texts: list[str]
  objects: list[objects.Object]


def by_image(
  records: Sequence[Record], min_score: float = 0.0
) -> list[Answers]:
  """Groups records with "objects" by image, of several the first.

  Args:
    records: bad ones are left out.
    min_score: objects with a lower score are left out.
  """
  groups: dict[str, list[Record]] = {}
  for record in records:
    if not predictions.is_bad(record):
      image = record["image"]
      image = image[0] if isinstance(image, list) else image
      groups.setdefault(image, []).append(record)
  return [
    Answers(
      image,
      name,
      size=(own[0]["height"], own[0]["width"]),
      index=own[0]["index"],
      texts=[record["prediction"] for record in own],
      objects=[
        item
        for record in own
        for item in record["objects"]
        if item["score"] >= min_score
      ],
    )
    for (image, own), name in zip(groups.items(), _names(groups), strict=True)
  ]


def _names(images):
  """Yields a name for each path; equal ones but for the suffix are numbered."""
  paths = [os.path.abspath(image) for image in images]
  folder = os.path.commonpath(map(os.path.dirname, paths)) if paths else ""
  taken = set()
  for path in paths:
    name = stem = os.path.splitext(os.path.relpath(path, folder))[0]
    number = 1
    while name in taken:
      number += 1
      name = f"{stem}-{number}"
    taken.add(name)
    yield name
