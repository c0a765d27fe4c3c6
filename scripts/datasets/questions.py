"""Questions about pictures, in the form of VQA: one file or two a split.

Fields as the reference's builders yield them (google-research/big_vision,
big_vision/datasets/{vqa,okvqa,aokvqa,gqa,xgqa,vizwizvqa,pope,tallyqa}), under
the names of our configs. VizWiz has empty answers, which are left out there
too; the questions of xGQA are those of GQA's testdev in eight languages.
"""

import functools
import io
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from scripts.datasets import sources
from scripts.datasets.data_set import DataSet, Records, Split, paired
from scripts.datasets.raw import Raw
from scripts.imports import entries

XGQA_LANGUAGES = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
_COUNTBENCH = (
  "train-00000-of-00001-cf54c241ba947306.parquet",
  "countbench_paired_questions.json",
)
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_OKVQA = "https://okvqa.allenai.org/static/data"
_VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_POPE = "https://github.com/AoiDragon/POPE/tree/main/output/coco"
_XGQA = "https://github.com/e-bug/iglue/tree/main/datasets/xGQA/annotations"


def _vqa(raw: Raw, questions: str, annotations: str | None) -> Records:
  """Questions with their answers, which are in a file of their own.

  Most answers are a few words that others gave too: they are kept once.
  """
  answers = {}
  if annotations is not None:
    for where, x in raw.items(annotations, "annotations"):
      try:
        answers[x["question_id"]] = (
          tuple(sys.intern(answer["answer"]) for answer in x["answers"]),
          sys.intern(x["question_type"]),
          sys.intern(x["answer_type"]),
        )
      except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: malformed annotation: {error}") from None
  for where, question in raw.items(questions, "questions"):
    yield where, (question, answers.get(question["question_id"]), where)


def _vqa_fields(subset: str, hidden: bool, record: Sequence[Any]) -> dict:
  question, answer, where = record
  fields = {
    "image": sources.coco_2014(question["image_id"], subset),
    "question": question["question"],
    "question_id": question["question_id"],
  }
  if hidden:
    return fields
  if answer is None:
    raise ValueError(
      f"{where}: question {question['question_id']} has no answers in the "
      "file of annotations"
    )
  answers, question_type, answer_type = answer
  return {
    **fields,
    "answers": list(answers),
    "question_type": question_type,
    "answer_type": answer_type,
  }


def _vqa_split(start, subset, count, *, year=None, hidden=False):
  """`start` is that of the file names, "v2_" of VQAv2."""
  of = f"mscoco_{year or subset}"
  annotations = None if hidden else f"{start}{of}_annotations.json"
  return Split(
    functools.partial(
      _vqa,
      questions=f"{start}OpenEnded_{of}_questions.json",
      annotations=annotations,
    ),
    functools.partial(_vqa_fields, subset, hidden),
    count,
    hidden,
  )


def _aokvqa(split: str, x: Mapping[str, Any]) -> dict:
  fields = {
    "image": f"{split}2017/{x['image_id']:012d}.jpg",
    "question": x["question"],
    "question_id": x["question_id"],
    "choices": x["choices"],
  }
  if split == "test":
    return fields
  return {
    **fields,
    "correct": x["correct_choice_idx"],
    "direct_answers": x["direct_answers"],
  }


def _gqa(record: Sequence[Any]) -> dict:
  name, x = record
  return {
    "image": f"images/{x['imageId']}.jpg",
    "question": x["question"],
    "answer": x["answer"],
    "question_id": name,
  }


def _vizwiz(split: str, x: Mapping[str, Any]) -> dict:
  fields = {"image": f"{split}/{x['image']}", "question": x["question"]}
  fields["question_id"] = x["image"]
  if split == "test":
    return fields
  answers = [answer["answer"] for answer in x["answers"] if answer["answer"]]
  return {**fields, "answers": answers, "answerable": x["answerable"]}


def _pope(x: Mapping[str, Any]) -> dict:
  return {
    "image": f"val2014/{x['image']}",
    "question": x["text"],
    "answer": x["label"],
  }


