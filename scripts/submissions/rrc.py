"""Robust Reading Competition (rrc.cvc.uab.es): three data sets.

    [{"questionId": 337, "answer": "1/8/93"}, ...]    DocVQA, InfographicVQA
    [{"question_id": 0, "answer": "exit"}, ...]       ST-VQA

Source: https://rrc.cvc.uab.es/?ch=17&com=tasks; lmms-eval 0.7.3,
tasks/{docvqa,infovqa,stvqa}/utils.py.
"""

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _named(key):
  def entry(record: Record) -> Entry:
    return {key: record["question_id"], "answer": record["prediction"]}

  return Format(entry)


DOCUMENTS = _named("questionId")
SCENES = _named("question_id")
