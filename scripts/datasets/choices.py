"""Charts, diagrams, exams and book covers: questions with one right answer.

Fields as the reference's builders yield them (google-research/big_vision,
big_vision/datasets/{chartqa,science_qa,ai2d}), under the names of our configs.
ScienceQA without a picture is left out, as there. The letters of AI2D are drawn
as there, in DejaVu Sans instead of DM Sans. OCR-VQA has no public builder:
"split" is 1, 2 or 3, and pictures are named as its download script names them,
or all .jpg, as in copies of them. MMVP is from its repository: pictures 1 to
300, of which each two are a pair.
"""

import functools
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from scripts.datasets.data_set import (
  DataSet,
  Picture,
  Records,
  Split,
  flag,
  paired,
)
from scripts.datasets.raw import Raw

_CHARTQA = "https://huggingface.co/datasets/ahmed-masry/ChartQA"
_AI2D = "https://ai2-public-datasets.s3.amazonaws.com/diagrams/ai2d-all.zip"
_MMVP = "https://huggingface.co/datasets/MMVP/MMVP"
_FONT = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


def _chartqa(split: str, x: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "image": f"{split}/png/{x['imgname']}",
    "question": x["query"],
    "answer": x["label"],
    "imgname": x["imgname"],
  }


def _science_qa(split: str, record: Sequence[Any]) -> dict[str, Any] | None:
  name, x = record
  if x["split"] != split or not x["image"]:
    return None
  kept = ("question", "choices", "answer", "hint", "lecture", "solution")
  return {
    "image": f"{split}/{name}/{x['image']}",
    **{key: x[key] for key in kept},
    "hint": x["hint"] or "N/A",
    "question_id": name,
  }


def _ai2d(raw: Raw, split: str) -> Records:
  """Questions of a diagram, with the texts in it; in the order of names."""
  tests = {line.strip() for _, line in raw.lines("ai2d_test_ids.csv")}
  for name in raw.names("questions", ".json"):
    if (name.partition(".")[0] in tests) != (split == "test"):
      continue
    diagram = raw.json(f"questions/{name}")
    texts = raw.json(f"annotations/{name}")["text"]
    for number, (question, x) in enumerate(diagram["questions"].items()):
      where = f"questions/{name}: question {number}"
      yield where, (diagram["imageName"], question, x, texts)


def _ai2d_fields(record: Sequence[Any]) -> dict[str, Any]:
  name, question, x, texts = record
  image = f"images/{name}"
  if flag(x, "abcLabel"):
    draw = functools.partial(draw_letters, texts)
    image = Picture((image,), draw, f"letters/{name}")
  return {
    "image": image,
    "question": question,
    "choices": x["answerTexts"],
    "answer": x["answerTexts"][int(x["correctAnswer"])],
    "question_id": x["questionId"],
  }


def draw_letters(texts: Mapping[str, Any], data: bytes) -> bytes:
  """Writes letters over the texts of a diagram, as large as there is room.

  Args:
    texts: Of AI2D: name -> {"rectangle": [[x0, y0], [x1, y1]],
      "replacementText": letter}.
    data: Contents of the picture's file.

  Returns:
    Contents of a PNG.
  """
  picture = Image.open(io.BytesIO(data)).convert("RGB")
  canvas = ImageDraw.Draw(picture)
  for text in texts.values():
    (x0, y0), (x1, y1) = text["rectangle"]
    letter = text["replacementText"]
    canvas.rectangle([(x0, y0), (x1, y1)], fill="white")
    for size in range(100, 0, -1):
      font = ImageFont.truetype(_FONT, size)
      _, _, right, bottom = font.getbbox(letter)
      if right <= x1 - x0 and bottom <= y1 - y0:
        break
    left = x0 + (x1 - x0 - right) // 2
    canvas.text((left, y0), letter, fill="black", font=font)
  file = io.BytesIO()
  picture.save(file, "PNG")
  return file.getvalue()


def _ocrvqa(raw: Raw) -> Records:
  """One record a question; a book has several."""
  for where, (name, book) in raw.items("dataset.json"):
    pairs = book["questions"], book["answers"]
    for question, answer in paired(f"{where}: its lists", *pairs):
      yield where, (name, book, question, answer)