def _tallyqa(x: Mapping[str, Any]) -> dict:
  return {
    "image": x["image"],
    "question": x["question"],
    "answer": int(x["answer"]),
    # Unknown of those to train on.
    "issimple": int(x.get("issimple", -1)),
  }


def _countbenchqa(raw: Raw) -> Records:
  table, questions = _COUNTBENCH
  pairs = raw.parquet(table), raw.items(questions)
  for (where, row), (_, asked) in paired(" and ".join(_COUNTBENCH), *pairs):
    yield where, (where.rpartition(" ")[2], row, asked["question"])


def _countbenchqa_fields(record: Sequence[Any]) -> dict[str, Any] | None:
  """None without a picture, or with a gray one, as in the reference."""
  number, row, question = record
  if row["image"] is None:
    return None
  data = row["image"]["bytes"]
  with Image.open(io.BytesIO(data)) as picture:
    if picture.mode not in ("RGB", "RGBA"):
      return None
    end = f".{picture.format.lower()}"
  return {
    "image": entries.Contents(
      pathlib.PurePosixPath(f"countbenchqa/{number}{end}"), data
    ),
    "question": question,
    "answer": int(row["number"]),
  }


DATA_SETS = {
  "vqav2": DataSet(
    about="Questions about pictures, with the answers of ten people. test has "
    "the questions of test-dev too; its answers are on the test server.",
    homepage="https://visualqa.org/download.html",
    licence="CC BY 4.0",
    size="32 GB",
    files={
      **{
        f"v2_OpenEnded_mscoco_{subset}_questions.json": f"{_VQA}/"
        f"v2_Questions_{name}_mscoco.zip"
        for subset, name in {
          "train2014": "Train",
          "val2014": "Val",
          "test2015": "Test",
        }.items()
      },
      **{
        f"v2_mscoco_{subset}_annotations.json": f"{_VQA}/"
        f"v2_Annotations_{name}_mscoco.zip"
        for subset, name in {"train2014": "Train", "val2014": "Val"}.items()
      },
      **sources.COCO_2014,
      **sources.COCO_2015,
    },
    splits={
      "train": _vqa_split("v2_", "train2014", 443_757),
      "validation": _vqa_split("v2_", "val2014", 214_354),
      "test": _vqa_split("v2_", "test2015", 447_793, hidden=True),
      "test-dev": _vqa_split(
        "v2_", "test2015", 107_394, year="test-dev2015", hidden=True
      ),
    },
  ),
  "okvqa": DataSet(
    about="Questions that ask for knowledge from outside of the picture.",
    homepage="https://okvqa.allenai.org/download.html",
    licence="see the homepage",
    size="19 GB",
    files={
      **{
        f"OpenEnded_mscoco_{subset}_questions.json": f"{_OKVQA}/"
        f"OpenEnded_mscoco_{subset}_questions.json.zip"
        for subset in ("train2014", "val2014")
      },
      **{
        f"mscoco_{subset}_annotations.json": f"{_OKVQA}/"
        f"mscoco_{subset}_annotations.json.zip"
        for subset in ("train2014", "val2014")
      },
      **sources.COCO_2014,
    },
    splits={
      "train": _vqa_split("", "train2014", 9_009),
      "val": _vqa_split("", "val2014", 5_046),
    },
  ),
  "aokvqa": DataSet(
    about="A-OKVQA: direct answers of ten people, and four choices. For "
    "aokvqa_da and aokvqa_mc.",
    homepage="https://allenai.org/project/a-okvqa/home",
    licence="Apache 2.0",
    size="25 GB",
    files={
      "aokvqa_v1p0_train.json": "https://prior-datasets.s3.us-east-2."
      "amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz, of which are also _val and "
      "_test",
      **sources.COCO_2017,
    },
    splits={
      name: Split(
        functools.partial(Raw.items, path=f"aokvqa_v1p0_{name}.json"),
        functools.partial(_aokvqa, name),
        count,
        hidden=name == "test",
      )
      for name, count in {"train": 17_056, "val": 1_145, "test": 6_702}.items()
    },
  ),
  "gqa": DataSet(
    about="Questions made of scene graphs; and xGQA, which is evaluated "
    "without training on it.",
    homepage="https://cs.stanford.edu/people/dorarad/gqa",
    licence="CC BY 4.0",
    size="22 GB",
    files={
      "train_balanced_questions.json": "https://downloads.cs.stanford.edu/nlp/"
      "data/gqa/questions1.2.zip, of which are also val_ and testdev_balanced",
      **sources.GQA,
      **{
        f"testdev_balanced_questions_{code}.json": f"{_XGQA}/zero_shot"
        for code in XGQA_LANGUAGES
      },
    },
    splits={
      name: Split(
        functools.partial(Raw.items, path=f"{file}.json"), _gqa, count
      )
      for name, file, count in [
        ("train_balanced", "train_balanced_questions", 943_000),
        ("val_balanced", "val_balanced_questions", 132_062),
        ("testdev_balanced", "testdev_balanced_questions", 12_578),
        *(
          (f"xgqa_{code}", f"testdev_balanced_questions_{code}", 12_578)
          for code in XGQA_LANGUAGES
        ),
      ]
    },
  ),
  "vizwizvqa": DataSet(
    about="Questions that blind people ask about their photographs; those "
    'that cannot be answered have "unanswerable" among their ten answers.',
    homepage="https://vizwiz.org/tasks-and-datasets/vqa",
    licence="CC BY 4.0",
    size="14 GB",
    files={
      "annotations": f"{_VIZWIZ}/vqa_data/Annotations.zip",
      **{x: f"{_VIZWIZ}/images/{x}.zip" for x in ("train", "val", "test")},
    },
    splits={
      name: Split(
        functools.partial(Raw.items, path=f"{name}.json"),
        functools.partial(_vizwiz, name),
        count,
        hidden=name == "test",
      )
      for name, count in {"train": 20_523, "val": 4_319, "test": 8_000}.items()
    },
  ),
  "pope": DataSet(
    about="Does a model see objects that are not there? Copies of the random "
    "set with 2,910 questions are in circulation; its repository has 3,000.",
    homepage="https://github.com/AoiDragon/POPE",
    licence="MIT",
    size="6 GB",
    files={
      **{
        f"coco_pope_{name}.json": _POPE
        for name in ("random", "popular", "adversarial")
      },
      "val2014": sources.COCO_2014["val2014"],
    },
    splits={
      name: Split(
        functools.partial(Raw.json_lines, path=f"coco_pope_{name}.json"),
        _pope,
        3_000,
      )
      for name in ("random", "popular", "adversarial")
    },
  ),
  "tallyqa": DataSet(
    about="How many objects of a kind? Of the test split, 22,991 questions "
    "are simple and 15,598 are not. And CountBenchQA, whose published table "
    "lacks some of its 540 pictures.",
    homepage="https://github.com/manoja328/TallyQA_dataset",
    licence="see the homepage",
    size="33 GB",
    files={
      "train.json": "https://github.com/manoja328/tallyqa/blob/master/"
      "tallyqa.zip?raw=true, of which is also test.json",
      **sources.VISUAL_GENOME,
      **sources.COCO_2014,
      _COUNTBENCH[0]: "https://huggingface.co/datasets/nielsr/countbench",
      _COUNTBENCH[1]: "https://github.com/google-research/"
      "big_vision/tree/main/big_vision/datasets/countbenchqa/data",
    },
    splits={
      **{
        name: Split(
          functools.partial(Raw.items, path=f"{name}.json"),
          _tallyqa,
          count,
          answer=int,
        )
        for name, count in {"train": 249_318, "test": 38_589}.items()
      },
      "countbenchqa": Split(
        _countbenchqa, _countbenchqa_fields, 490, answer=int
      ),
    },
  ),
}
