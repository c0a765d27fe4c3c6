"""Ops on the objects of a raw example: from annotations, and to its texts.

    annotations -> From... -> "objects" -> crops and flips -> Write... -> text

data/objects.py defines objects, data/location.py their text.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from paligemma import registry
from paligemma.data import example_fields, image_ops, location, objects
from paligemma.data import masks as masks_lib
from paligemma.data.example_fields import Example
from paligemma.data.mask_codes import Encoder

ORDERS = {
  "random": "a new random order each time",
  "sorted": "from top to bottom, then from left to right, by the upper left",
  "given": "as in the annotations",
}
_SHAPED = ' and "segmentation", polygons or run lengths'


@dataclasses.dataclass(frozen=True)
class FromTfds:
  """Makes objects from the columns of TFDS, as in its coco, voc and ref_coco.

      {"bbox": [(ymin, xmin, ymax, xmax), ...], "label": [17, ...]}

  Boxes are relative to the image; those without area are left out. "area" and
  "is_crowd" are kept under the names of COCO, "mask" (an image, 0 outside) as
  bool[H, W], and the sentences of "refs" as "sentences". The example also gets
  "height" and "width" of the image, for metrics.Detection.

  Attributes:
    names: Of the labels, by number. Default (): labels are "".
    label: Column of the labels; in ref_coco_bv it is "category".
    crowds: Whether to keep annotations of groups, which only the metric uses.
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
    height, width = image_ops.image_size(example)
    found = []
    for i, box in enumerate(columns["bbox"]):
      # In float32, as stored, whole pixels remain whole.
      box = np.asarray(box, np.float32) * np.float32([height, width] * 2)
      label = self._label(columns, i, example)
      item = {"box": tuple(box.tolist()), "label": label}
      for crowd in ("is_crowd", "iscrowd"):
        if crowd in columns:
          item["iscrowd"] = int(columns[crowd][i])
      if "area" in columns:
        item["area"] = float(columns["area"][i])
      if "mask" in columns:
        item["mask"] = _mask(columns["mask"][i], (height, width), example)
      if "refs" in columns:
        sentences = columns["refs"]["sentence"][i]
        item["sentences"] = [
          s.decode() if isinstance(s, bytes) else str(s) for s in sentences
        ]
      found.append(item)
    return _replace(example, found, self.crowds, height, width)

  def _label(self, columns, i, example):
    if not self.names:
      return ""
    number = int(columns[self.label][i])
    if not 0 <= number < len(self.names):
      raise example_fields.error(
        example,
        f"object {i} has label {number}, expected it in [0, {len(self.names)}),"
        " as there are names",
      )
    return self.names[number]


@dataclasses.dataclass(frozen=True)
class FromCoco:
  """Makes objects from annotations of COCO, as in its instances_*.json.

      [{"bbox": [x, y, width, height], "category_id": 17}, ...]

  Boxes are in pixels; those without area are left out. "area" and "iscrowd" are
  kept. The example also gets "height" and "width" of the image.

  Attributes:
    names: Of the labels, by number. Default None: "category_id" is the label.
    masks: Whether to make masks of "segmentation", polygons or run lengths.
    crowds: As of FromTfds.
  """

  names: Mapping[int, str] | None = None
  masks: bool = False
  crowds: bool = False
  key: str = "annotations"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    annotations = example_fields.read(example, self.key)
    if not isinstance(annotations, list | tuple):
      raise example_fields.wrong(example, self.key, "a list of annotations")
    height, width = image_ops.image_size(example)
    found = []
    try:
      for annotation in annotations:
        x, y, w, h = map(float, annotation["bbox"])
        label = annotation["category_id"]
        item = {
          "box": (y, x, y + h, x + w),
          "label": label if self.names is None else self.names[label],
        }
        kept = annotation.keys() & {"area", "iscrowd"}
        item |= {key: annotation[key] for key in kept}
        if self.masks:
          shape = annotation["segmentation"]
          is_rle = isinstance(shape, Mapping)
          fill = masks_lib.from_rle if is_rle else masks_lib.from_polygons
          item["mask"] = fill(shape, height, width)
        found.append(item)
    except (KeyError, TypeError, ValueError) as error:
      reason = f"KeyError {error}" if isinstance(error, KeyError) else error
      raise example_fields.error(
        example,
        f'annotation {len(found)} of "{self.key}" is {annotation!r:.60}, '
        'expected "bbox" [x, y, width, height] and "category_id"'
        f"{_SHAPED * self.masks}: {reason}",
      ) from None
    return _replace(example, found, self.crowds, height, width)


