"""Captions of photographs and figures.

Fields as the reference's builders yield them (google-research/big_vision,
big_vision/datasets), under the names of our configs: `caption_str` of TextCaps
is one of captions, empty ones left out; `raw` of Karpathy's file is COCO's own
text (coco_captions of TFDS); SciCap has the text in lower case, in words.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.datasets import sources
from scripts.datasets.data_set import DataSet, Records, Split
from scripts.datasets.raw import Raw

KARPATHY = "dataset_coco.json"
KARPATHY_SOURCE = {
  KARPATHY: "https://cs.stanford.edu/people/karpathy/deepimagesent/"
  "caption_datasets.zip"
}
LANGUAGES = (
  *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr"),
  *("he", "hi", "hr", "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl"),
  *("pt", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
)
LANGUAGES_XM3600 = sorted((*LANGUAGES, "quz"))

_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa/data/textcaps"
_XM3600 = "https://storage.googleapis.com/crossmodal-3600"


def _karpathy(split: str, image: Mapping[str, Any]) -> dict | None:
  if image["split"] != split:
    return None
  return {
    "image": f"{image['filepath']}/{image['filename']}",
    "captions": [sentence["raw"] for sentence in image["sentences"]],
    "image_id": image["cocoid"],
  }


def _nocaps(raw: Raw, file: str, annotated: bool) -> Records:
  captions = {}
  if annotated:
    for _, x in raw.items(file, "annotations"):
      captions.setdefault(x["image_id"], []).append(x["caption"])
  for where, image in raw.items(file, "images"):
    yield where, (image, captions.get(image["id"], []))


def _nocaps_fields(folder: str, record: Sequence[Any]) -> dict:
  image, captions = record
  return {
    "image": f"{folder}/{image['file_name']}",
    "captions": captions,
    "image_id": image["id"],
  }


def _nocaps_split(file, folder, count, **about):
  annotated = not about.get("hidden", False)
  return Split(
    functools.partial(_nocaps, file=file, annotated=annotated),
    functools.partial(_nocaps_fields, folder),
    count,
    **about,
  )


def _textcaps(raw: Raw, file: str) -> Records:
  """One record a picture: an entry of the file is one caption."""
  grouped = {}
  for where, x in raw.items(file, "data"):
    _, name, captions = grouped.setdefault(
      x["image_id"], (where, x["image_name"], [])
    )
    if x.get("caption_str"):
      captions.append(x["caption_str"])
  for where, name, captions in grouped.values():
    yield where, (name, captions)


def _textcaps_fields(folder: str, record: Sequence[Any]) -> dict:
  name, captions = record
  return {"image": f"{folder}/{name}.jpg", "captions": captions}


def _textcaps_split(name, folder, count, **about):
  return Split(
    functools.partial(_textcaps, file=f"TextCaps_0.1_{name}.json"),
    functools.partial(_textcaps_fields, folder),
    count,
    **about,
  )


def _coco35l(raw: Raw, split: str, code: str) -> Records:
  """One record a picture: a line of the file is one caption in one language.

  The English captions are the sources of the translations to German.
  """
  paths = {
    image["cocoid"]: f"{image['filepath']}/{image['filename']}"
    for _, image in raw.items(KARPATHY, "images")
  }
  of, key = (code, "translation_tokenized")
  if code == "en":
    of, key = "de", "caption_tokenized"
  file = f"coco_mt_{split}.jsonl"
  grouped = {}
  for where, x in raw.json_lines(file, f'"{of}"'):
    if x["trg_lang"] == of:
      image_id = int(x["image_id"].partition("_")[0])
      grouped.setdefault(image_id, (where, []))[1].append(x[key])
  for image_id, (where, captions) in grouped.items():
    yield where, (paths.get(image_id, str(image_id)), captions)


def _of_language(code: str, record: Sequence[Any]) -> dict:
  path, captions = record
  return {"image": path, "captions": captions, "language": code}


def _coco35l_split(split, code, count):
  return Split(
    functools.partial(_coco35l, split=split, code=code),
    functools.partial(_of_language, code),
    count,
  )


def _xm3600(raw: Raw) -> Records:
  return raw.json_lines("captions.jsonl")


def _xm3600_fields(code: str, line: Mapping[str, Any]) -> dict:
  captions = line[code]["caption/tokenized"]
  return _of_language(code, (f"{line['image/key']}.jpg", captions))


def _scicap(raw: Raw, split: str) -> Records:
  file = f"First-Sentence/No-Subfig/{split}/file_idx.json"
  for where, name in raw.items(file):
    stem = name.removesuffix(".png")
    figure = raw.json(f"SciCap-Caption-All/{split}/{stem}.json")
    yield where, (f"SciCap-No-Subfig-Img/{split}/{name}", figure)


def _scicap_fields(record: Sequence[Any]) -> dict:
  path, figure = record
  key = "1-lowercase-and-token-and-remove-figure-index"
  return {"image": path, "caption": figure[key]["caption"]}


DATA_SETS = {
  "cococap": DataSet(
    about="COCO captions in Karpathy's splits, and NoCaps, which is evaluated "
    "without training on it.",
    homepage="https://cocodataset.org, https://nocaps.org",
    licence="CC BY 4.0 (captions)",
    size="31 GB",
    files={
      **KARPATHY_SOURCE,
      **sources.COCO_2014,
      "nocaps_val_4500_captions.json": "https://nocaps.s3.amazonaws.com/"
      "nocaps_val_4500_captions.json",
      "nocaps_test_image_info.json": "https://s3.amazonaws.com/nocaps/"
      "nocaps_test_image_info.json",
      "validation": "https://s3.amazonaws.com/open-images-dataset/tar/"
      "validation.tar.gz (12 GB)",
      "test": "https://s3.amazonaws.com/open-images-dataset/tar/test.tar.gz "
      "(36 GB)",
    },
    splits={
      **{
        name: Split(
          functools.partial(Raw.items, path=KARPATHY, key="images"),
          functools.partial(_karpathy, name),
          count,
        )
        for name, count in {
          "train": 82_783,
          "restval": 30_504,
          "val": 5_000,
          "test": 5_000,
        }.items()
      },
      "nocaps": _nocaps_split(
        "nocaps_val_4500_captions.json", "validation", 4_500
      ),
      "nocaps_test": _nocaps_split(
        "nocaps_test_image_info.json", "test", 10_600, hidden=True
      ),
    },
  ),
  "textcaps": DataSet(
    about="Captions that mention the text in the picture.",
    homepage="https://textvqa.org/textcaps",
    licence="CC BY 4.0",
    size="8 GB",
    files={
      **{
        f"TextCaps_0.1_{name}.json": f"{_TEXTVQA}/TextCaps_0.1_{name}.json"
        for name in ("train", "val", "test")
      },
      **sources.TEXTVQA,
    },
    splits={
      "train": _textcaps_split("train", "train_images", 21_953),
      "val": _textcaps_split("val", "train_images", 3_166),
      "test": _textcaps_split("test", "test_images", 3_289, hidden=True),
    },
  ),
  "coco35l": DataSet(
    about="COCO captions, translated to 35 languages, and Crossmodal-3600, "
    "which is evaluated without training on it. Unpack the .bz2 files first: "
    "each language reads them anew.",
    homepage="https://google.github.io/crossmodal-3600",
    licence="CC BY 4.0",
    size="20 GB",
    files={
      "coco_mt_train.jsonl": f"{_XM3600}/coco_mt_train.jsonl.bz2",
      "coco_mt_dev.jsonl": f"{_XM3600}/coco_mt_dev.jsonl.bz2",
      **KARPATHY_SOURCE,
      **sources.COCO_2014,
      "captions.jsonl": "https://google.github.io/crossmodal-3600/web-data/"
      "captions.zip",
      "images": "https://open-images-dataset.s3.amazonaws.com/crossmodal-3600/"
      "images.tgz",
    },
    splits={
      **{
        f"{split}_{code}": _coco35l_split(split, code, count)
        for split, count in {"train": 113_287, "dev": 5_000}.items()
        for code in LANGUAGES
      },
      **{
        f"xm3600_{code}": Split(
          _xm3600, functools.partial(_xm3600_fields, code), 3_600
        )
        for code in LANGUAGES_XM3600
      },
    },
  ),
  "scicap": DataSet(
    about="The first sentence of the caption of a figure without parts.",
    homepage="https://github.com/tingyaohsu/SciCap",
    licence="CC BY-NC-SA 4.0",
    size="18 GB",
    files={
      "scicap_data": "https://www.dropbox.com/s/t1sjqesl0pynaxo/"
      "scicap_data.zip?dl=1"
    },
    splits={
      name: Split(functools.partial(_scicap, split=name), _scicap_fields, count)
      for name, count in {
        "train": 106_834,
        "val": 13_354,
        "test": 13_355,
      }.items()
    },
  ),
}
