"""Captions, as their publishers ship them."""

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
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

LANGUAGES = ("de", "fil")
SPLITS_35 = (
  *("train_de", "train_en", "train_fil", "dev_de", "dev_en"),
  *("xm3600_en", "xm3600_quz"),
)


def karpathy():
  """(Karpathy's file, lines); five captions a picture, of some six or seven."""
  images = []
  lines = {"train": [], "restval": [], "val": [], "test": []}
  for i in range(4 * COUNT):
    split = list(lines)[i % 4]
    subset = "train2014" if split == "train" else "val2014"
    file = f"COCO_{subset}_{i + 1:012d}.jpg"
    captions = [text(f"A barn {n}. ", i + n) for n in range(5 + i % 3)]
    images.append(
      {
        "filepath": subset,
        "sentids": list(range(len(captions))),
        "filename": file,
        "imgid": i,
        "split": split,
        "sentences": [
          {"tokens": ["a", "barn"], "raw": raw, "imgid": i, "sentid": n}
          for n, raw in enumerate(captions)
        ],
        "cocoid": i + 1,
      }
    )
    named = plain if split == "train" else packed
    lines[split].append(
      {
        "image": named(f"{subset}/{file}"),
        "captions": captions,
        "image_id": i + 1,
      }
    )
  return {"images": images, "dataset": "coco"}, lines


def cococap():
  """And NoCaps, of which some pictures have fewer captions than ten."""
  whole, lines = karpathy()
  images = [f"{x['filepath']}/{x['filename']}" for x in whole["images"]]
  train = pictures(x for x in images if x.startswith("train"))
  val = pictures(x for x in images if x.startswith("val"))
  val["val2014/COCO_val2014_999999.jpg"] = picture(".jpg")
  images, captions, lines["nocaps"], lines["nocaps_test"] = [], [], [], []
  hidden = []
  for i in range(COUNT):
    name = f"{i:04x}7ea0.jpg"
    images.append({"id": i, "file_name": name, "open_images_id": name[:-4]})
    hidden.append({"id": i + 90, "file_name": f"t{name}", "width": 1024})
    lines["nocaps"].append(
      {
        "image": packed(f"validation/{name}"),
        "captions": [text(f"A dog {n}.", i) for n in range(10 - i % 2)],
        "image_id": i,
      }
    )
    lines["nocaps_test"].append(
      {"image": packed(f"test/t{name}"), "captions": [], "image_id": i + 90}
    )
  # Captions of a picture are not side by side.
  for n in range(10):
    for i, line in enumerate(lines["nocaps"]):
      if n < len(line["captions"]):
        captions.append(
          {"image_id": i, "id": 10 * i + n, "caption": line["captions"][n]}
        )
  files = {
    "caption_datasets.zip": zipped(
      {"dataset_coco.json": whole, "dataset_flickr8k.json": "{}"}
    ),
    **train,
    "val2014.zip": zipped(val),
    "nocaps_val_4500_captions.json": {
      "licenses": [],
      "annotations": captions,
      "info": {"version": 1.0},
      "images": images,
    },
    "nocaps_test_image_info.json": {"images": hidden, "info": {}},
    "validation.tar.gz": tarred(
      pictures(f"validation/{x['file_name']}" for x in images)
    ),
    "test.tar.gz": tarred(pictures(f"test/{x['file_name']}" for x in hidden)),
  }
  return Made(files, lines)


def textcaps():
  """Captions of a picture are not side by side, and some are empty."""
  files, lines = {}, {}
  for split in ("train", "val", "test"):
    records, lines[split] = [], []
    folder = "test_images" if split == "test" else "train_images"
    for n in range(3):
      for i in range(COUNT):
        name = f"{split[0]}{i:015x}"
        record = {
          "image_id": name,
          "image_name": name,
          "image_path": f"train/{name}.jpg",
          "set_name": split,
          "caption_id": 3 * i + n,
        }
        if split == "test":
          # Its captions are not there, in one release null.
          record |= {"caption_str": None} if i % 2 else {}
        else:
          given = text(f"A sign {n}.", i) if n or i % 5 else ""
          record |= {
            "caption_str": given,
            "caption_tokens": ["a"],
            "reference_strs": [text("A sign", i)],
          }
        records.append(record)
        if n == 0:
          named = packed if split == "test" else plain
          captions = []
          if split != "test":
            first = [] if i % 5 == 0 else [0]
            captions = [text(f"A sign {k}.", i) for k in (*first, 1, 2)]
          lines[split].append(
            {"image": named(f"{folder}/{name}.jpg"), "captions": captions}
          )
    about = {"dataset_type": split, "dataset_name": "textcaps", "data": records}
    files[f"TextCaps_0.1_{split}.json"] = (
      with_mark(about) if split == "val" else about
    )
    of = [f"{folder}/{split[0]}{i:015x}.jpg" for i in range(COUNT)]
    files |= (
      {"test_images.zip": zipped(pictures(of))}
      if split == "test"
      else pictures(of)
    )
  return Made(files, lines)


