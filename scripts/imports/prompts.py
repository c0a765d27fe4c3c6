"""Turns an annotated image into a line of PaliGemma JSONL."""

import functools
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from paligemma.data import image_files, location, spelling
from scripts.imports import entries, pixels

TASKS = ("detect", "segment", "caption", "vqa")
LABELS = ("all", "present")


def record(
  entry: entries.Entry,
  task: str,
  problems: entries.Problems,
  *,
  labels: Sequence[str] | None = None,
  encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any] | None:
  """The fields of a line, prompt and answer among them, but for "image".

  Boxes and polygons are in pixels, rounded to a hundredth, so that shares of
  six decimals, as YOLO writes them, give the same line as the pixels they were
  made of, in images of up to 6,000 pixels. A box that reaches over the edge is
  cut to the image. One thinner than a location is written as wide as one
  (location.encode_box). Both are noted.

  Args:
    entry: Its image is a file, whose head is read.
    task: One of TASKS.
    labels: What to ask for, "detect a ; b"; None for what is there.
    encode: float[N, 64, 64] masks -> int[N, 16] codes, for "segment".

  Returns:
    "prefix", "suffix", entry.fields as far as JSON can hold them, and the raw
    annotations: "captions"; "question" and "answers"; or "height", "width" and
    "objects", [{"box": (y0, x0, y1, x1), "label": ...}, ...], with "area" if it
    is not that of the box, and "iscrowd" for a crowd. With "segment" also
    "annotations", the objects and masks as COCO has them, for
    object_ops.FromCoco(masks=True). None if labels is None and there are none.

  Raises:
    ValueError: The image is missing or of another size than is stated, it has
      no annotation for the task, or one of its objects is bad.
  """
  fields = {
    key: value
    for key, value in entry.fields.items()
    if _is_json(key, value, entry.where, problems)
  }
  (height, width), *others = [_size(image, entry) for image in entry.images]
  if task in ("caption", "vqa"):
    return fields | _texts(entry, task, problems)
  if others:
    raise ValueError(
      f"{entry.where}: {1 + len(others)} images, but boxes lie in one; --task "
      f"{task} takes one image an example"
    )
  objects = _annotation(entry, "objects")
  written = _objects(objects, (height, width), task, problems, labels, encode)
  return written and fields | written | {"height": height, "width": width}


def asked(
  declared: Iterable[str] | None,
  used: Iterable[str],
  problems: entries.Problems,
  where: str,
) -> tuple[str, ...]:
  """The labels that every prompt asks for: each once, in alphabetical order.

  The order is none of the format's, so that every format gives the same prompt.
  What no answer can hold, and no object has, is left out and noted.

  Args:
    declared: Labels that the data set says it has; None if it does not.
    used: Labels of all its objects.
    where: The data set.
  """
  used = dict.fromkeys(used)
  annotated = {label_name(label) for label in used}
  names = set()
  for label in used if declared is None else declared:
    name = label_name(label)
    if name in names:
      problems.note("labels of one name, which are one", f'{where}: "{name}"')
    names.add(name)
  bad = {name for name in names | annotated if label_problem(name)}
  for name in sorted(bad - annotated):
    what = "labels that no answer can hold and no object has, not asked for"
    problems.note(what, f"{where}: {label_problem(name)}")
  return tuple(sorted((names | annotated) - bad))


def label_name(label: str) -> str:
  """Collapses spaces; labels that are then equal are one."""
  lines = [" ".join(line.split()) for line in label.strip().split("\n")]
  return "\n".join(lines)


def label_problem(name: str) -> str:
  """Why a label cannot stand in prompt and answer, "" if it can."""
  if not name:
    return "the label is empty"
  if "\n" in name:
    what = "a line break, which ends a prompt"
  elif not _is_utf8(name):
    what = "half of a surrogate pair, which UTF-8 cannot hold"
  elif control := [token for token in spelling.CONTROL if token in name]:
    what = f"{control[0]}, which is a control token"
  elif ";" in name or "<loc" in name or "<seg" in name:
    what = '";", a location or a code, where it would end'
  else:
    return ""
  return f"label {json.dumps(name[:60])} holds {what}"


