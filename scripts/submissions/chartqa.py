"""ChartQA: a table of the publisher's fields, and the prediction.

    imgname,query,label,prediction

There is no server, as the answers are public: it is for scorers of others.

Source: https://github.com/vis-nlp/ChartQA, whose test_human.json and
test_augmented.json have these fields.
"""

import csv
import io
from collections.abc import Sequence

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _entry(record: Record) -> Entry:
  return {
    "imgname": record["imgname"],
    "query": record["question"],
    "label": record["answer"],
    "prediction": record["prediction"],
  }


def _text(entries: Sequence[Entry]) -> str:
  file = io.StringIO()
  writer = csv.DictWriter(
    file, ("imgname", "query", "label", "prediction"), lineterminator="\n"
  )
  writer.writeheader()
  writer.writerows(entries)
  return file.getvalue()


FORMAT = Format(_entry, _text, ".csv")
