"""The measurement of scripts.prepare, with fewer annotations."""

import json

from tests.stress import annotations


def test_every_annotation_is_an_example(tmp_path):
  seconds, gib, size = annotations.run(1003, tmp_path)
  assert seconds > 0 and gib > 0 and size > 500 * 1003
  lines = (tmp_path / "data/train.jsonl").read_text().splitlines()
  assert len(lines) == 1003
  last = json.loads(lines[-1])
  assert last["image"].endswith("raw/train2014/COCO_train2014_000000000002.jpg")
  assert (last["question_id"], len(last["answers"])) == (1002, 10)
