"""Ops on the objects of a raw example: from annotations, and to its texts.

    annotations -> From... -> "objects" -> crops and flips -> Write... -> text

What an object is, data/objects.py says; the text, data/location.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from paligemma import registry
from paligemma.data import (
  example_fields,
  image_ops,
  location,
  mask_codes,
  objects,
)
from paligemma.data import masks as masks_lib
from paligemma.data.example_fields import Example

ORDERS = {
  "random": "another order each time",
  "sorted": "from top to bottom, then from left to right, by the upper left",
  "given": "as in the annotations",
}


_SHAPED = ' and "segmentation", polygons or run lengths'


@dataclasses.dataclass(frozen=True)
class FromTfds:
  """Makes objects of the columns of TFDS, as in its coco, voc and ref_coco.

      {"bbox": [(ymin, xmin, ymax, xmax), ...], "label": [17, ...]}

  Boxes are relative to the image; those without area are left out. "area" and
  "is_crowd" are kept under the names of COCO, "mask" (an image, 0 outside) as
  bool[H, W], and the sentences of "refs" as "sentences". The example also gets
  "height" and "width" of the image, for metrics.Detection.

  Attributes:
    names: Of the labels, by their number. Default none: labels are "".
    label: Column of the labels. Default "label"; ref_coco_bv has "category".
    crowds: Keep annotations of groups, which only the metric can use. Default
      False.
    key: Field with the columns. Default "objects".
  """

  names: tuple[str, ...] = ()
  label: str = "label"
  crowds: bool = False
  key: str = "objects"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    columns = example_fields.read(example, self.key)
    needed = {"bbox", self.label} if self.names else {"bbox"}
    if not isinstance(columns, Mapping) or not needed <= columns.keys():
      raise example_fields.wrong(
        example, self.key, f"columns {' and '.join(sorted(needed))}"
      )
    height, width = _size(example)
    things = []
    for i, box in enumerate(columns["bbox"]):
      # In float32, as it is stored, what was a whole pixel comes out as one.
      box = np.asarray(box, np.float32) * np.float32([height, width] * 2)
      label = self._label(columns, i, example)
      thing = {"box": tuple(box.tolist()), "label": label}
      for crowd in ("is_crowd", "iscrowd"):
        if crowd in columns:
          thing["iscrowd"] = int(columns[crowd][i])
      if "area" in columns:
        thing["area"] = float(columns["area"][i])
      if "mask" in columns:
        thing["mask"] = _mask(columns["mask"][i], (height, width), example)
      if "refs" in columns:
        sentences = columns["refs"]["sentence"][i]
        thing["sentences"] = [_text(sentence) for sentence in sentences]
      things.append(thing)
    return _with(example, things, self.crowds, height, width)

  def _label(self, columns, i, example):
    if not self.names:
      return ""
    number = int(columns[self.label][i])
    if not 0 <= number < len(self.names):
      raise ValueError(
        f"{example_fields.where(example)}: object {i} has label {number}, "
        f"expected it in [0, {len(self.names)}), as there are names"
      )
    return self.names[number]


@dataclasses.dataclass(frozen=True)
class FromCoco:
  """Makes objects of the annotations of COCO, as in its instances_*.json.

      [{"bbox": [x, y, width, height], "category_id": 17}, ...]

  Boxes are in pixels; those without area are left out. "area" and "iscrowd" are
  kept. The example also gets "height" and "width" of the image.

  Attributes:
    names: Of the labels, by number. Default none: "category_id" is a text.
    masks: Whether to fill "segmentation", polygons or run lengths. Default
      False.
    crowds: Keep annotations of groups, which only the metric can use. Default
      False.
    key: Field with the annotations. Default "annotations".
  """

  names: Mapping[int, str] | None = None
  masks: bool = False
  crowds: bool = False
  key: str = "annotations"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    annotations = example_fields.read(example, self.key)
    if not isinstance(annotations, list | tuple):
      raise example_fields.wrong(example, self.key, "a list of annotations")
    height, width = _size(example)
    things = []
    try:
      for annotation in annotations:
        x, y, w, h = map(float, annotation["bbox"])
        label = annotation["category_id"]
        thing = {
          "box": (y, x, y + h, x + w),
          "label": label if self.names is None else self.names[label],
        }
        kept = annotation.keys() & {"area", "iscrowd"}
        thing |= {key: annotation[key] for key in kept}
        if self.masks:
          thing["mask"] = _fill(annotation["segmentation"], height, width)
        things.append(thing)
    except (KeyError, TypeError, ValueError) as error:
      reason = f"KeyError {error}" if isinstance(error, KeyError) else error
      raise ValueError(
        f"{example_fields.where(example)}: annotation {len(things)} of "
        f'"{self.key}" is '
        f'{annotation!r:.60}, expected "bbox" [x, y, width, height] and '
        f'"category_id"{_SHAPED * self.masks}: {reason}'
      ) from None
    return _with(example, things, self.crowds, height, width)


@dataclasses.dataclass(frozen=True)
class KeepObjects:
  """Leaves out objects.

  Attributes:
    labels: Those to keep. Default None, all.
    min_side: Shortest side of a box to keep, in pixels. Default 0.
  """

  labels: tuple[str, ...] | None = None
  min_side: float = 0.0

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return {
      **example,
      "objects": [
        thing
        for thing in objects.read(example)
        if (self.labels is None or thing["label"] in self.labels)
        and min(_sides(thing["box"])) >= self.min_side
      ],
    }


@dataclasses.dataclass(frozen=True)
class Refer:
  """Leaves one object, and writes one of its sentences as "sentence".

  Both at random, unless text_ops.Choice has put one object in the place of the
  list before. For ref_coco:

      FromTfds(crowds=True), Choice("objects", replace=False), Refer(),
      Format("{sentence}"), Segment(...)
  """

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    things = example_fields.read(example, "objects")
    if isinstance(things, Mapping):
      example = {**example, "objects": [things]}
    things = [t for t in objects.read(example) if t.get("sentences")]
    if not things:
      raise ValueError(
        f"{example_fields.where(example)}: no object has sentences, expected "
        "them as "
        '"sentences" of one'
      )
    thing = things[rng.integers(len(things))]
    sentences = thing["sentences"]
    sentence = sentences[rng.integers(len(sentences))]
    return {**example, "objects": [thing], "sentence": sentence}


@dataclasses.dataclass(frozen=True)
class Segment:
  """Writes the suffix of the one object: 4 locations and 16 codes, no label.

  It also writes "box" and "mask", which metrics.Segmentation reads.

  Attributes:
    encoder: Makes the codes.

  Source: refcoco_mask2str of big_vision; round(1023 * box) are the locations,
  and the mask is cut out and resized to 64x64 as data/masks.crop does.
  """

  encoder: mask_codes.Encoder

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    things = objects.read(example)
    if len(things) != 1 or "mask" not in things[0]:
      raise ValueError(
        f"{example_fields.where(example)}: found {len(things)} objects, "
        "expected one, "
        "with a mask: Refer leaves one, and InceptionCrop(min_covered=1) does "
        "not cut it off"
      )
    (thing,) = things
    unnamed = {**thing, "label": ""}
    suffix = _encode(unnamed, _size(example), self.encoder, example)
    answer = {"box": thing["box"], "mask": thing["mask"]}
    return {**example, "suffix": suffix, **answer}


@dataclasses.dataclass(frozen=True)
class DetectPrompt:
  """Writes the prefix "detect a ; b" of the labels of the objects.

  Labels come in random order, so that their places do not tell which are there.

  Attributes:
    names: Labels that may be asked for although they are not there. Default
      none.
    negatives: How many of them; at least one where there is no object. Default
      0.
    verb: Default "detect".
  """

  names: tuple[str, ...] = ()
  negatives: int = 0
  verb: str = "detect"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    things = objects.read(example)
    labels = {t["label"] for t in things if not t.get("noise")} - {""}
    absent = sorted(set(self.names) - labels)
    count = min(max(self.negatives, not labels), len(absent))
    labels = (
      sorted(labels) + [absent[i] for i in rng.permutation(len(absent))][:count]
    )
    if not labels:
      raise ValueError(
        f"{example_fields.where(example)}: no object has a label; give names "
        "to DetectPrompt, to ask for what is not there"
      )
    labels = [labels[i] for i in rng.permutation(len(labels))]
    prefix = f"{self.verb} {location.SEPARATOR.join(labels)}"
    return {**example, "prefix": prefix}


@dataclasses.dataclass(frozen=True)
class WriteObjects:
  """Writes the suffix: "<loc....>x4 cat ; <loc....>x4 dog"; "" of no object.

  Another order each time is an augmentation: the model learns that what it has
  found already does not fix what comes next. Objects of NoiseObjects stay
  behind the others, and their locations are no targets: "unsupervised" holds
  where they stand, as (start, stop) in characters of the suffix.

  Attributes:
    order: Key of ORDERS. Default "random".
    masks: Makes the codes of masks, which all objects then need. Default None,
      no codes.
    limit: Most objects, the first ones in the order. Default None, all.

  Source: Pix2seq (arXiv:2109.10852), section 2.1, which finds the random order
  best.
  """

  order: str = "random"
  masks: mask_codes.Encoder | None = None
  limit: int | None = None

  def __post_init__(self):
    registry.lookup(ORDERS, self.order, "order of objects")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    things = objects.read(example)
    if self.order == "random":
      things = [things[i] for i in rng.permutation(len(things))]
    elif self.order == "sorted":
      things.sort(key=lambda thing: tuple(thing["box"]))
    things.sort(key=lambda thing: bool(thing.get("noise")))
    size = _size(example)
    suffix, unsupervised = "", []
    for i, thing in enumerate(things[: self.limit]):
      suffix += location.SEPARATOR if i else ""
      start = len(suffix)
      suffix += _encode(thing, size, self.masks, example)
      if thing.get("noise"):
        stop = len(suffix) - len(thing["label"]) - 1
        unsupervised.append((start, stop))
    written = {"suffix": suffix}
    if unsupervised:
      written["unsupervised"] = unsupervised
    return {**example, **written}


@dataclasses.dataclass(frozen=True)
class NoiseObjects:
  """Appends boxes labelled "noise" until there are so many objects in all.

  A detector that learns to stop behind the last annotated object stops too
  early. With noise it does not learn when to stop: every answer has the same
  number of objects, so that the end says nothing of the image, and whether
  there is something in the next box is told by its label, with a probability
  that can be compared. WriteObjects takes the locations of noise out of the
  loss, so that the boxes the model proposes there are real ones; ask for an
  answer long enough for `total` objects, and drop those that come back as
  noise (metrics.Detection ignores a label that is annotated nowhere).

  Boxes are copies of real ones, moved by up to a tenth of their sides; boxes of
  the size of real ones elsewhere; and random ones.

  Attributes:
    total: Objects in all; give WriteObjects the same limit, for images with
      more.
    label: Default "noise".

  Source: Pix2seq (arXiv:2109.10852), section 2.3, "sequence augmentation", and
  augment_bbox of its code, whose kinds and amounts of noise these are. There,
  an input label of noise may be another one than its target; here it is the
  same, as in any answer.
  """

  augments: ClassVar[bool] = True
  total: int
  label: str = "noise"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    things = objects.read(example)
    sides = np.array(_size(example), float)
    count = max(self.total - len(things), 0)
    copies = rng.integers(count + 1) if things else 0
    noise = []
    for i in range(count):
      corners = np.zeros((2, 2))
      if things:
        thing = things[rng.integers(len(things))]
        corners = np.reshape(thing["box"], (2, 2)).astype(float)
      if i < copies:
        moved = np.clip(rng.normal(0, 0.05, (2, 2)), -0.1, 0.1)
        corners += moved * (corners[1] - corners[0])
      else:
        half = (corners[1] - corners[0]) / 2
        if not things or rng.random() < 0.5:
          half = np.abs(rng.normal(0, 0.5, 2)).clip(max=1) * sides / 2
        centre = rng.uniform(0, sides)
        corners = np.stack([centre - half, centre + half])
      box = np.clip(corners, 0, sides).ravel().tolist()
      noise.append({"box": tuple(box), "label": self.label, "noise": True})
    noise = [noise[i] for i in rng.permutation(count)]
    return {**example, "objects": things + noise}


def _size(example):
  image = example_fields.read(example, "image")
  return image_ops.size(image, where=example_fields.where(example))


def _sides(box):
  return box[2] - box[0], box[3] - box[1]


def _with(example, things, crowds, height, width):
  things = [
    thing
    for thing in things
    if min(_sides(thing["box"])) > 0 and (crowds or not thing.get("iscrowd"))
  ]
  made = {**example, "objects": things, "height": height, "width": width}
  objects.read(made)
  return made


def _fill(segmentation, height, width):
  if isinstance(segmentation, Mapping):
    return masks_lib.from_rle(segmentation, height, width)
  return masks_lib.from_polygons(segmentation, height, width)


def _mask(mask, size, example):
  mask = np.asarray(mask)
  mask = (mask[..., 0] if mask.ndim == 3 else mask) != 0  # channels are alike
  if mask.shape != size:
    raise ValueError(
      f"{example_fields.where(example)}: mask has shape {mask.shape}, "
      f"expected {size}, that of the image"
    )
  return mask


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _encode(thing, size, encoder, example):
  """The text of one object; with an encoder, the codes of its mask too."""
  codes = None
  try:
    if encoder is not None and not thing.get("noise"):
      if "mask" not in thing:
        raise ValueError(f'object "{thing["label"]}" has no mask to encode')
      codes = encoder(thing["mask"], thing["box"])
    written = location.Object(thing["box"], thing["label"], codes)
    return location.encode([written], size)
  except ValueError as error:
    raise ValueError(f"{example_fields.where(example)}: {error}") from None
