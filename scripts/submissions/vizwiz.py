"""VizWiz at EvalAI: [{"image": "VizWiz_test_00000000.jpg", "answer": "a can"}].

Source: lmms-eval 0.7.3, tasks/vizwiz_vqa/utils.py.
"""

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _entry(record: Record) -> Entry:
  return {"image": record["question_id"], "answer": record["prediction"]}


FORMAT = Format(_entry)
