"""Files for test servers: what each server reads, and what it would refuse."""

import json

import pytest

from scripts.datasets import catalog as data_sets
from scripts.submissions import catalog


def record(index=0, **fields):
  return {"index": index, "prediction": 'a "red" barn', **fields}


ASKED = {"question_id": 262148000, "image": "test2015/COCO_9.jpg"}
# Transfer, evaluator, fields of the record -> the file.
FILES = [
  (
    "vqav2",
    "test",
    ASKED,
    '[{"question_id": 262148000, "answer": "a \\"red\\" barn"}]',
  ),
  ("textvqa", "test", ASKED | {"question_id": 7}, '[{"question_id": 7, "answ'),
  (
    "vizwizvqa",
    "test",
    {"question_id": "VizWiz_test_00000001.jpg"},
    '[{"image": "VizWiz_test_00000001.jpg", "answer": "a \\"red\\" barn"}]',
  ),
  ("docvqa", "test", {"question_id": 337}, '[{"questionId": 337, "answer": '),
  ("infovqa", "test", {"question_id": 7}, '[{"questionId": 7, "answer": '),
  ("stvqa", "test", {"question_id": 0}, '[{"question_id": 0, "answer": '),
  (
    "cococap",
    "nocaps",
    {"image_id": 0, "image": "validation/0013.jpg"},
    '[{"image_id": 0, "caption": "a \\"red\\" barn"}]',
  ),
  (
    "aokvqa_da",
    "test",
    {"question_id": "22MexN"},
    '{"22MexN": "a \\"red\\" barn"}',
  ),
  ("aokvqa_mc", "test", {"question_id": "22MexN"}, '{"22MexN": "a'),
  (
    "chartqa",
    "test_human",
    {"imgname": "1.png", "question": "Which, 1 or 2?", "answer": "57%"},
    "imgname,query,label,prediction\n"
    '1.png,"Which, 1 or 2?",57%,"a ""red"" barn"\n',
  ),
]


@pytest.mark.parametrize(("task", "split", "fields", "start"), FILES)
def test_what_a_server_reads(task, split, fields, start, tmp_path):
  form = catalog.FORMATS[task, split]
  path = tmp_path / f"a{form.suffix}"
  assert catalog.write(form, [record(**fields)], path, 1) == []
  assert path.read_text().startswith(start)
  if form.suffix == ".json":
    json.loads(path.read_text())


def test_every_format_is_tested_and_of_a_split_that_is_prepared():
  tested = {x[:2] for x in FILES} | {("chartqa", "test_augmented")}
  assert tested == catalog.FORMATS.keys()
  for task, split in catalog.FORMATS:
    name = task.removesuffix("_da").removesuffix("_mc")
    assert data_sets.DATA_SETS[name].splits[split].count


def test_answers_that_are_missing_are_counted(tmp_path):
  form = catalog.FORMATS["vqav2", "test"]
  path = tmp_path / "a.json"
  records = [
    record(0, question_id=1),
    {"index": 1, "error": "test.jsonl:2: damaged image"},
  ]
  line = f"{path}: 1 answers, 1,999 too few, the first: test.jsonl:2: damaged "
  assert catalog.write(form, records, path, 2000) == [f"{line}image"]
  assert catalog.write(form, records, path) == [
    f"{path}: 1 answers, 1 too few, the first: test.jsonl:2: damaged image"
  ]
  assert json.loads(path.read_text()) == [
    {"question_id": 1, "answer": 'a "red" barn'}
  ]
  twice = [record(0, question_id=1), record(1, question_id=1)]
  assert catalog.write(form, twice, path, 1) == [
    f"{path}: 2 answers, 1 too many",
    f"{path}: 1 questions are answered twice",
  ]


def test_predictions_for_other_data(tmp_path):
  form = catalog.FORMATS["textvqa", "test"]
  with pytest.raises(ValueError, match="have no 'question_id', which the serv"):
    catalog.write(form, [record()], tmp_path / "a.json", 1)
  assert not list(tmp_path.iterdir())
