"""Questions about text, as their publishers ship them."""

import hashlib

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
  answers,
  jpeg,
  packed,
  picture,
  pictures,
  plain,
  table,
  tarred,
  text,
  with_mark,
  zipped,
)


def textvqa():
  """Three questions a picture; every third picture is stored turned."""
  files, lines = {}, {}
  for split in ("train", "val", "test"):
    folder = "test_images" if split == "test" else "train_images"
    records, lines[split] = [], []
    for i in range(COUNT):
      image = f"{split[0]}{i // 3:015x}"
      record = {
        "question": text("What does it say?", i),
        "image_id": image,
        "question_id": i,
        "image_classes": ["Sign"],
        "question_tokens": ["what"],
        "set_name": split,
      }
      path = f"{folder}/{image}.jpg"
      line = {
        "image": plain(path),
        "question": record["question"],
        "question_id": i,
      }
      if (i // 3) % 3 == 0:
        line["image"] = packed(path)
      files[path] = jpeg(i // 3, (7, 11)) if i < 3 else picture(".jpg", i // 3)
      if split != "test":
        record["answers"] = line["answers"] = answers(i)
      records.append(record)
      lines[split].append(line)
    about = {"dataset_name": "textvqa", "data": records}
    files[f"TextVQA_0.5.1_{split}.json"] = (
      with_mark(about) if split == "val" else about
    )
  turns = ["90.0", "0.0", "", "270.0", "0.0", "360.0", "180", ""]
  for name, splits in [
    ("train-images-boxable-with-rotation.csv", "tv"),
    ("test-images-with-rotation.csv", "t"),
  ]:
    files[name] = table(
      [
        {
          "ImageID": f"{split}{k:015x}",
          "Title": text("a title, with", k),
          "Author": 'A "B"\nC',
          "Rotation": turn,
        }
        for split in (*splits, "z")
        for k, turn in enumerate(turns)
      ],
      "\r\n" if len(splits) == 1 else "\n",
    )
  return Made(files, lines)


def docvqa():
  """Pictures of two releases; questions share pages."""
  files, lines, later = {}, {}, {}
  for split, end in [("train", "_withQT"), ("val", "_withQT"), ("test", "")]:
    records, lines[split] = [], []
    for i in range(COUNT):
      stem = f"{split}xbw0217_{i // 2}.png"
      record = {
        "questionId": 337 + i,
        "question": text("What is the „actual“ date?", i),
        "image": f"documents/{stem}",
        "docId": 279 + i // 2,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": str(i),
        "data_split": split,
      }
      named = packed(f"spdocvqa_images/{stem}")
      if split == "train":
        named = plain(f"train/documents/{stem}")
        files[f"train/documents/{stem}"] = picture(".png", i // 2)
      else:
        later[f"spdocvqa_images/{stem}"] = picture(".png", i // 2)
      line = {
        "image": named,
        "question": record["question"],
        "question_id": 337 + i,
      }
      if split != "test":
        record["answers"] = line["answers"] = [
          text("1/8/93", i),
          *["1/8/1993", "0.28"][: i % 3],
        ]
        record["question_types"] = ["handwritten", "form"]
      records.append(record)
      lines[split].append(line)
    files[f"{split}_v1.0{end}.json"] = {"dataset_name": "x", "data": records}
  files["spdocvqa_images.tar.gz"] = tarred(later)
  return Made(files, lines)


def infovqa():
  """Answers of one, two and three parts; of val each order counts."""
  files, lines = {}, {}
  orders = {
    "a, b": ["a, b", "b, a"],
    "c": ["c"],
    "x, y, z": [
      *("x, y, z", "x, z, y", "y, x, z", "y, z, x", "z, x, y", "z, y, x"),
    ],
    "1,000": ["1,000"],
  }
  for split, end in [("train", ""), ("val", "_withQT"), ("test", "")]:
    records, lines[split] = [], []
    for i in range(COUNT):
      name = f"{30000 + i // 2}.jpeg"
      record = {
        "questionId": 98300 + i,
        "question": text("Which two?", i),
        "image_local_name": name,
        "image_url": "https://x/y.jpg",
        "ocr_output_file": "30000.json",
        "data_split": split,
      }
      path = f"infographicsvqa_images/{name}"
      files[path] = picture(".jpeg", i // 2)
      line = {
        "image": plain(path),
        "question": record["question"],
        "question_id": 98300 + i,
      }
      if split != "test":
        given = list(orders)[i % 4 :][:2]
        record["answers"] = given
        line["answers"] = given
        if split == "val":
          record["answer_type"] = ["multi span"]
          line["answers"] = [y for x in given for y in orders[x]]
      records.append(record)
      lines[split].append(line)
    files[f"infographicsVQA_{split}_v1.0{end}.json"] = {"data": records}
  return Made(files, lines)


def stvqa():
  """Of pictures of six data sets; those of COCO are COCO's own."""
  kinds = ("ICDAR2013/{}.jpg", "vizwiz/{}.png", "imageNet/{}.JPEG")
  paths = [kinds[i % 3].format(i) for i in range(120)]
  paths += [f"coco-text/COCO_train2014_{i:012d}.jpg" for i in range(COUNT)]
  files, lines = pictures(f"train_images/{x}" for x in paths[:120]), {}
  files["train2014.zip"] = zipped(
    pictures(f"train2014/{x.rpartition('/')[2]}" for x in paths[120:])
  )
  lines = {"train": [], "val": [], "test": []}
  records = []
  for i, path in enumerate([*paths, *paths[:9]]):
    record = {
      "question": text("What?", i),
      "question_id": i,
      "file_path": path,
      "file_name": path.rpartition("/")[2],
      "dataset": path.partition("/")[0],
      "set_name": "train",
      "answers": [text("Two", i), "two"][: 1 + i % 2],
    }
    records.append(record)
    image = plain(f"train_images/{path}")
    if path.startswith("coco-text"):
      image = packed(f"train2014/{record['file_name']}")
    held_out = hashlib.sha256(path.encode()).hexdigest() < "1a"
    lines["val" if held_out else "train"].append(
      {
        "image": image,
        "question": record["question"],
        "question_id": i,
        "answers": record["answers"],
      }
    )
  asked = []
  for i in range(COUNT):
    path = f"VisualGenome/{i:05d}.jpg"
    files[f"test_task3_images/{path}"] = picture(".jpg", i)
    record = {
      "question": text("Where?", i),
      "question_id": 60000 + i,
      "file_path": path,
    }
    asked.append(record)
    lines["test"].append(
      {
        "image": plain(f"test_task3_images/{path}"),
        "question": record["question"],
        "question_id": 60000 + i,
      }
    )
  files["train_task_3.json"] = {"dataset": "ST-VQA", "data": records}
  files["test_task_3.json"] = with_mark({"dataset": "ST-VQA", "data": asked})
  return Made(files, lines)
