"""RefCOCO, RefCOCO+ and RefCOCOg: sentences that refer to an object of COCO.

As refcocox_combined and the flat splits of ref_coco_bv, version 1.4.0, in the
reference (google-research/big_vision, big_vision/datasets/refcoco): to train on
are the pictures of all three without those of any validation or test split, one
example a picture with all its objects; evaluated is one example a sentence.
Masks are the union of COCO's polygons, as its run lengths; an object of which
no pixel is inside can be neither learnt nor scored, and is left out.
"""

import functools
from collections.abc import Iterator
from typing import Any

from paligemma.data import masks
from scripts.datasets import sources
from scripts.datasets.data_set import DataSet, Records, Split
from scripts.datasets.raw import Raw
from scripts.imports import entries

# Short name -> the file, its evaluated splits with their numbers of sentences.
PARTS = {
  "refcoco": (
    "refcoco/refs(unc).p",
    {"val": 10_834, "testA": 5_657, "testB": 5_095},
  ),
  "refcocop": (
    "refcoco+/refs(unc).p",
    {"val": 10_758, "testA": 5_726, "testB": 4_889},
  ),
  "refcocog": ("refcocog/refs(umd).p", {"val": 4_896, "test": 9_602}),
}
INSTANCES = "instances_train2017.json"
_REFER = "https://github.com/lichengunc/refer"


def _references(raw: Raw, names) -> Iterator[dict[str, Any]]:
  for name in names:
    file, _ = PARTS[name]
    found = raw.pickled(file)
    if not isinstance(found, list):
      raise ValueError(f"{file}: expected a list, found {found!r:.60}")
    yield from found


def _read(raw: Raw, names: tuple[str, ...], split: str) -> Records:
  """Yields (image, objects), of pictures with an object of the split."""
  chosen = list(_references(raw, names))
  excluded = set()
  if split == "train":
    excluded = {x["image_id"] for x in chosen if x["split"] != "train"}
  images, sentences = {}, {}
  for x in chosen:
    if x["split"] == split and x["image_id"] not in excluded:
      images[x["image_id"]] = None
      for sentence in x["sentences"]:
        sentences.setdefault(x["ann_id"], []).append(sentence["sent"])
  objects, labels = {}, {}
  sections = ("images", "annotations", "categories")
  for where, key, value in raw.sections(INSTANCES, sections):
    if key == "categories":
      labels[value["id"]] = value["name"]
    elif key == "images" and value["id"] in images:
      images[value["id"]] = where, value
    elif key == "annotations" and value["id"] in sentences:
      objects.setdefault(value["image_id"], []).append(value)
  for image_id, image in images.items():
    if image is None:
      raise ValueError(
        f"{INSTANCES}: lacks image {image_id}, which a sentence refers to; is "
        "it that of COCO 2017?"
      )
    where, fields = image
    found = [
      (x, labels[x["category_id"]], sentences[x["id"]])
      for x in objects.get(image_id, ())
    ]
    if split == "train":
      yield where, (fields, found)
      continue
    for x, label, several in found:
      for sentence in several:
        yield where, (fields, [(x, label, [sentence])])


def _fields(record) -> dict[str, Any] | None:
  image, objects = record
  size = image["height"], image["width"]
  drawn = [(*found, _mask(found[0]["segmentation"], size)) for found in objects]
  if not (drawn := [found for found in drawn if found[-1].any()]):
    return None
  return {
    "image": f"train2017/{image['file_name']}",
    "image_id": image["id"],
    "height": size[0],
    "width": size[1],
    "objects": [
      {
        "box": entries.BOXES["xywh"](*x["bbox"]),
        "label": label,
        "mask": masks.to_compressed_rle(mask),
        "sentences": sentences,
      }
      for x, label, sentences, mask in drawn
    ],
  }


def _mask(segmentation, size):
  is_rle = isinstance(segmentation, dict)
  read = masks.from_rle if is_rle else masks.from_polygons
  return read(segmentation, *size)


DATA_SETS = {
  "refcoco_seg": DataSet(
    about="The masks of objects that sentences refer to, in about 24,400 "
    "pictures to train on. The publisher's server is often away; the archives "
    "are mirrored.",
    homepage=_REFER,
    licence="Apache 2.0",
    size="18 GB",
    files={
      "refcoco/refs(unc).p": f"{_REFER}, refcoco.zip",
      "refcoco+/refs(unc).p": f"{_REFER}, refcoco+.zip",
      "refcocog/refs(umd).p": f"{_REFER}, refcocog.zip",
      INSTANCES: sources.COCO_ANNOTATIONS,
      "train2017": sources.COCO_2017["train2017"],
    },
    splits={
      "train": Split(
        functools.partial(_read, names=tuple(PARTS), split="train"), _fields
      ),
      **{
        f"{name}_{split}": Split(
          functools.partial(_read, names=(name,), split=split), _fields, count
        )
        for name, (_, splits) in PARTS.items()
        for split, count in splits.items()
      },
    },
  )
}
