"""VizWiz at EvalAI: [{"image": "VizWiz_test_00000000.jpg", "answer": "a can"}].

Source: lmms-eval 0.7.3, tasks/vizwiz_vqa/utils.py.
"""

import pathlib

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _entry(record: Record) -> Entry:
  image = pathlib.PurePosixPath(record["image"]).name
  return {"image": image, "answer": record["prediction"]}


FORMAT = Format(_entry)
