"""Made-up files in the layouts of publishers, and the lines they become."""

import csv
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 43, 31
ANSWERS = ["two"] * 7 + ["2", "a pair", "unanswerable"]


def jpeg(seed=0, size=(HEIGHT, WIDTH)):
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG")
  return file.getvalue()


def write(folder, name, content):
  """Writes a file: bytes, a text, rows of a CSV or a value of JSON."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif isinstance(content, str):
    path.write_text(content, encoding="utf-8")
  elif name.endswith(".csv"):
    with path.open("w", newline="") as file:
      writer = csv.DictWriter(file, list(content[0]))
      writer.writeheader()
      writer.writerows(content)
  elif name.endswith(".jsonl"):
    path.write_text("".join(json.dumps(x) + "\n" for x in content))
  else:
    path.write_text(json.dumps(content), encoding="utf-8")
  return path


def write_all(folder, files):
  for name, content in files.items():
    write(folder, name, content)
  return folder


def zipped(files):
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return data.getvalue()


def tarred(files):
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode="w:gz") as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return data.getvalue()


def questions(*ids):
  return {
    "info": {"version": "2.0"},
    "questions": [
      {"image_id": 9, "question": f"How many, {i}?", "question_id": i}
      for i in ids
    ],
  }


def annotations(*ids):
  """In another order than the questions, as nothing says that it is theirs."""
  return {
    "info": {},
    "annotations": [
      {
        "question_id": i,
        "image_id": 9,
        "question_type": "how many",
        "answer_type": "number",
        "multiple_choice_answer": "two",
        "answers": [
          {"answer": x, "answer_confidence": "yes", "answer_id": n, "raw": x}
          for n, x in enumerate(ANSWERS, 1)
        ],
      }
      for i in reversed(ids)
    ],
  }


def vqa(start, subset, *ids, hidden=False):
  files = {f"{start}OpenEnded_mscoco_{subset}_questions.json": questions(*ids)}
  if not hidden:
    name = f"{start}mscoco_{subset}_annotations.json"
    files[name] = annotations(*ids)
  return files


def vqa_line(folder, i, hidden=False):
  line = {
    "image": f"../raw/{folder}",
    "question": f"How many, {i}?",
    "question_id": i,
  }
  if not hidden:
    line |= {
      "answers": ANSWERS,
      "question_type": "how many",
      "answer_type": "number",
    }
  return line


def karpathy():
  """With a picture of each split, one with the captions of seven people."""
  return {
    "dataset": "coco",
    "images": [
      {
        "filepath": f"{subset}2014",
        "filename": f"COCO_{subset}2014_{i:012d}.jpg",
        "cocoid": i,
        "split": split,
        "imgid": i,
        "sentences": [
          {"raw": f"A barn {n}. ", "tokens": ["a", "barn"], "sentid": n}
          for n in range(count)
        ],
      }
      for i, (subset, split, count) in enumerate(
        [
          ("train", "train", 5),
          ("val", "restval", 7),
          ("val", "val", 5),
          ("val", "test", 5),
          ("train", "train", 5),
        ],
        1,
      )
    ],
  }


def cococap():
  return {
    "caption_datasets.zip": zipped(
      {"dataset_coco.json": json.dumps(karpathy())}
    ),
    **{f"train2014/COCO_train2014_{i:012d}.jpg": jpeg(i) for i in (1, 5)},
    "val2014.zip": zipped(
      {f"val2014/COCO_val2014_{i:012d}.jpg": jpeg(i) for i in (2, 3, 4, 7)}
    ),
    "nocaps_val_4500_captions.json": {
      "annotations": [
        {"image_id": 0, "id": i, "caption": f"A dog {i}."} for i in range(10)
      ],
      "images": [{"id": 0, "file_name": "0013.jpg", "coco_url": "http://x"}],
    },
    "nocaps_test_image_info.json": {
      "images": [{"id": 1, "file_name": "0014.jpg", "coco_url": "http://x"}]
    },
    "validation.tar.gz": tarred({"validation/0013.jpg": jpeg(13)}),
    "test.tar.gz": tarred({"test/0014.jpg": jpeg(14)}),
  }


def vqav2():
  return {
    **vqa("v2_", "train2014", 9000, 9001, 9002),
    **vqa("v2_", "val2014", 42000),
    **vqa("v2_", "test2015", 1, 2, hidden=True),
    **vqa("v2_", "test-dev2015", 2, hidden=True),
    "train2014.zip": zipped(
      {"train2014/COCO_train2014_000000000009.jpg": jpeg()}
    ),
    "val2014/COCO_val2014_000000000009.jpg": jpeg(1),
    "coco/test2015/COCO_test2015_000000000009.jpg": jpeg(2),
  }


def textvqa():
  def data(*names):
    return {
      "dataset_type": "train",
      "data": [
        {
          "question": f"What does it say, {i}?",
          "image_id": image,
          "question_id": i,
          "answers": ANSWERS,
        }
        for i, image in enumerate(names)
      ],
    }

  test = data("cc")
  del test["data"][0]["answers"]
  return {
    "TextVQA_0.5.1_train.json": data("aa", "aa", "bb"),
    "TextVQA_0.5.1_val.json": data("dd"),
    "TextVQA_0.5.1_test.json": test,
    "train_images/aa.jpg": jpeg(1),
    "train_images/bb.jpg": jpeg(2),
    "train_images/dd.jpg": jpeg(3),
    "test_images/cc.jpg": jpeg(4),
    "train-images-boxable-with-rotation.csv": [
      {"ImageID": "aa", "Subset": "train", "Rotation": "90.0"},
      {"ImageID": "bb", "Subset": "train", "Rotation": ""},
      {"ImageID": "dd", "Subset": "train", "Rotation": "0.0"},
      {"ImageID": "other", "Subset": "train", "Rotation": "180.0"},
    ],
    "test-images-with-rotation.csv": [
      {"ImageID": "cc", "Subset": "test", "Rotation": "0"},
    ],
  }


def docvqa():
  def data(*answers):
    return {
      "dataset_name": "docvqa",
      "data": [
        {
          "questionId": 337 + i,
          "question": "What is the date?",
          "image": f"documents/x_{i}.png",
          "docId": 279,
          **({} if found is None else {"answers": found}),
        }
        for i, found in enumerate(answers)
      ],
    }

  return {
    "train_v1.0_withQT.json": data(["1/8/93", "1/8/1993"], ["x"]),
    "val_v1.0_withQT.json": data(["y"]),
    "test_v1.0.json": data(None),
    # Two releases differ in where the pictures are.
    "train/documents/x_0.png": jpeg(),
    "train/documents/x_1.png": jpeg(1),
    "spdocvqa_images.tar.gz": tarred({"spdocvqa_images/x_0.png": jpeg(2)}),
  }


POLYGON = [8.0, 5.0, 26.0, 5.0, 26.0, 20.0, 8.0, 20.0]


def refcoco():
  """Picture 3 is in a validation split of one, and to train on in another."""

  def reference(image, of, split, *sentences):
    return {
      "image_id": image,
      "ann_id": of,
      "ref_id": of,
      "split": split,
      "sentences": [
        {"sent": text, "sent_id": i, "raw": text, "tokens": [text]}
        for i, text in enumerate(sentences)
      ],
      "category_id": 18,
    }

  unc = [
    reference(1, 11, "train", "left dog", "dog"),
    reference(3, 31, "train", "not to train on"),
    reference(2, 21, "val", "right dog", "the dog"),
    reference(2, 22, "testA", "crowd"),
    reference(2, 21, "testB", "b"),
  ]
  umd = [
    reference(1, 12, "train", "a big dog"),
    reference(3, 31, "val", "v"),
    reference(2, 21, "test", "t"),
  ]
  boxes = {11: 1, 12: 1, 13: 1, 21: 2, 22: 2, 31: 3}
  crowd = {"size": [HEIGHT, WIDTH], "counts": [31, 62, 31 * 40]}
  return {
    "refcoco/refs(unc).p": pickle.dumps(unc, 2),
    "refcoco+.zip": zipped({"refcoco+/refs(unc).p": pickle.dumps(unc, 2)}),
    "refcocog/refs(umd).p": pickle.dumps(umd, 2),
    "annotations/instances_train2017.json": {
      "info": {},
      "images": [
        {
          "id": i,
          "file_name": f"{i:012d}.jpg",
          "height": HEIGHT,
          "width": WIDTH,
        }
        for i in (3, 1, 2, 4)
      ],
      "annotations": [
        {
          "id": of,
          "image_id": image,
          "category_id": 18,
          "bbox": [8.0, 5.0, 18.0, 15.0],
          "segmentation": crowd if of == 22 else [POLYGON],
          "iscrowd": int(of == 22),
          "area": 270.0,
        }
        for of, image in boxes.items()
      ],
      "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    },
    **{f"train2017/{i:012d}.jpg": jpeg(i) for i in (1, 2, 3)},
  }
