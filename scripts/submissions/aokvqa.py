"""A-OKVQA's leaderboard: {"22MexNkBPpdZGX6sxbxVBH": "cab", ...}.

One file for direct answers and one for multiple choice, which the publisher's
evaluation/prepare_predictions.py makes one of (--da, --mc).

Source: https://github.com/allenai/aokvqa, README.md, "Evaluation".
"""

import json
from collections.abc import Sequence

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _entry(record: Record) -> Entry:
  return {
    "question_id": record["question_id"],
    "prediction": record["prediction"],
  }


def _text(entries: Sequence[Entry]) -> str:
  answers = {x["question_id"]: x["prediction"] for x in entries}
  return json.dumps(answers, ensure_ascii=False)


FORMAT = Format(_entry, _text)
