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


def refcoco_seg():
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


def textcaps():
  def data(*images):
    return {
      "data": [
        {
          "image_id": name,
          "image_name": name,
          "caption_str": caption,
          "set_name": "train",
        }
        for name, caption in images
      ]
    }

  return {
    # The captions of a picture are not side by side.
    "TextCaps_0.1_train.json": data(("a", "One."), ("b", "Two."), ("a", "3")),
    "TextCaps_0.1_val.json": data(("c", "Four."), ("c", "")),
    "TextCaps_0.1_test.json": data(("d", None)),
    **{f"train_images/{x}.jpg": jpeg() for x in "abc"},
    "test_images.zip": zipped({"test_images/d.jpg": jpeg()}),
  }


def coco35l():
  def lines(*languages):
    return [
      {
        "image_id": f"{image}_{n}",
        "caption_tokenized": f"barn {n} .",
        "trg_lang": code,
        "translation_tokenized": f"{code} {image} {n} .",
        "backtranslation_tokenized": "barn",
      }
      for n in range(2)
      for code in languages
      for image in (1, 5)
    ]

  captions = {
    code: {
      "caption": [f"{code}, one."],
      "caption/tokenized": [f"{code} , one ."],
      "caption/tokenized/lowercase": [f"{code} , one ."],
    }
    for code in ("en", "quz")
  }
  return {
    "coco_mt_train.jsonl": lines("de", "fil"),
    "coco_mt_dev.jsonl": lines("de"),
    "dataset_coco.json": karpathy(),
    "captions.jsonl": [{"image/key": "00ab", "image/locale": "en", **captions}],
    "images.tgz": tarred({"00ab.jpg": jpeg()}),
    **{f"train2014/COCO_train2014_{i:012d}.jpg": jpeg(i) for i in (1, 5)},
  }


def scicap():
  figure = {
    "0-originally-extracted": "Figure 3: A Barn.",
    "1-lowercase-and-token-and-remove-figure-index": {
      "caption": "a barn .",
      "sentence": ["a barn ."],
    },
    "2-normalized": {},
  }
  files = {}
  for split in ("train", "val", "test"):
    name = f"1001.0001v1-Figure3-{split}"
    start = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig"
    files |= {
      f"scicap_data/{start}/{split}/file_idx.json": [f"{name}.png"],
      f"scicap_data/SciCap-Caption-All/{split}/{name}.json": figure,
      f"scicap_data/SciCap-No-Subfig-Img/{split}/{name}.png": jpeg(),
    }
  return files


def okvqa():
  return {
    **vqa("", "train2014", 51, 52),
    **vqa("", "val2014", 53),
    **{
      f"{x}/COCO_{x}_000000000009.jpg": jpeg() for x in ("train2014", "val2014")
    },
  }


def aokvqa():
  def example(split):
    x = {
      "split": split,
      "image_id": 9,
      "question_id": "22MexN",
      "question": "What barn?",
      "choices": ["red", "blue", "green", "old"],
    }
    if split != "test":
      x |= {
        "correct_choice_idx": 3,
        "direct_answers": ["old"] * 10,
        "difficult_direct_answer": False,
        "rationales": ["a", "b", "c"],
      }
    return x

  return {
    "aokvqa_v1p0.tar.gz": tarred(
      {
        f"aokvqa_v1p0_{x}.json": json.dumps([example(x)]).encode()
        for x in ("train", "val", "test")
      }
    ),
    **{f"{x}2017/000000000009.jpg": jpeg() for x in ("train", "val", "test")},
  }


def gqa():
  def data(question):
    return {
      "02930152": {
        "semantic": [{"operation": "select", "dependencies": []}],
        "question": question,
        "imageId": "2354786",
        "answer": "yes",
        "fullAnswer": "Yes, it is.",
        "isBalanced": True,
      }
    }

  return {
    "questions1.2.zip": zipped(
      {
        f"{x}_balanced_questions.json": json.dumps(data("Is it red?"))
        for x in ("train", "val", "testdev")
      }
    ),
    **{
      f"zero_shot/testdev_balanced_questions_{code}.json": data(f"{code}?")
      for code in ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
    },
    "images/2354786.jpg": jpeg(),
  }


