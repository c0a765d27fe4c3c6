"""NoCaps at EvalAI, as results of COCO: [{"image_id": 0, "caption": "a dog"}].

Source: https://nocaps.org/download; nocaps-org/updown-baseline,
updown/utils/evalai.py.
"""

from paligemma.evals.predictions import Record
from scripts.submissions.submission_format import Entry, Format


def _entry(record: Record) -> Entry:
  return {"image_id": record["image_id"], "caption": record["prediction"]}


FORMAT = Format(_entry)
