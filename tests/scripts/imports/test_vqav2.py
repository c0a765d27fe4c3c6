"""Questions and answers of VQAv2 and OK-VQA."""

import pytest

from scripts import import_data
from scripts.imports import vqav2
from tests.scripts.imports.reading import picture, read, write_json


def questions(subset="train2014", **fields):
  question = {"image_id": 9, "question": "Is it red?", "question_id": 9000}
  return {
    "info": {},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "data_subtype": subset,
    "questions": [{**question, **fields}],
  }


def answers(*texts, key=9000):
  return {
    "annotations": [
      {
        "question_type": "is it",
        "multiple_choice_answer": "yes",
        "answers": [
          {"answer": text, "answer_confidence": "yes", "answer_id": i + 1}
          for i, text in enumerate(texts)
        ],
        "image_id": 9,
        "answer_type": "yes/no",
        "question_id": key,
      }
    ]
  }


def write(
  folder, prefix="v2_", subset="train2014", questioned=None, answered=None
):
  source = folder / f"{prefix}OpenEnded_mscoco_{subset}_questions.json"
  write_json(source, questioned or questions(subset))
  write_json(
    folder / f"{prefix}mscoco_{subset}_annotations.json",
    answered or answers(*["yes"] * 8, "no", "red"),
  )
  return source


@pytest.mark.parametrize("prefix", ["v2_", ""])
def test_ten_answers(prefix, tmp_path):
  src = write(tmp_path, prefix)
  ((entry,), labels, problems) = read(vqav2.read, src)
  assert entry.question == "Is it red?"
  assert entry.answers == (*["yes"] * 8, "no", "red")
  assert entry.images[0] == tmp_path / "COCO_train2014_000000000009.jpg"
  assert entry.split == "train"
  assert entry.fields == {
    "question_id": 9000,
    "image_id": 9,
    "question_type": "is it",
    "answer_type": "yes/no",
    "multiple_choice_answer": "yes",
  }
  assert labels is None and not problems.notes


@pytest.mark.parametrize(
  "name",
  [
    "COCO_train2014_000000000009.jpg",
    "train2014/COCO_train2014_000000000009.jpg",
    "000000000009.jpg",
    "train2014/000000000009.jpg",
  ],
)
def test_where_pictures_lie(name, tmp_path):
  path = picture(tmp_path / "coco" / name)
  ((entry,), _, _) = read(vqav2.read, write(tmp_path), tmp_path / "coco")
  assert entry.images[0] == path


def test_abstract_scenes(tmp_path):
  scenes = questions("train2015") | {"data_type": "abstract_v002"}
  path = picture(tmp_path / "abstract_v002_train2015_000000000009.png")
  ((entry,), _, _) = read(vqav2.read, write(tmp_path, questioned=scenes))
  assert entry.images[0] == path


def test_folders_have_several_splits(tmp_path):
  write(tmp_path / "Questions")
  write(tmp_path, subset="val2014")
  (tmp_path / "Annotations").mkdir()
  name = "v2_mscoco_train2014_annotations.json"
  (tmp_path / "Questions" / name).rename(tmp_path / "Annotations" / name)
  test = tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json"
  write_json(test, questions("test2015"))
  found, _, problems = read(vqav2.read, tmp_path)
  assert [entry.split for entry in found] == ["train", "val"]
  what = "files of questions without answers left out"
  assert problems.notes == {what: (1, str(test))}
  with pytest.raises(
    ValueError,
    match="questions without answers, expected v2_mscoco_test2015_annot",
  ):
    read(vqav2.read, test)


def test_import(tmp_path):
  picture(tmp_path / "src" / "train2014" / "COCO_train2014_000000000009.jpg")
  src = write(tmp_path / "src")
  records, _ = import_data.import_data(
    "vqav2", src, tmp_path / "out", task="vqa"
  )
  (record,) = records["train"]
  assert record["prefix"] == "answer en Is it red?"
  assert record["suffix"] == "yes"
  assert record["answers"] == [*["yes"] * 8, "no", "red"]
  assert record["question_id"] == 9000


def test_empty_answers(tmp_path):
  src = write(tmp_path, answered=answers("", " yes "))
  ((entry,), _, problems) = read(vqav2.read, src)
  assert entry.answers == ("yes",)
  assert list(problems.notes) == ["empty answers left out"]


@pytest.mark.parametrize(
  ("questioned", "answered", "message"),
  [
    (
      None,
      answers("yes", key=1),
      "number 0: its question_id 9000 has no answer",
    ),
    (questions(image_id="x"), None, 'expected int under "image_id", found'),
    (questions(question=None), None, 'expected str under "question", found'),
    (
      None,
      {"annotations": [{"question_id": 9000}]},
      'number 0: missing key "answers", found question_id',
    ),
    (
      None,
      {"annotations": [{"question_id": 9000, "answers": ["yes"]}]},
      "number 0: expected fields",
    ),
    ({"a": 1}, None, 'questions.json: missing key "questions", found a'),
    (None, {"a": 1}, 'annotations.json: missing key "annotations", found a'),
  ],
)
def test_bad_files(questioned, answered, message, tmp_path):
  src = write(tmp_path, questioned=questioned, answered=answered)
  with pytest.raises(ValueError) as info:
    read(vqav2.read, src)
  assert message in str(info.value)