@dataclasses.dataclass(frozen=True)
class KeepObjects:
  """Keeps objects with one of the labels, if given, and no side too short."""

  labels: tuple[str, ...] | None = None
  min_side: float = 0.0

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    kept = [
      item
      for item in objects.read(example)
      if (self.labels is None or item["label"] in self.labels)
      and _shorter_side(item["box"]) >= self.min_side
    ]
    return {**example, "objects": kept}


@dataclasses.dataclass(frozen=True)
class Refer:
  """Keeps one object, and writes one of its sentences as "sentence".

  Both are random, unless text_ops.Choice replaced the list of objects by one of
  them before. For ref_coco:

      FromTfds(crowds=True), Choice("objects", replace=False), Refer(),
      Format("{sentence}"), Segment(...)
  """

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    found = example_fields.read(example, "objects")
    if isinstance(found, Mapping):
      example = {**example, "objects": [found]}
    found = [x for x in objects.read(example) if x.get("sentences")]
    if not found:
      raise example_fields.error(
        example, 'no object has sentences, expected them as "sentences" of one'
      )
    chosen = found[rng.integers(len(found))]
    sentences = chosen["sentences"]
    sentence = sentences[rng.integers(len(sentences))]
    return {**example, "objects": [chosen], "sentence": sentence}


@dataclasses.dataclass(frozen=True)
class Segment:
  """Writes the suffix of a single object: 4 locations and 16 codes, no label.

  It also writes "box" and "mask", which metrics.Segmentation reads.

  Source: refcoco_mask2str of big_vision; see location.encode_box, masks.crop.
  """

  encoder: Encoder

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    found = objects.read(example)
    if len(found) != 1 or "mask" not in found[0]:
      raise example_fields.error(
        example,
        f"found {len(found)} objects, expected one, with a mask: Refer leaves "
        "one, and InceptionCrop(min_covered=1) does not cut it off",
      )
    unnamed = {**found[0], "label": ""}
    suffix = _encode(example, unnamed, self.encoder, None)
    answer = {key: found[0][key] for key in ("box", "mask")}
    return {**example, "suffix": suffix, **answer}


@dataclasses.dataclass(frozen=True)
class DetectPrompt:
  """Writes the prefix "detect a ; b" from the labels of the objects.

  The order is random, so that it does not reveal which labels are present.

  Attributes:
    names: Labels that may be asked for although they are absent.
    negatives: Number of absent labels, at least one if there is no object.
  """

  names: tuple[str, ...] = ()
  negatives: int = 0
  verb: str = "detect"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    found = objects.read(example)
    present = {x["label"] for x in found if not x.get("noise")} - {""}
    absent = _permuted(sorted(set(self.names) - present), rng)
    labels = sorted(present) + absent[: max(self.negatives, not present)]
    if not labels:
      raise example_fields.error(
        example,
        "no object has a label; give names to DetectPrompt, to ask for what is "
        "not there",
      )
    labels = _permuted(labels, rng)
    prefix = f"{self.verb} {location.SEPARATOR.join(labels)}"
    return {**example, "prefix": prefix}


@dataclasses.dataclass(frozen=True)
class WriteObjects:
  """Writes the suffix "<loc....>x4 cat ; <loc....>x4 dog", "" for no object.

  A random order is an augmentation: the model learns that the objects written
  so far do not determine the next one. Objects of NoiseObjects come last, and
  their locations are not supervised: "unsupervised" holds their (start, stop)
  in characters of the suffix.

  Attributes:
    masks: Encodes masks, which all objects then need. Default None: no codes.
    limit: Most objects, the first ones in the order. Default None: all.
    steps: Equal intervals of a side, to whose ends boxes are rounded: for a
      model that knows only so coarse a ruler. Default None: as locations are.

  Source: Pix2seq (arXiv:2109.10852), section 2.1, where a random order is best.
  """

  order: str = "random"
  masks: Encoder | None = None
  limit: int | None = None
  steps: int | None = None

  def __post_init__(self):
    registry.lookup(ORDERS, self.order, "order of objects")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    found = objects.read(example)
    if self.masks is None and "<seg" in example.get("suffix", ""):
      raise example_fields.error(
        example,
        "the answer has codes of masks, which WriteObjects would leave out; "
        "give it masks=mask_codes.Encoder(...)",
      )
    if self.order == "random":
      found = _permuted(found, rng)
    elif self.order == "sorted":
      found.sort(key=lambda item: tuple(item["box"]))
    found.sort(key=lambda item: bool(item.get("noise")))
    suffix, unsupervised = "", []
    for i, item in enumerate(found[: self.limit]):
      suffix += location.SEPARATOR if i else ""
      start = len(suffix)
      suffix += _encode(example, item, self.masks, self.steps)
      if item.get("noise"):
        unsupervised.append((start, len(suffix) - len(item["label"]) - 1))
    written = {**example, "suffix": suffix}
    return written | ({"unsupervised": unsupervised} if unsupervised else {})