def vizwizvqa():
  def example(split):
    answers = ["unanswerable"] * 8 + ["", "a can"]
    x = {"image": f"VizWiz_{split}_00000001.jpg", "question": "What is this?"}
    if split != "test":
      x |= {
        "answers": [{"answer": a, "answer_confidence": "yes"} for a in answers],
        "answer_type": "other",
        "answerable": 0,
      }
    return x

  return {
    **{f"Annotations/{x}.json": [example(x)] for x in ("train", "val", "test")},
    **{
      f"{x}/VizWiz_{x}_00000001.jpg": jpeg() for x in ("train", "val", "test")
    },
  }


def pope():
  line = {
    "question_id": 1,
    "image": "COCO_val2014_000000000009.jpg",
    "text": "Is there a dog in the image?",
    "label": "yes",
  }
  return {
    **{
      f"output/coco/coco_pope_{kind}.json": json.dumps(line) + "\n"
      for kind in ("random", "popular", "adversarial")
    },
    "val2014/COCO_val2014_000000000009.jpg": jpeg(),
  }


def tallyqa():
  import pyarrow
  from pyarrow import parquet

  def example(image, **more):
    return {
      "image": image,
      "answer": 3,
      "data_source": "imported_genome",
      "question": "How many dogs?",
      "image_id": 92410,
      "question_id": 30096263,
      **more,
    }

  gray = io.BytesIO()
  Image.new("L", (9, 9)).save(gray, "PNG")
  rows = [
    {"image": {"bytes": jpeg(), "path": None}, "text": "a", "number": 10},
    {"image": None, "text": "b", "number": 2},
    {"image": {"bytes": gray.getvalue(), "path": None}, "number": 4},
  ]
  table = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(rows), table)
  return {
    "train.json": [
      example("VG_100K_2/1.jpg"),
      example("train2014/COCO_train2014_000000000009.jpg"),
    ],
    "test.json": [example("VG_100K/1.jpg", issimple=False)],
    "VG_100K_2/1.jpg": jpeg(1),
    "VG_100K/1.jpg": jpeg(2),
    "train2014/COCO_train2014_000000000009.jpg": jpeg(),
    "train-00000-of-00001-cf54c241ba947306.parquet": table.getvalue(),
    "countbench_paired_questions.json": [
      {"question": f"How many, {i}?"} for i in range(3)
    ],
  }


def infovqa():
  def data(**answers):
    return {
      "data": [
        {
          "questionId": 7,
          "question": "Which two?",
          "image_local_name": "3.jpeg",
          **answers,
        }
      ]
    }

  return {
    "infographicsVQA_train_v1.0.json": data(answers=["a, b", "c"]),
    "infographicsVQA_val_v1.0_withQT.json": data(answers=["a, b", "c"]),
    "infographicsVQA_test_v1.0.json": data(),
    "infographicsvqa_images/3.jpeg": jpeg(),
  }


def stvqa():
  paths = [f"ICDAR2013/{i}.jpg" for i in range(40)]
  paths.append("coco-text/COCO_train2014_000000000009.jpg")

  def data(names, **answers):
    return {
      "data": [
        {
          "file_path": name,
          "file_name": name.rpartition("/")[2],
          "question": "What?",
          "question_id": i,
          "set_name": "train",
          "dataset": name.partition("/")[0],
          **answers,
        }
        for i, name in enumerate(names)
      ]
    }

  return {
    "train_task_3.json": data(paths, answers=["Two", "two"]),
    "test_task_3.json": data(["ICDAR2013/99.jpg"]),
    **{f"train_images/{path}": jpeg() for path in paths[:-1]},
    "train2014/COCO_train2014_000000000009.jpg": jpeg(),
    "test_task3_images/ICDAR2013/99.jpg": jpeg(),
  }


def chartqa():
  files = {}
  for split in ("train", "val", "test"):
    files[f"ChartQA Dataset/{split}/png/41699051005347.png"] = jpeg()
    for kind in ("human", "augmented"):
      files[f"ChartQA Dataset/{split}/{split}_{kind}.json"] = [
        {"imgname": "41699051005347.png", "query": kind, "label": "57%"}
      ]
  return files


