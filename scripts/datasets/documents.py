"""Questions about text: in scenes, scanned documents and infographics.

Fields as the reference's builders yield them (google-research/big_vision,
big_vision/datasets/{textvqa,docvqa,infovqa,stvqa}), under the names of our
configs. As there, the pictures of Open Images that are stored turned are turned
back; a validation answer of InfographicVQA with several parts is there in each
order of them; and pictures of COCO in ST-VQA are the large ones of COCO itself.

The publisher of ST-VQA has no validation split. The reference holds out 2,628
questions by a list of pictures that it does not publish; here a tenth of the
pictures is held out, by a hash of their names.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Mapping
from typing import Any

from PIL import Image

from scripts.datasets import sources
from scripts.datasets.data_set import DataSet, Picture, Records, Split
from scripts.datasets.raw import Raw

_RRC = "https://rrc.cvc.uab.es/?ch=17&com=downloads (an account is needed)"
_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa/data"
_OPEN_IMAGES = "https://storage.googleapis.com/openimages/2018_04"
ROTATIONS = {
  "train_images": "train-images-boxable-with-rotation.csv",
  "test_images": "test-images-with-rotation.csv",
}
_TURNS = {
  90: Image.Transpose.ROTATE_90,
  180: Image.Transpose.ROTATE_180,
  270: Image.Transpose.ROTATE_270,
}


def _textvqa(raw: Raw, name: str, folder: str) -> Records:
  """Questions, each with the degrees its picture is to be turned by."""
  file = f"TextVQA_0.5.1_{name}.json"
  asked = {x["image_id"] for _, x in raw.items(file, "data")}
  turned = {}
  for where, row in raw.rows(ROTATIONS[folder]):
    try:
      degrees = int(float(row["Rotation"] or 0))
    except (KeyError, ValueError):
      raise ValueError(f"{where}: expected a number under Rotation") from None
    if degrees and row["ImageID"] in asked:
      turned[row["ImageID"]] = degrees
  for where, x in raw.items(file, "data"):
    yield where, (x, turned.get(x["image_id"], 0))


def _textvqa_fields(folder: str, record) -> dict[str, Any]:
  x, degrees = record
  name = f"{folder}/{x['image_id']}.jpg"
  image = name
  if degrees % 360:
    turn = functools.partial(_turned, _TURNS[degrees % 360])
    image = Picture((name,), turn, name)
  return {
    "image": image,
    "question": x["question"],
    "question_id": x["question_id"],
    **({"answers": x["answers"]} if "answers" in x else {}),
  }


def _turned(turn: Image.Transpose, data: bytes) -> bytes:
  file = io.BytesIO()
  picture = Image.open(io.BytesIO(data)).convert("RGB")
  picture.transpose(turn).save(file, "JPEG", quality=100)
  return file.getvalue()


def _textvqa_split(name, folder, count, **about):
  return Split(
    functools.partial(_textvqa, name=name, folder=folder),
    functools.partial(_textvqa_fields, folder),
    count,
    **about,
  )


def _docvqa(split: str, x: Mapping[str, Any]) -> dict[str, Any]:
  stem = x["image"].rpartition("/")[2]
  return {
    "image": Picture(
      (
        f"{split}/{x['image']}",
        f"spdocvqa_images/{stem}",
        x["image"],
      )
    ),
    "question": x["question"],
    "question_id": x["questionId"],
    **({"answers": x["answers"]} if "answers" in x else {}),
  }


def _infovqa(split: str, x: Mapping[str, Any]) -> dict[str, Any]:
  name = x["image_local_name"]
  fields = {
    "image": Picture((f"infographicsvqa_images/{name}", f"images/{name}")),
    "question": x["question"],
    "question_id": x["questionId"],
  }
  if "answers" not in x:
    return fields
  answers = x["answers"]
  if split == "val":
    answers = [
      ", ".join(parts)
      for answer in answers
      for parts in itertools.permutations(answer.split(", "))
    ]
  return {**fields, "answers": answers}


def _is_held_out(path: str) -> bool:
  return hashlib.sha256(path.encode()).digest()[0] < 26  # of 256, a tenth


def _stvqa(split: str, x: Mapping[str, Any]) -> dict[str, Any] | None:
  path = x["file_path"]
  if split != "test" and _is_held_out(path) != (split == "val"):
    return None
  folder = "test_task3_images" if split == "test" else "train_images"
  image = f"{folder}/{path}"
  if path.startswith("coco-text/"):
    image = f"train2014/{path.removeprefix('coco-text/')}"
  return {
    "image": image,
    "question": x["question"],
    "question_id": x["question_id"],
    **({"answers": x["answers"]} if "answers" in x else {}),
  }


def _split(file, fields, name, count):
  return Split(
    functools.partial(Raw.items, path=file, key="data"),
    functools.partial(fields, name),
    count,
    hidden=name == "test",
  )


DATA_SETS = {
  "textvqa": DataSet(
    about="Questions about text in pictures, with ten answers. Some pictures "
    "are stored turned; the tables of Open Images say which.",
    homepage="https://textvqa.org/dataset",
    licence="CC BY 4.0",
    size="9 GB",
    files={
      **{
        f"TextVQA_0.5.1_{x}.json": f"{_TEXTVQA}/TextVQA_0.5.1_{x}.json"
        for x in ("train", "val", "test")
      },
      **sources.TEXTVQA,
      ROTATIONS["train_images"]: f"{_OPEN_IMAGES}/train/"
      f"{ROTATIONS['train_images']}",
      ROTATIONS["test_images"]: f"{_OPEN_IMAGES}/test/"
      f"{ROTATIONS['test_images']}",
    },
    splits={
      "train": _textvqa_split("train", "train_images", 34_602),
      "val": _textvqa_split("val", "train_images", 5_000),
      "test": _textvqa_split("test", "test_images", 5_734, hidden=True),
    },
  ),
  "docvqa": DataSet(
    about="Questions about scanned documents.",
    homepage="https://www.docvqa.org/datasets/docvqa",
    licence="see the homepage",
    size="9 GB",
    files={
      **dict.fromkeys(
        ("train_v1.0_withQT.json", "val_v1.0_withQT.json", "test_v1.0.json"),
        f"{_RRC}, task 1, spdocvqa_qas.zip",
      ),
      "spdocvqa_images": f"{_RRC}, task 1, spdocvqa_images.tar.gz; or "
      "train/documents, val/documents and test/documents of the first release",
    },
    splits={
      name: _split(f"{name}_v1.0{end}.json", _docvqa, name, count)
      for name, end, count in [
        ("train", "_withQT", 39_463),
        ("val", "_withQT", 5_349),
        ("test", "", 5_188),
      ]
    },
  ),
  "infovqa": DataSet(
    about="Questions about infographics.",
    homepage="https://www.docvqa.org/datasets/infographicvqa",
    licence="see the homepage",
    size="4 GB",
    files={
      **dict.fromkeys(
        (
          "infographicsVQA_train_v1.0.json",
          "infographicsVQA_val_v1.0_withQT.json",
          "infographicsVQA_test_v1.0.json",
          "infographicsvqa_images",
        ),
        f"{_RRC}, task 3",
      ),
    },
    splits={
      name: _split(
        f"infographicsVQA_{name}_v1.0{end}.json", _infovqa, name, count
      )
      for name, end, count in [
        ("train", "", 23_946),
        ("val", "_withQT", 2_801),
        ("test", "", 3_288),
      ]
    },
  ),
  "stvqa": DataSet(
    about="Questions about text in scenes. val is a tenth of the pictures to "
    "train on, as the publisher has none; train and val have 26,074 questions.",
    homepage="https://rrc.cvc.uab.es/?ch=11",
    licence="see the homepage",
    size="19 GB",
    files={
      **dict.fromkeys(
        (
          "train_task_3.json",
          "test_task_3.json",
          "train_images",
          "test_task3_images",
        ),
        "https://rrc.cvc.uab.es/?ch=11&com=downloads",
      ),
      "train2014": sources.COCO_2014["train2014"],
    },
    splits={
      "train": _split("train_task_3.json", _stvqa, "train", None),
      "val": _split("train_task_3.json", _stvqa, "val", None),
      "test": _split("test_task_3.json", _stvqa, "test", 4_070),
    },
  ),
}
