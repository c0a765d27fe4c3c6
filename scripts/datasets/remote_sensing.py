"""RSVQA: questions about pictures from above, without those about numbers.

As the "nonum" builders of the reference (google-research/big_vision,
big_vision/datasets/{rsvqa_lr,rsvqa_hr}): questions that are not active are left
out, and those of a count, or of an area.
"""

import functools
from collections.abc import Sequence
from typing import Any

from scripts.datasets.data_set import (
  DataSet,
  Picture,
  Records,
  Split,
  flag,
  paired,
)
from scripts.datasets.raw import Raw


def _read(raw: Raw, start: str) -> Records:
  """Questions with their answers, which are in a file in the same order."""
  files = f"{start}_questions.json", f"{start}_answers.json"
  questions, answers = map(raw.items, files, ("questions", "answers"))
  for question, answer in paired(" and ".join(files), questions, answers):
    where, x = question
    if flag(x, "active"):
      if x["id"] != answer[1]["question_id"]:
        raise ValueError(f"{where}: {answer[0]} answers another question")
      yield where, (x, answer[1]["answer"])


def _fields(
  folder: str, left_out: Sequence[str], record: Sequence[Any]
) -> dict[str, Any] | None:
  x, answer = record
  if x["type"] in left_out:
    return None
  names = tuple(f"{folder}/{x['img_id']}{end}" for end in (".png", ".tif"))
  return {
    "image": Picture(names),
    "question": x["question"],
    "question_type": x["type"],
    "answers": [answer],
    "question_id": x["id"],
  }


def _data_set(about, record, size, start, folder, left_out, splits):
  source = f"https://zenodo.org/records/{record}"
  return DataSet(
    about=about,
    homepage="https://rsvqa.sylvainlobry.com",
    licence="CC BY 4.0",
    size=size,
    files={
      **{
        f"{start}_split_{file}_{what}.json": source
        for file, _ in splits.values()
        for what in ("questions", "answers")
      },
      folder: source,
    },
    splits={
      split: Split(
        functools.partial(_read, start=f"{start}_split_{file}"),
        functools.partial(_fields, folder, left_out),
        count,
      )
      for split, (file, count) in splits.items()
    },
  )


DATA_SETS = {
  "rsvqa_lr": _data_set(
    "Questions about satellite pictures of 10 m a pixel.",
    6344334,
    "200 MB",
    "LR",
    "Images_LR",
    ("count",),
    {
      "train": ("train", 39_441),
      "val": ("val", 6_782),
      "test": ("test", 6_782),
    },
  ),
  "rsvqa_hr": _data_set(
    "Questions about aerial pictures of 15 cm a pixel; test_2 is another town.",
    6344367,
    "14 GB",
    "USGS",
    "Data",
    ("area", "count"),
    {
      "train": ("train", 371_834),
      "val": ("val", 60_405),
      "test": ("test", 131_468),
      "test_2": ("test_phili", 62_554),
    },
  ),
}