def science_qa():
  def problem(split, image):
    return {
      "question": "Which is it?",
      "choices": ["a", "b"],
      "answer": 1,
      "hint": "",
      "image": image,
      "task": "closed choice",
      "grade": "grade2",
      "subject": "natural science",
      "topic": "biology",
      "category": "x",
      "skill": "y",
      "lecture": "",
      "solution": "It is b.",
      "split": split,
    }

  return {
    "data/scienceqa/problems.json": {
      "1": problem("train", "image.png"),
      "2": problem("train", None),
      "3": problem("val", "image.png"),
      "4": problem("test", "image.png"),
    },
    "train.zip": zipped({"train/1/image.png": jpeg()}),
    "val.zip": zipped({"val/3/image.png": jpeg()}),
    "test.zip": zipped({"test/4/image.png": jpeg()}),
  }


def ai2d():
  def diagram(name, letters):
    return {
      "imageName": f"{name}.png",
      "questions": {
        "Which?": {
          "abcLabel": letters,
          "answerTexts": ["x", "y", "z", "w"],
          "correctAnswer": 2,
          "questionId": f"{name}.png-0",
        }
      },
    }

  text = {
    "text": {
      "T0": {
        "rectangle": [[4, 5], [24, 25]],
        "replacementText": "A",
        "value": "leaf",
      }
    }
  }
  files = {"ai2d_test_ids.csv": "42\n7\n"}
  for name, letters in [("0", True), ("1", False), ("42", False)]:
    files |= {
      f"ai2d/questions/{name}.png.json": diagram(name, letters),
      f"ai2d/annotations/{name}.png.json": text,
      f"ai2d/images/{name}.png": jpeg(),
    }
  return files


def ocrvqa():
  def book(split):
    return {
      "imageURL": "http://ecx.images-amazon.com/images/I/51.jpg",
      "questions": ["Who wrote it?", "Is it a cookbook?"],
      "answers": ["A. Barn", "No"],
      "title": "Red",
      "authorName": "A. Barn",
      "genre": "Art",
      "split": split,
    }

  return {
    "dataset.json": {f"0{n}": book(n) for n in (1, 2, 3)},
    **{f"images/0{n}.jpg": jpeg(n) for n in (1, 2, 3)},
  }


def mmvp():
  return {
    "Questions.csv": [
      {
        "Index": i,
        "Question": "Is it open?",
        "Options": "(a) Open (b) Closed",
        "Correct Answer": "(a)",
      }
      for i in (1, 2, 3, 4)
    ],
    **{f"MMVP Images/{i}.jpg": jpeg(i) for i in (1, 2, 3, 4)},
  }


def nlvr2():
  def line(split, directory=None):
    x = {
      "identifier": f"{split}-10171-0-3",
      "sentence": "Both are red.",
      "label": "False",
      "synset": "barn",
    }
    return json.dumps(x | ({"directory": 37} if directory else {})) + "\n"

  marvl = {
    "concept": "49-Musik",
    "language": "id",
    "left_img": "1é.jpg",
    "right_img": "2.jpg",
    "caption": "Dua.",
    "label": True,
  }
  files = {
    "data/train.json": line("train", 37),
    "data/dev.json": line("dev"),
    "data/test1.json": line("test1"),
    **{f"marvl-{x}.jsonl": [marvl] for x in ("id", "sw", "ta", "tr", "zh")},
  }
  for folder, name in [
    ("images/train/37", "train"),
    ("dev", "dev"),
    ("test1", "test1"),
  ]:
    for i in (0, 1):
      files[f"{folder}/{name}-10171-0-img{i}.png"] = jpeg(i)
  for code in ("id", "sw", "ta", "tr", "zh"):
    # As a Mac has it: the mark apart from its letter.
    for name in ("1e\u0301.jpg", "2.jpg"):
      files[f"images/{code}/images/49-Musik/{name}"] = jpeg()
  return files


def rsvqa_lr():
  def questions(split):
    kinds = ("comp", "count", "presence")
    asked = [
      {
        "id": i,
        "img_id": 5,
        "type": kind,
        "question": f"{kind}?",
        "answers_ids": [i],
        "active": True,
      }
      for i, kind in enumerate(kinds)
    ]
    answers = [
      {"id": i, "question_id": i, "answer": "yes", "active": True}
      for i in range(3)
    ]
    gone = {"id": 9, "active": False}
    return {
      f"LR_split_{split}_questions.json": {"questions": [gone, *asked]},
      f"LR_split_{split}_answers.json": {"answers": [gone, *answers]},
    }

  return {
    **questions("train"),
    **questions("val"),
    **questions("test"),
    "Images_LR/5.tif": jpeg(),
  }