def _ocrvqa_fields(number: int, record: Sequence[Any]) -> dict | None:
  name, book, question, answer = record
  if book["split"] != number:
    return None
  end = pathlib.PurePosixPath(book["imageURL"]).suffix
  return {
    "image": Picture((f"images/{name}{end}", f"images/{name}.jpg")),
    "question": question,
    "answer": answer,
  }


def _mmvp(row: Mapping[str, str]) -> dict[str, Any]:
  index = int(row["Index"])
  return {
    "image": f"MMVP Images/{index}.jpg",
    "question": f"{row['Question']} {row['Options']}",
    "answer": row["Correct Answer"],
    "pair": (index + 1) // 2,
  }


DATA_SETS = {
  "chartqa": DataSet(
    about="Questions about charts, written by people or made by a model.",
    homepage="https://github.com/vis-nlp/ChartQA",
    licence="GPL 3.0",
    size="1 GB",
    files={
      f"{split}_{kind}.json": f"{_CHARTQA}, ChartQA Dataset.zip"
      for split in ("train", "val", "test")
      for kind in ("human", "augmented")
    },
    splits={
      f"{split}_{kind}": Split(
        functools.partial(Raw.items, path=f"{split}_{kind}.json"),
        functools.partial(_chartqa, split),
        count,
      )
      for kind, counts in {
        "human": {"train": 7_398, "val": 960, "test": 1_250},
        "augmented": {"train": 20_901, "val": 960, "test": 1_250},
      }.items()
      for split, count in counts.items()
    },
  ),
  "science_qa": DataSet(
    about="Multiple-choice questions of school, those with a picture.",
    homepage="https://scienceqa.github.io",
    licence="CC BY-NC-SA 4.0",
    size="1 GB",
    files={
      "problems.json": "https://github.com/lupantech/ScienceQA, data/scienceqa",
      **{
        split: f"https://scienceqa.s3.us-west-1.amazonaws.com/images/{split}.zip"
        for split in ("train", "val", "test")
      },
    },
    splits={
      split: Split(
        functools.partial(Raw.items, path="problems.json"),
        functools.partial(_science_qa, split),
        count,
        answer=int,
      )
      for split, count in {"train": 6_218, "val": 2_097, "test": 2_017}.items()
    },
  ),
  "ai2d": DataSet(
    about="Multiple-choice questions about diagrams of a school book.",
    homepage="https://prior.allenai.org/projects/diagram-understanding",
    licence="see license.txt",
    size="1 GB",
    files={
      "ai2d_test_ids.csv": "https://s3-us-east-2.amazonaws.com/"
      "prior-datasets/ai2d_test_ids.csv",
      **dict.fromkeys(("questions", "annotations", "images"), _AI2D),
    },
    splits={
      split: Split(functools.partial(_ai2d, split=split), _ai2d_fields, count)
      for split, count in {"train": 12_413, "test": 3_088}.items()
    },
  ),
  "ocrvqa": DataSet(
    about="Questions about 207,572 covers of books: about 801,600 to train on "
    "and 100,000 in each other split. The pictures are fetched one by one, and "
    "some are gone: --skip_bad.",
    homepage="https://ocr-vqa.github.io",
    licence="see the homepage",
    size="10 GB",
    files={
      "dataset.json": "https://ocr-vqa.github.io, with the script that "
      "fetches images/",
    },
    splits={
      split: Split(_ocrvqa, functools.partial(_ocrvqa_fields, number))
      for number, split in enumerate(("train", "val", "test"), 1)
    },
  ),
  "mmvp": DataSet(
    about="Pairs of pictures that CLIP confuses, evaluated with a model of "
    "vqav2, see metrics.MMVP.",
    homepage=_MMVP,
    licence="MIT",
    size="30 MB",
    files={"Questions.csv": _MMVP, "MMVP Images": _MMVP},
    splits={
      "test": Split(
        functools.partial(Raw.rows, path="Questions.csv"), _mmvp, 300
      )
    },
  ),
}
