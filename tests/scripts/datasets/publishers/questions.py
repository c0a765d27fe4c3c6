"""Questions about pictures, as their publishers ship them."""

import io

from PIL import Image

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
  answers,
  jpeg,
  json_lines,
  packed,
  picture,
  pictures,
  plain,
  tarred,
  text,
  with_mark,
  zipped,
)

XGQA = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
KINDS = (
  ("how many", "number"),
  ("is the", "yes/no"),
  ("none of the above", "other"),
)


def vqa(start, subset, ids, named, *, year=None, hidden=False):
  """(files, lines) of a split; annotations are in another order than questions.

  Args:
    named: path of a picture -> as lines name it; questions share pictures.
  """
  questions, annotations, lines = [], [], []
  for n, i in enumerate(ids):
    image_id = 9 + 500_000 * (n // 3)
    kind, answer_type = KINDS[n % 3]
    asked = {
      "image_id": image_id,
      "question": text("How many?", i),
      "question_id": i,
    }
    questions.append(asked)
    line = {
      "image": named(f"{subset}/COCO_{subset}_{image_id:012d}.jpg"),
      "question": asked["question"],
      "question_id": i,
    }
    if not hidden:
      line |= {
        "answers": answers(i),
        "question_type": kind,
        "answer_type": answer_type,
      }
    lines.append(line)
    annotations.append(
      {
        "question_id": i,
        "image_id": image_id,
        "question_type": kind,
        "answer_type": answer_type,
        "multiple_choice_answer": answers(i)[0],
        "answers": [
          {
            "answer": x,
            "answer_confidence": ("yes", "maybe", "no")[k % 3],
            "answer_id": k + 1,
          }
          for k, x in enumerate(answers(i))
        ],
      }
    )
  of = f"{start}%smscoco_{year or subset}_%s.json"
  info = {"info": {"version": "2.0", "list": [[], {}, 1.5e-3]}}
  files = {of % ("OpenEnded_", "questions"): {**info, "questions": questions}}
  if not hidden:
    annotations.reverse()
    about = {"annotations": annotations, "license": {"url": "http://x"}}
    files[of % ("", "annotations")] = about
  return files, lines


def _pictures(lines):
  """Those that lines name, by their paths below the folder of the archive."""
  paths = {x["image"].removeprefix("../raw/") for x in lines}
  return pictures(sorted(x.removeprefix("images/") for x in paths))


def vqav2():
  train, lines = vqa("v2_", "train2014", range(9000, 9000 + COUNT), packed)
  val, val_lines = vqa("v2_", "val2014", range(42000, 42000 + COUNT), plain)
  named = {"named": lambda x: plain(f"coco/{x}"), "hidden": True}
  test, test_lines = vqa("v2_", "test2015", range(1, 2 * COUNT), **named)
  dev, dev_lines = vqa(
    "v2_", "test2015", range(1, COUNT + 1), year="test-dev2015", **named
  )
  files = {
    **train,
    **val,
    **test,
    **dev,
    "train2014.zip": zipped(_pictures(lines)),
    **_pictures([*val_lines, *test_lines]),
  }
  lines = {"train": lines, "validation": val_lines, "test": test_lines}
  return Made(files, {**lines, "test-dev": dev_lines})


def okvqa():
  train, lines = vqa("", "train2014", range(51, 51 + COUNT), plain)
  val, val_lines = vqa("", "val2014", range(5000, 5000 + COUNT), packed)
  files = {
    **train,
    **_pictures(lines),
    "OpenEnded_mscoco_val2014_questions.json.zip": zipped(
      {k: v for k, v in val.items() if "OpenEnded" in k}
    ),
    "mscoco_val2014_annotations.json.zip": zipped(
      {k: v for k, v in val.items() if "OpenEnded" not in k}
    ),
    "val2014.zip": zipped(_pictures(val_lines)),
  }
  return Made(files, {"train": lines, "val": val_lines})


def aokvqa():
  files, lines = {}, {}
  for split in ("train", "val", "test"):
    records, lines[split] = [], []
    for i in range(COUNT):
      hidden = split == "test"
      name = f"{split}2017/{9 + 1000 * (i // 2):012d}.jpg"
      record = {
        "split": split,
        "image_id": 9 + 1000 * (i // 2),
        "question_id": f"22MexN{i:02d}",
        "question": text("What barn?", i),
        "choices": ["red", text("blue", i), "green", f"{i}"],
      }
      own = {"correct_choice_idx": i % 4, "direct_answers": answers(i)}
      rest = {"difficult_direct_answer": i % 2 == 0, "rationales": ["a"] * 3}
      records.append(record if hidden else {**record, **own, **rest})
      line = {
        "image": plain(name),
        **{x: record[x] for x in ("question", "question_id", "choices")},
      }
      if not hidden:
        line |= {"correct": i % 4, "direct_answers": answers(i)}
      lines[split].append(line)
      files[name] = picture(".jpg", i)
    files[f"aokvqa_v1p0_{split}.json"] = records
  names = [f"aokvqa_v1p0_{split}.json" for split in lines]
  archive = tarred({f"./{name}": files.pop(name) for name in names})
  return Made({"aokvqa_v1p0.tar.gz": archive, **files}, lines)


def gqa():
  """Names of questions begin with zeros; some pictures are of letters."""
  images = ["2354786", "n161313"]

  def split(what):
    records, lines = {}, []
    for i in range(COUNT):
      name, image = f"0{i:07d}", images[i % 2]
      records[name] = {
        "semantic": [
          {"operation": "select", "dependencies": [], "argument": i}
        ],
        "entailed": [],
        "question": text(what, i),
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": None, "local": "13-pizza"},
        "answer": ["yes", "no", "left", "t-shirt"][i % 4],
        "fullAnswer": text("Yes", i),
      }
      lines.append(
        {
          "image": packed(f"images/{image}.jpg"),
          "question": text(what, i),
          "answer": ["yes", "no", "left", "t-shirt"][i % 4],
          "question_id": name,
        }
      )
    return records, lines

  files, lines = {}, {}
  for of in ("train_balanced", "val_balanced", "testdev_balanced"):
    name = f"{of}_questions.json"
    files[name], lines[of] = split(of)
  files = {
    # Those that are not balanced come in many parts of the same archive.
    "questions1.2.zip": zipped(
      {**files, "train_all_questions/train_all_questions_0.json": {}}
    )
  }
  for code in XGQA:
    name = f"zero_shot/testdev_balanced_questions_{code}.json"
    files[name], lines[f"xgqa_{code}"] = split(f"{code} আছে?")
  archive = zipped(pictures(f"images/{x}.jpg" for x in images))
  return Made({**files, "images.zip": archive}, lines)


def vizwizvqa():
  """With answers that are empty, and pictures that are turned."""
  files, lines = {}, {}
  for split in ("train", "val", "test"):
    records, lines[split] = [], []
    for i in range(COUNT):
      name = f"VizWiz_{split}_{i:08d}.jpg"
      record = {"image": name, "question": text("What is this?", i)}
      line = {
        "image": plain(f"{split}/{name}"),
        "question": text("What is this?", i),
        "question_id": name,
      }
      given = [*answers(i)[:8], "", "unsuitable image"]
      if split != "test":
        line |= {
          "answers": [*answers(i)[:8], "unsuitable image"],
          "answerable": i % 2,
        }
        record |= {
          "answers": [{"answer": x, "answer_confidence": "no"} for x in given],
          "answer_type": ("other", "unanswerable", "yes/no", "number")[i % 4],
          "answerable": i % 2,
        }
      records.append(record)
      lines[split].append(line)
      files[f"{split}/{name}"] = picture(".jpg", i)
    files[f"Annotations/{split}.json"] = records
  return Made(files, lines)


def pope():
  """Each picture has six questions; one file has the lines of Windows."""
  files, lines = {}, {}
  for kind in ("random", "popular", "adversarial"):
    records, lines[kind] = [], []
    for i in range(COUNT):
      name = f"COCO_val2014_{310196 + i // 6:012d}.jpg"
      label = ("yes", "no")[i % 2]
      asked = text("Is there a dog?", i)
      records.append(
        {"question_id": i + 1, "image": name, "text": asked, "label": label}
      )
      lines[kind].append(
        {"image": plain(f"val2014/{name}"), "question": asked, "answer": label}
      )
      files[f"val2014/{name}"] = picture(".jpg", i // 6)
    end = "\r\n\r\n" if kind == "popular" else "\n"
    files[f"output/coco/coco_pope_{kind}.json"] = json_lines(records, end)
  return Made(files, lines)


def tallyqa():
  """Pictures of three folders; a table lacks pictures, and has gray ones."""
  import pyarrow
  from pyarrow import parquet

  names = [
    "VG_100K_2/1.jpg",
    "VG_100K/2.jpg",
    "train2014/COCO_train2014_000000000009.jpg",
    "val2014/COCO_val2014_000000000042.jpg",
  ]
  files, lines = pictures(names), {}
  for split in ("train", "test"):
    records, lines[split] = [], []
    for i in range(COUNT):
      record = {
        "image": names[i % 4],
        "answer": i % 16,
        "data_source": "imported_genome",
        "question": text("How many dogs?", i),
        "image_id": 92410,
        "question_id": 30096263 + i,
      }
      if split == "test":
        record["issimple"] = i % 3 == 0
      records.append(record)
      lines[split].append(
        {
          "image": plain(names[i % 4]),
          "question": text("How many dogs?", i),
          "answer": i % 16,
          "issimple": int(i % 3 == 0) if split == "test" else -1,
        }
      )
    files[f"{split}.json"] = records
  rows, lines["countbenchqa"] = [], []
  gray, clear = io.BytesIO(), io.BytesIO()
  Image.new("L", (9, 9)).save(gray, "PNG")
  Image.new("RGBA", (9, 9)).save(clear, "PNG")
  for i in range(2 * COUNT):
    data = [jpeg(i), None, gray.getvalue(), clear.getvalue()][i % 4]
    image = data and {"bytes": data, "path": None}
    number = str(2 + i % 9)
    rows.append({"image": image, "text": text("dogs", i), "number": number})
    if i % 4 in (0, 3):
      end = "jpeg" if i % 4 == 0 else "png"
      lines["countbenchqa"].append(
        {
          "image": packed(f"countbenchqa/{i}.{end}"),
          "question": text("How many?", i),
          "answer": 2 + i % 9,
        }
      )
  content = io.BytesIO()
  # In several groups, one of them empty.
  whole = pyarrow.Table.from_pylist(rows)
  with parquet.ParquetWriter(content, whole.schema) as writer:
    for start, end in ((0, 7), (7, 7), (7, 2 * COUNT)):
      writer.write_table(whole.slice(start, end - start))
  files["train-00000-of-00001-cf54c241ba947306.parquet"] = content.getvalue()
  files["countbench_paired_questions.json"] = with_mark(
    [{"question": text("How many?", i)} for i in range(2 * COUNT)]
  )
  return Made(files, lines)
