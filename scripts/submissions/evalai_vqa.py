"""VQAv2 and TextVQA at EvalAI: [{"question_id": 1, "answer": "down"}, ...].

The server of VQAv2 takes the answers of `test` for its phase test-dev too.

Source: https://visualqa.org/evaluation.html, "Results Format"; for TextVQA
lmms-eval 0.7.3, tasks/textvqa/utils.py.
"""

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _entry(record: Record) -> Entry:
  return {"question_id": record["question_id"], "answer": record["prediction"]}


FORMAT = Format(_entry)