def rsvqa_hr():
  files = {}
  for name, content in rsvqa_lr().items():
    if name.startswith("LR"):
      files[name.replace("LR", "USGS")] = content
  for what in ("questions", "answers"):
    test = files[f"USGS_split_test_{what}.json"]
    files[f"USGS_split_test_phili_{what}.json"] = test
  return {**files, "Data/5.png": jpeg()}


def screen2words():
  return {
    **{
      f"screen2words/split/{x}_screens.txt": f"{i}\n"
      for i, x in enumerate(("train", "dev", "test"))
    },
    "screen2words/screen_summaries.csv": [
      {"screenId": i, "summary": f"a page, {n}"}
      for n in range(5)
      for i in range(3)
    ],
    "unique_uis.tar.gz": tarred(
      {f"combined/{i}.jpg": jpeg(i) for i in range(4)}
    ),
  }


def widgetcap():
  def child(box):
    return {"bounds": box, "children": []}

  view = {
    "activity": {
      "root": {
        "bounds": [0, 0, 1440, 2560],
        "children": [
          child([0, 0, 1, 1]),
          {
            "bounds": [0, 0, 9, 9],
            "children": [child([144, 640, 720, 1280])],
          },
        ],
      }
    }
  }
  size = (HEIGHT * 4, 70)  # of 1440 x 2560
  return {
    **{
      f"widget-caption/split/{x}.txt": f"{i}\n"
      for i, x in enumerate(("train", "dev", "test"))
    },
    "widget-caption/widget_captions.csv": [
      {"screenId": i, "nodeId": "0.1.0", "captions": "go back|back, now"}
      for i in range(3)
    ],
    **{f"combined/{i}.jpg": jpeg(i, size) for i in range(3)},
    **{f"combined/{i}.json": view for i in range(3)},
  }


def msrvtt_cap():
  def data(*videos):
    return {
      "info": {},
      "videos": [{"video_id": v, "split": s, "id": 1} for v, s in videos],
      "sentences": [
        {"caption": f"{v}, {n}", "video_id": v, "sen_id": n}
        for n in range(20)
        for v, _ in videos
      ],
    }

  return {
    "train_val_videodatainfo.json": data(
      ("video0", "train"), ("video1", "validate")
    ),
    "test_videodatainfo.json": data(("video2", "test")),
    "TrainValVideo/video0.mp4": b"0",
    "TrainValVideo/video1.mp4": b"1",
    "TestVideo.zip": zipped({"TestVideo/video2.mp4": b"2"}),
  }


def _asked(video):
  return [{"answer": "dog", "id": 0, "question": "what?", "video_id": video}]


def msrvtt_qa():
  splits = ("train", "val", "test")
  return {
    **{f"{x}_qa.json": _asked(i) for i, x in enumerate(splits)},
    **{f"TrainValVideo/video{i}.mp4": b"x" for i in range(3)},
  }


def msvd_qa():
  return {
    **{f"{x}_qa.json": _asked(1) for x in ("train", "val", "test")},
    "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid1\nkWLNZzuo3do_24_31 vid2\n",
    "YouTubeClips/-4wsuPCjDBc_5_15.avi": b"x",
  }


def activitynet_cap():
  part = {
    "duration": 82.73,
    "timestamps": [[0.83, 19.86], [17.37, 60.81]],
    "sentences": ["A woman walks. ", " She turns."],
  }
  return {
    **{f"{x}.json": {"v_Qk": part} for x in ("train", "val_1", "val_2")},
    "clips/v_Qk_0.83_19.86.mp4": b"x",
    "clips/v_Qk_17.37_60.81.mp4": b"x",
  }


def activitynet_qa():
  files = {}
  for x in ("train", "val", "test"):
    key = "v_Qk_9"
    files[f"{x}_q.json"] = [
      {"video_name": "Qk", "question": "is it?", "question_id": key}
    ]
    files[f"{x}_a.json"] = [{"answer": "no", "type": 3, "question_id": key}]
  return {**files, "v_Qk.mkv": b"x"}


def vatex_cap():
  files = (
    "vatex_training_v1.0",
    "vatex_validation_v1.0",
    "vatex_public_test_english_v1.1",
  )
  clip = "Ptf_2VRj-V0_000122_000132"
  example = {"videoID": clip, "enCap": ["One."] * 10, "chCap": ["一"] * 10}
  return {
    **{f"{name}.json": [example] for name in files},
    f"clips/{clip}.mp4": b"x",
  }