@dataclasses.dataclass(frozen=True)
class NoiseObjects:
  """Appends boxes labelled "noise" until there are `total` objects.

  A detector that learns to stop after the last annotated object stops too
  early. With noise every answer has `total` objects; the label says whether a
  box is an object, with a probability that can be compared. WriteObjects does
  not supervise locations of noise, so the model proposes real boxes there.
  Decode enough tokens for `total` objects and drop those labelled noise
  (metrics.Detection ignores labels that are never annotated).

  Boxes are copies of real ones, moved by up to a tenth of their sides; boxes of
  the size of real ones elsewhere; and random ones. Give WriteObjects the same
  limit, for images with more objects.

  Source: Pix2seq (arXiv:2109.10852), section 2.3, "sequence augmentation", and
  augment_bbox of its code, with the same kinds and amounts of noise. There, the
  input label of noise may differ from its target; here they are equal.
  """

  augments: ClassVar[bool] = True
  total: int
  label: str = "noise"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    found = objects.read(example)
    sides = np.array(image_ops.image_size(example), float)
    count = max(self.total - len(found), 0)
    copies = rng.integers(count + 1) if found else 0
    noise = []
    for i in range(count):
      corners = np.zeros((2, 2))
      if found:
        chosen = found[rng.integers(len(found))]
        corners = np.reshape(chosen["box"], (2, 2)).astype(float)
      if i < copies:
        moved = np.clip(rng.normal(0, 0.05, (2, 2)), -0.1, 0.1)
        corners += moved * (corners[1] - corners[0])
      else:
        half = (corners[1] - corners[0]) / 2
        if not found or rng.random() < 0.5:
          half = np.abs(rng.normal(0, 0.5, 2)).clip(max=1) * sides / 2
        centre = rng.uniform(0, sides)
        corners = np.stack([centre - half, centre + half])
      box = np.clip(corners, 0, sides).ravel().tolist()
      noise.append({"box": tuple(box), "label": self.label, "noise": True})
    return {**example, "objects": found + _permuted(noise, rng)}


def _permuted(items, rng):
  return [items[i] for i in rng.permutation(len(items))]


def _shorter_side(box):
  y0, x0, y1, x1 = box
  return min(y1 - y0, x1 - x0)


def _replace(example, found, crowds, height, width):
  """Returns the example with the objects that are kept, checked."""
  kept = [
    item
    for item in found
    if _shorter_side(item["box"]) > 0 and (crowds or not item.get("iscrowd"))
  ]
  made = {**example, "objects": kept, "height": height, "width": width}
  objects.read(made)
  return made


def _mask(mask, size, example):
  mask = np.asarray(mask)
  mask = (mask[..., 0] if mask.ndim == 3 else mask) != 0  # channels are alike
  if mask.shape != size:
    raise example_fields.error(
      example,
      f"mask has shape {mask.shape}, expected {size}, that of the image",
    )
  return mask


def _encode(example, item, encoder, steps):
  """Returns the text of one object; with an encoder, mask codes included."""
  codes = None
  try:
    if encoder is not None and not item.get("noise"):
      if "mask" not in item:
        raise ValueError(f'object "{item["label"]}" has no mask to encode')
      codes = encoder(item["mask"], item["box"])
    box, size = item["box"], image_ops.image_size(example)
    if steps is not None:
      box = location.snap(box, size, (steps, steps))
    return location.encode([location.Object(box, item["label"], codes)], size)
  except ValueError as error:
    raise example_fields.error(example, error) from None
