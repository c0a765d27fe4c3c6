"""Turns a data set of another format into PaliGemma JSONL.

    python -m scripts.import_data --from coco --task detect --val 0.05 \
      --images coco/train2017 coco/instances_train2017.json data/coco

Writes OUT/train.jsonl, and a file for every other split that the data set has
or that --val cuts off. Images stay where they are, named relative to OUT, but
those of Parquet files, which go to OUT/images. Every line keeps its raw fields
(captions, question, objects in pixels), so that the ops of a config can write
other prompts.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys

import numpy as np

import paligemma
from paligemma import atomic, messages
from paligemma.models import mask_codec
from scripts import command_line
from scripts.imports import (
  coco,
  columns,
  entries,
  hf,
  prompts,
  table,
  voc,
  yolo,
)

# name -> (function that reads it, whether it has columns)
FORMATS = {
  "coco": (coco.read, False),
  "csv": (table.read, True),
  "hf": (hf.read, True),
  "voc": (voc.read, False),
  "yolo": (yolo.read, False),
}
SHOWN = 5  # messages about what was skipped
_MASKS = 8  # encoded at a time: a few sizes, a few compilations


def import_data(
  kind: str,
  src: str | os.PathLike,
  out: str | os.PathLike,
  *,
  task: str,
  images: str | os.PathLike | None = None,
  names: dict[str, str] | None = None,
  labels: str = "all",
  codec: str | os.PathLike | None = None,
  val: float | None = None,
  copy: bool = False,
  skip_bad: bool = False,
) -> tuple[dict[str, list[dict]], list[str]]:
  """Reads a data set and writes a JSONL file for each of its splits.

  Args:
    kind: key of FORMATS.
    src: the data set, as the format's `read` takes it.
    out: the folder to write to; no JSONL file may lie in it.
    task: one of prompts.TASKS.
    images: folder that image paths are relative to; None as the format has it.
    names: key of columns.NAMES -> column, where it has another name.
    labels: "all": every prompt asks for all labels of the data set, the same in
      each; "present": for those in its image, as where there are too many to
      list, and images with none are left out.
    codec: of masks, .npz, for "segment".
    val: share of the images that become "val"; None for none. The same image is
      always on the same side as long as the data set stays the same.
    copy: copy images to out/images.
    skip_bad: leave bad annotations out instead of ending with the first.

  Returns:
    {split: objects of its lines}, and what was wrong with what was left out.

  Raises:
    ValueError: whatever is wrong, in one line with its place.
  """
  out = pathlib.Path(out)
  if found := sorted(out.glob("*.jsonl")):
    raise ValueError(f"{found[0]}: exists; remove it or name another folder")
  if val is not None and not 0 < val < 1:
    raise ValueError(f"--val is {val}, expected a share between 0 and 1")
  read, has_columns = FORMATS[kind]
  if has_columns:
    read = functools.partial(read, task=task, names=names or {})
  elif names:
    raise ValueError(f"--columns: {kind} has no columns to name")
  problems = entries.Problems(skip_bad)
  found = read(src, images, problems)
  encode = _encoder(task, codec)
  placed = [_with_file(entry, out) for entry in found.entries]
  asked = _labels(found, placed) if labels == "all" else None
  records, copies = {}, {}
  for entry in placed:
    with problems:
      fields = prompts.record(
        entry, task, problems, labels=asked, encode=encode
      )
      if fields is None:
        continue
      image = _copy(entry, out, copies) if copy else entry.image
      image = pathlib.PurePath(os.path.relpath(image, out)).as_posix()
      records.setdefault(entry.split, []).append({"image": image, **fields})
  if not records:
    raise ValueError(
      f"{src}: nothing to write, {len(problems.messages)} annotations are bad"
      + "".join(f"; the first: {m}" for m in problems.messages[:1])
    )
  if val is not None:
    records = cut_off(records, val)
  out.mkdir(parents=True, exist_ok=True)
  for split, lines in records.items():
    _write(out / f"{split}.jsonl", lines)
  return records, problems.messages


def cut_off(
  records: dict[str, list[dict]], share: float
) -> dict[str, list[dict]]:
  """Moves a share of the images of "train" to "val".

  Which ones depends on their file names alone.

  Raises:
    ValueError: there is no "train", or a "val" already, or one would be empty.
  """
  if "val" in records or "train" not in records:
    raise ValueError(
      f"--val: the data set has the splits {', '.join(records)} of its own, "
      'expected "train" without "val"'
    )
  images = dict.fromkeys(line["image"] for line in records["train"])
  count = round(share * len(images))
  if not 0 < count < len(images):
    raise ValueError(
      f"--val {share:g} of {len(images)} images is {count}, which leaves a "
      "split without any"
    )
  chosen = set(sorted(images, key=_shuffled)[:count])
  parts = {"train": [], "val": []}
  for line in records["train"]:
    parts["val" if line["image"] in chosen else "train"].append(line)
  return {**records, **parts}


def _shuffled(image):
  name = pathlib.PurePath(image).name
  return hashlib.sha256(name.encode()).digest()


def _with_file(entry, out):
  """The entry with an image that is a file."""
  if entry.data is None:
    return entry
  path = out / "images" / entry.split / entry.image.name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(entry.data)
  return dataclasses.replace(entry, image=path, data=None)


def _copy(entry, out, copies):
  """Copies an image to a place that no other one has; returns that."""
  path = out / "images" / entry.split / entry.image.name
  if (other := copies.setdefault(path, entry.image)) != entry.image:
    raise ValueError(
      f"{entry.where}: {entry.image} and {other} have the same name, and "
      "cannot be copied to one folder; leave out --copy"
    )
  if path != entry.image:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(entry.image, path)
  return path


def _labels(found, placed):
  """All labels of the data set, None if it has none."""
  if found.labels is not None:
    return [label.strip() for label in found.labels]
  things = [thing for entry in placed for thing in entry.things or ()]
  return sorted({thing.label.strip() for thing in things}) or None


def _encoder(task, codec):
  """Turns masks into codes, or None where there is nothing to turn."""
  if task != "segment":
    return None
  if codec is None:
    raise ValueError(
      "--task segment: masks are written as codes of --mask_codec FILE, such "
      "as vae-oid.npz"
    )
  params = paligemma.load_mask_codec(codec)

  def encode(masks):
    rows = -(-len(masks) // _MASKS) * _MASKS
    padded = np.zeros((rows, *masks.shape[1:]), np.float32)
    padded[: len(masks)] = masks
    return np.asarray(mask_codec.encode(params, padded))[: len(masks)]

  return encode


def _write(path, lines):
  """Writes one object a line; the file appears complete or not at all."""
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  # Half of a surrogate pair, which UTF-8 has not, stays escaped.
  atomic.write(path, text.encode(errors="backslashreplace"))


def _pairs(text):
  """Reads "caption=title,image=file"."""
  pairs = [pair.partition("=") for pair in text.split(",")]
  if not all(name and equals and column for name, equals, column in pairs):
    raise ValueError(f'--columns is "{text}", expected NAME=COLUMN,...')
  return {name.strip(): column.strip() for name, _, column in pairs}


def _described(path, lines):
  """How much there is in a file."""
  images = len({line["image"] for line in lines})
  text = f"{path}: {len(lines)} examples of {images} images"
  if "objects" in lines[0]:
    return f"{text}, {sum(len(line['objects']) for line in lines)} objects"
  return text


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("src", help="the data set: a folder, or its main file")
  parser.add_argument("out", help="the folder to write JSONL files to")
  parser.add_argument("--from", dest="kind", required=True, choices=FORMATS)
  parser.add_argument("--task", required=True, choices=prompts.TASKS)
  parser.add_argument("--images", help="folder that image paths start from")
  parser.add_argument(
    "--columns",
    metavar="NAME=COLUMN,...",
    help=f"of csv and hf; NAME is one of {', '.join(columns.NAMES)}",
  )
  parser.add_argument(
    "--labels",
    choices=prompts.LABELS,
    default="all",
    help="ask for all labels of the data set, or for those in the image",
  )
  parser.add_argument("--mask_codec", help="vae-oid.npz, for --task segment")
  parser.add_argument("--val", type=float, help="share of images, such as 0.05")
  parser.add_argument("--copy", action="store_true", help="copy the images")
  parser.add_argument(
    "--skip_bad", action="store_true", help="leave bad annotations out"
  )
  options = parser.parse_args()
  records, skipped = import_data(
    options.kind,
    options.src,
    options.out,
    task=options.task,
    images=options.images,
    names=options.columns and _pairs(options.columns),
    labels=options.labels,
    codec=options.mask_codec,
    val=options.val,
    copy=options.copy,
    skip_bad=options.skip_bad,
  )
  for split, lines in records.items():
    print(_described(pathlib.Path(options.out, f"{split}.jsonl"), lines))
  for message in skipped[:SHOWN]:
    print(f"left out: {messages.one_line(message)}", file=sys.stderr)
  if len(skipped) > SHOWN:
    print(f"left out: {len(skipped) - SHOWN} more", file=sys.stderr)


if __name__ == "__main__":
  command_line.run(main)