def coco35l():
  """Lines of one language are not side by side; texts are split into words."""
  whole, karpathy_lines = karpathy()
  files = {"dataset_coco.json": whole}
  lines = {name: [] for name in SPLITS_35}
  for split, of in [("train", "train"), ("dev", "val")]:
    languages = LANGUAGES if split == "train" else ("de",)
    records = []
    chosen = karpathy_lines[of]
    for line in chosen:
      image = plain(line["image"].split("/", 2 if of == "train" else 1)[-1])
      files[image.removeprefix("../raw/")] = picture(".jpg", line["image_id"])
      for code in (*languages, "en"):
        texts = [
          text(f"{code} {line['image_id']} {n} .", n)
          for n in range(2 + line["image_id"] % 2)
        ]
        lines[f"{split}_{code}"].append(
          {"image": image, "captions": texts, "language": code}
        )
    for n in range(3):
      for k, line in enumerate(chosen):
        for code in languages:
          texts = lines[f"{split}_{code}"][k]["captions"]
          if n < len(texts):
            english = lines[f"{split}_en"][k]["captions"][n]
            records.append(
              {
                "image_id": f"{line['image_id']}_{n}",
                "caption_tokenized": english,
                "trg_lang": code,
                "translation_tokenized": texts[n],
                "backtranslation_tokenized": f'a "{code}" barn',
              }
            )
    files[f"coco_mt_{split}.jsonl"] = json_lines(records)
  records, names = [], []
  for i in range(COUNT):
    name = f"{i:04x}00ab"
    names.append(f"images/{name}.jpg")
    record = {"image/key": name, "image/locale": "quz"}
    for code in ("en", "quz"):
      words = [text(f"{code} , {n} .", i) for n in range(1 + i % 3)]
      record[code] = {
        "caption": [text(code, i)] * len(words),
        "caption/tokenized": words,
        "caption/tokenized/lowercase": words,
      }
      lines[f"xm3600_{code}"].append(
        {"image": packed(names[-1]), "captions": words, "language": code}
      )
    records.append(record)
  files["captions.zip"] = zipped({"captions.jsonl": json_lines(records)})
  files["images.tgz"] = tarred(pictures(names))
  return Made(files, lines)


def scicap():
  """Papers of both kinds of numbers; a figure's file holds other texts too."""
  files, lines = {}, {}
  start = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig"
  for split in ("train", "val", "test"):
    names, lines[split] = [], []
    for i in range(COUNT):
      paper = ("1001.0001v1", "hep-th9901001v2")[i % 2]
      stem = f"{paper}-Figure{i}-{'-' * (i % 3 == 0)}{split}"
      caption = text("a barn .", i)
      names.append(f"{stem}.png")
      files[f"scicap_data/SciCap-Caption-All/{split}/{stem}.json"] = {
        "contains-subfigure": False,
        "paper-ID": paper,
        "figure-ID": f"{stem}.png",
        "figure-type": "Graph Plot",
        "0-originally-extracted": f"Figure {i}: A Barn.",
        "1-lowercase-and-token-and-remove-figure-index": {
          "caption": caption,
          "sentence": [caption],
          "token": caption.split(),
        },
        "2-normalized": {"2-1-basic-num": {"caption": "", "sentence": []}},
        "Img-text": ["0.5", ""],
      }
      image = f"scicap_data/SciCap-No-Subfig-Img/{split}/{stem}.png"
      files[image] = picture(".png", i)
      lines[split].append({"image": plain(image), "caption": caption})
    files[f"scicap_data/{start}/{split}/file_idx.json"] = names
  return Made(files, lines)
