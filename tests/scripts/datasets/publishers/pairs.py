"""Sentences about two pictures, as their publishers ship them."""

import json
import unicodedata

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
  json_lines,
  picture,
  plain,
  text,
)

MARVL = ("id", "sw", "ta", "tr", "zh")


def nlvr2():
  """Labels are texts there and truth values here; names have marks."""
  files, lines = {}, {}
  for split, of in [("train", "train"), ("dev", "dev"), ("test", "test1")]:
    records, lines[split] = [], []
    for i in range(COUNT):
      stem, label = f"{of}-{10171 + i // 4}-{i % 2}", ("True", "False")[i % 2]
      record = {
        "identifier": f"{stem}-{i % 4}",
        "sentence": text("Both are red.", i),
        "label": label,
        "synset": "barn",
        "query": "barn1",
        "left_url": "http://x/y.jpg",
        "writer": i,
        "validation": {"4": "True"},
      }
      folder = of
      if of == "train":
        # A number there; the folders of some copies are not packed together.
        record["directory"] = 37 + i // 12
        folder = f"images/train/{37 + i // 12}"
      names = [f"{folder}/{stem}-img{k}.png" for k in (0, 1)]
      for k, name in enumerate(names):
        files[name] = picture(".png", i + k)
      records.append(record)
      lines[split].append(
        {
          "image": list(map(plain, names)),
          "sentence": record["sentence"],
          "label": label,
        }
      )
    files[f"data/{of}.json"] = json_lines(records)
  for code in MARVL:
    records, name = [], f"marvl_{code}"
    lines[name] = []
    for i in range(COUNT):
      folder = ("49-Musik", "12-Çay bahçesi", "3-早餐")[i % 3]
      left, right = f"{i}é.jpg", f"{i // 2}-b.JPG"
      # As a Mac has it, the mark apart from its letter, or as it is written.
      form = ("NFD", "NFC")[i % 2]
      paths = [
        unicodedata.normalize(form, f"images/{code}/images/{folder}/{x}")
        for x in (left, right)
      ]
      for k, path in enumerate(paths):
        files[path] = picture(".jpg", i + k)
      records.append(
        {
          "concept": folder,
          "language": code,
          "caption": text("இரண்டு", i),
          "left_img": left,
          "right_img": right,
          "annotator_info": {"age": i},
          "chapter": "Music",
          "id": f"{code}-{i}",
          "label": i % 2 == 0,
        }
      )
      lines[name].append(
        {
          "image": list(map(plain, paths)),
          "sentence": text("இரண்டு", i),
          "label": "True" if i % 2 == 0 else "False",
        }
      )
    files[f"marvl-{code}.jsonl"] = "\ufeff" + "".join(
      json.dumps(x, ensure_ascii=False) + "\r\n" for x in records
    )
  return Made(files, lines)