def _is_json(key, value, where, problems):
  try:
    json.dumps({key: value}, allow_nan=False, ensure_ascii=False).encode()
  except (TypeError, ValueError, RecursionError):
    what = "further fields left out, which JSON in UTF-8 cannot hold"
    problems.note(what, f'{where}: "{key!s:.60}"')
    return False
  return True


def _is_utf8(text):
  """Whether a text can be encoded; half a surrogate pair cannot."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _size(image, entry):
  """The (height, width) of an upright image, which must be as annotated."""
  if "\0" in str(image) or not _is_utf8(str(image)):
    raise ValueError(
      f"{entry.where}: missing image, {str(image)[-60:]!r} can be the name of "
      "no file"
    )
  found, stated = image_files.size(image, where=entry.where), entry.size
  if stated is None or found == stated:
    return found
  reason = ""
  if found[::-1] == stated:
    reason = "; sides are swapped, as they are before its EXIF orientation"
  raise ValueError(
    f"{entry.where}: annotated as {stated[0]}x{stated[1]} pixels (height x "
    f"width), but {image} has {found[0]}x{found[1]}{reason}"
  )


def _annotation(entry, name):
  value = getattr(entry, name)
  if value is None:
    raise ValueError(f"{entry.where}: the image has no {name}")
  return value


def _texts(entry, task, problems):
  def read(text, reader=spelling.read_answer):
    return _read(text, reader, entry.where, problems)

  if task == "caption":
    captions = [read(text) for text in _annotation(entry, "captions")]
    return {
      "prefix": "caption en",
      "suffix": captions[0],
      "captions": captions,
    }
  question = read(
    _annotation(entry, "question"),
    functools.partial(spelling.read_prompt, num_images=len(entry.images)),
  )
  answers = [read(text) for text in _annotation(entry, "answers")]
  return {
    "prefix": f"answer en {question}",
    "suffix": statistics.mode(answers),
    "question": question,
    "answers": answers,
  }


def _read(text, reader, where, problems):
  """A text as training reads it with a function of `spelling`."""
  if not _is_utf8(text):
    raise ValueError(
      f"{where}: the text {text!r:.60} holds half of a surrogate pair, which "
      "UTF-8 cannot hold"
    )
  try:
    found, removed = reader(text)
  except ValueError as error:  # it may be meant so
    problems.note("texts that training refuses", f"{where}: {error}")
    return text
  for token in removed:
    problems.note(f"{token} taken off a text, which training adds", where)
  if not found.strip():
    raise ValueError(f"{where}: nothing is left of the text {text!r:.60}")
  return found


def _objects(annotated, size, task, problems, labels, encode):
  objects, raw, annotations, masks = [], [], [], []
  for obj in annotated:
    label = label_name(obj.label)
    if problem := label_problem(label):
      raise ValueError(f"{obj.where}: {problem}")
    given = pixels.box(obj, size)
    box = pixels.cut(given, size, obj.where, problems)
    fields = {"box": list(box), "label": label}
    if obj.area is not None and not pixels.is_area(obj.area, given):
      fields["area"] = obj.area
    if obj.crowd:
      raw.append({**fields, "iscrowd": 1})
      continue
    if task == "segment":
      shape, mask = pixels.mask(obj, size)
      masks.append(pixels.crop(mask, box, obj.where))
      y0, x0, y1, x1 = box
      corner_and_sides = x0, y0, x1 - x0, y1 - y0
      annotations.append(
        {
          "bbox": [pixels.rounded(c) for c in corner_and_sides],
          "category_id": label,
          "segmentation": shape,
        }
      )
    raw.append(fields)
    if location.widen(box, size) != box:
      what = "boxes thinner than a location, written as wide as one"
      problems.note(what, obj.where)
    objects.append(location.Object(box, label))
  if labels is None:
    labels = tuple(dict.fromkeys(obj.label for obj in objects))
    if not labels:
      return None
  if masks:
    objects = [
      location.Object(obj.box, obj.label, tuple(codes))
      for obj, codes in zip(objects, encode(np.stack(masks)), strict=True)
    ]
  written = {
    "prefix": f"{task} {location.SEPARATOR.join(labels)}",
    "suffix": location.encode(objects, size),
    "objects": raw,
  }
  if task == "segment":
    written["annotations"] = annotations
  return written
