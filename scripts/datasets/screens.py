"""Captions of screens of apps and of their elements, over the pictures of RICO.

Fields as the reference's builders yield them (google-research/big_vision,
big_vision/datasets/{screen2words,widgetcap}), under the names of our configs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma.data import image_files
from scripts.datasets import sources
from scripts.datasets.data_set import DataSet, Records, Split
from scripts.datasets.raw import Raw

_GOOGLE = "https://github.com/google-research-datasets"
_CANVAS_HEIGHT = 2560  # of RICO, in which boxes are given


def _screen2words(raw: Raw, split: str) -> Records:
  captions = {}
  for _, row in raw.rows("screen_summaries.csv"):
    captions.setdefault(int(row["screenId"]), []).append(row["summary"])
  for where, line in raw.lines(f"split/{split}_screens.txt"):
    yield where, (int(line), captions.get(int(line), []))


def _screen2words_fields(record: Sequence[Any]) -> dict[str, Any]:
  screen, captions = record
  return {"image": f"combined/{screen}.jpg", "captions": captions}


def _widgetcap(raw: Raw, split: str) -> Records:
  """Elements with their captions, the hierarchy of the screen and its size."""
  screens = {line.strip() for _, line in raw.lines(f"split/{split}.txt")}
  for where, row in raw.rows("widget_captions.csv"):
    screen = row["screenId"]
    if screen in screens:
      view, picture = (f"combined/{screen}{end}" for end in (".json", ".jpg"))
      size = image_files.size(raw.read(picture), where=picture)
      yield where, (row, raw.json(view), size)


def _widgetcap_fields(record: Sequence[Any]) -> dict[str, Any]:
  row, view, (height, width) = record
  box = _bounds(view, row["nodeId"])
  x0, y0, x1, y1 = (x * height / _CANVAS_HEIGHT for x in box)
  return {
    "image": f"combined/{row['screenId']}.jpg",
    "captions": row["captions"].split("|"),
    "bbox": [y0 / height, x0 / width, y1 / height, x1 / width],
  }


def _bounds(view: Mapping[str, Any], node: str) -> Sequence[float]:
  """The box of a node: "0.1.2" is the third child of the second of the root."""
  found = view["activity"]["root"]
  for index in node.split(".")[1:]:
    found = found["children"][int(index)]
  return found["bounds"]


DATA_SETS = {
  "screen2words": DataSet(
    about="What the screen of an app is for, in five captions.",
    homepage=f"{_GOOGLE}/screen2words",
    licence="CC BY 4.0",
    size="6 GB",
    files={
      "screen_summaries.csv": f"{_GOOGLE}/screen2words",
      "split": f"{_GOOGLE}/screen2words",
      **sources.RICO,
    },
    splits={
      split: Split(
        functools.partial(_screen2words, split=split),
        _screen2words_fields,
        count,
      )
      for split, count in {
        "train": 15_743,
        "dev": 2_364,
        "test": 4_310,
      }.items()
    },
  ),
  "widgetcap": DataSet(
    about="What the element of an app does that a box surrounds.",
    homepage=f"{_GOOGLE}/widget-caption",
    licence="CC BY 4.0",
    size="6 GB",
    files={
      "widget_captions.csv": f"{_GOOGLE}/widget-caption",
      "split": f"{_GOOGLE}/widget-caption",
      **sources.RICO,
    },
    splits={
      split: Split(
        functools.partial(_widgetcap, split=split), _widgetcap_fields, count
      )
      for split, count in {
        "train": 41_221,
        "dev": 3_483,
        "test": 3_621,
      }.items()
    },
  ),
}
