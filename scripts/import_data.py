"""Turns a data set of another format into PaliGemma JSONL.

    python -m scripts.import_data --from coco --task detect --val 0.05 \
      --images coco/train2017 coco/instances_train2017.json data/coco

Writes OUT/train.jsonl, and a file for every other split that the data set has
or that --val cuts off. Images stay where they are, named relative to OUT; those
that are no files, as in Parquet, go to OUT/images. Every line keeps its raw
fields (captions, question, objects in pixels), so that the ops of a config can
write other prompts. At the end stands what was found: read it before you train.
"""

import argparse
import dataclasses
import functools
import inspect
import os
import pathlib
import sys

import numpy as np

import paligemma
from paligemma import messages
from paligemma.models import mask_codec
from scripts.imports import (
  class_folders,
  coco,
  columns,
  conversations,
  createml,
  cvat,
  darknet,
  entries,
  files,
  hf,
  label_studio,
  labelme,
  mask_pictures,
  open_images,
  output,
  pixels,
  prompts,
  splits,
  summary,
  table,
  voc,
  vqav2,
  yolo,
)
from trainers import command_line

# name -> module with read(src, images, problems), which is also given those of
# task, names and boxes that it declares. Its docstring begins with what SRC is:
# "COCO: a JSON file of ...".
FORMATS = {
  "class_folders": class_folders,
  "coco": coco,
  "conversations": conversations,
  "createml": createml,
  "csv": table,
  "cvat": cvat,
  "darknet": darknet,
  "hf": hf,
  "label_studio": label_studio,
  "labelme": labelme,
  "masks": mask_pictures,
  "open_images": open_images,
  "voc": voc,
  "vqav2": vqav2,
  "yolo": yolo,
}
SHOWN = 5  # messages about what was skipped
# So many boxes that lie mostly outside, and more than this share, are misread.
_MISREAD, _MISREAD_SHARE = 5, 0.1
_MASKS = 8  # encoded at a time: a few sizes, a few compilations


@files.one_line()
def import_data(
  kind: str,
  src: str | os.PathLike,
  out: str | os.PathLike,
  *,
  task: str,
  images: str | os.PathLike | None = None,
  names: dict[str, str] | None = None,
  boxes: str | None = None,
  labels: str = "all",
  codec: str | os.PathLike | None = None,
  tokenizer: str | os.PathLike | None = None,
  val: float | None = None,
  copy: bool = False,
  skip_bad: bool = False,
) -> tuple[splits.Records, summary.Summary]:
  """Reads a data set and writes a JSONL file for each of its splits.

  Args:
    kind: key of FORMATS.
    src: the data set, as the format's `read` takes it.
    out: the folder to write to; no JSONL file may lie in it.
    task: one of prompts.TASKS.
    images: folder that image paths are relative to; None as the format has it.
    names: key of columns.NAMES -> column, where it has another name.
    boxes: key of entries.BOXES, what the four numbers of a box are; None as
      the format has it.
    labels: "all": every prompt asks for all labels of the data set, the same in
      each, in alphabetical order; "present": for those in its image, as where
      there are too many to list, and images with none are left out.
    codec: of masks, .npz, for "segment".
    tokenizer: that of the model, with which the summary counts tokens; None
      does not.
    val: share of the images that become "val"; None for none. The same image is
      always on the same side as long as the data set stays the same.
    copy: copy images to out/images.
    skip_bad: leave out images with a bad annotation, or that are bad
      themselves, instead of ending with the first.

  Returns:
    {split: objects of its lines}, and a summary.

  Raises:
    ValueError: whatever is wrong, in one line with its place.
  """
  out = pathlib.Path(out)
  if found := sorted(out.glob("*.jsonl")):
    raise ValueError(f"{found[0]}: exists; remove it or name another folder")
  if val is not None and not 0 < val < 1:
    raise ValueError(f"--val is {val}, expected a share between 0 and 1")
  read = _reader(kind, task, names, boxes)
  tok = tokenizer and paligemma.Tokenizer(tokenizer)
  problems = entries.Problems(skip_bad)
  found = read(src, images, problems)
  encode = _encoder(task, codec)
  with output.Output(out) as written:
    placed = [written.place(entry) for entry in found.entries]
    used = (thing.label for entry in placed for thing in entry.things or ())
    asked = prompts.asked(found.labels, used, problems, str(src))
    records, annotated = {}, {}
    for entry in placed:
      with problems:
        if _is_repeated(entry, annotated, problems):
          continue
        fields = prompts.record(
          entry,
          task,
          problems,
          labels=asked if labels == "all" else None,
          encode=encode,
        )
        if fields is None:
          what = "images without an object, left out by --labels present"
          problems.note(what, entry.where)
          continue
        image = _named(entry, written, copy)
        line = {"image": image} | fields | {"image": image}
        records.setdefault(entry.split, []).append(line)
    _check(records, len(placed), src, problems)
    if val is not None or len(records) > 1:
      source = splits.sources(records, written.images)
      for first, second, *_ in splits.shared(records, source):
        what = "images have copies in another split, which is then easier"
        problems.note(what, f"{first}, {second}")
      if val is not None:
        records = splits.cut_off(records, val, source)
    for split, lines in records.items():
      written.write(f"{split}.jsonl", lines)
    about = summary.make(records, asked, tok, problems.notes, problems.messages)
  return records, about


def _reader(kind, task, names, boxes):
  """The function that reads a format, with the options that it declares."""
  read = FORMATS[kind].read
  declared = _declared(kind)
  if names and "names" not in declared:
    raise ValueError(f"--columns: {kind} has no columns to name")
  if boxes and "boxes" not in declared:
    raise ValueError(f"--boxes: {kind} says itself what its boxes are")
  options = {"task": task, "names": names or {}, "boxes": boxes}
  taken = {name: options[name] for name in options if name in declared}
  return functools.partial(read, **taken)


def _declared(kind):
  """The names of the arguments that a format takes."""
  return inspect.signature(FORMATS[kind].read).parameters.keys()


def _taking(option):
  """The formats that take an option, "coco, csv and hf"."""
  *others, last = [kind for kind in FORMATS if option in _declared(kind)]
  return f"{', '.join(others)} and {last}" if others else last


def _is_repeated(entry, annotated, problems):
  """Whether the image of an entry has had the same annotations before.

  Captions and questions may be several. Of objects, those of one annotation
  would be missing from the other: a model would learn both that they are there
  and that they are not.

  Args:
    annotated: image -> its first entry, which is added.

  Raises:
    ValueError: it has had others, or those in another split.
  """
  if entry.things is None or isinstance(entry.image, tuple):
    return False
  try:
    file = entry.image.resolve()
  except (OSError, ValueError):  # said where it is read
    file = entry.image
  if file not in annotated:
    annotated[file] = entry
    return False
  first = annotated[file]
  if (first.split, _unplaced(first)) == (entry.split, _unplaced(entry)):
    problems.note("images listed twice, read as one", entry.where)
    return True
  image = messages.shown(str(entry.image))
  if first.split != entry.split:
    raise ValueError(
      f"{entry.where}: its image {image} is in {entry.split}, and in "
      f"{first.split} as well ({first.where}); take it out of one of them "
      "(--val cuts a part off train)"
    )
  raise ValueError(
    f"{entry.where}: its image {image} has other objects in {first.where}; "
    "keep one of the two, with all objects of the image"
  )


def _unplaced(entry):
  """The objects of an entry without the places that name them."""
  return [dataclasses.replace(thing, where="") for thing in entry.things]


def _named(entry, written, copy):
  """What a line calls the image or images of an entry."""
  if isinstance(entry.image, tuple):
    return [written.name(x, entry.split, copy=copy) for x in entry.image]
  return written.name(entry.image, entry.split, copy=copy)


def _check(records, images, src, problems):
  """Raises if there is nothing to learn, or boxes are not what was read.

  Args:
    images: how many there were.
  """
  lines = [line for lines in records.values() for line in lines]
  hints = [f"; the first: {message}" for message in problems.messages[:1]]
  hints += [
    f"; {count} {what}, the first: {first}"
    for what, (count, first) in problems.notes.items()
  ]
  if not lines and problems.messages:
    raise ValueError(
      f"{src}: nothing to write, {len(problems.messages)} images or "
      f"annotations are bad{''.join(hints[:1])}"
    )
  if not any(line["suffix"] for line in lines):
    raise ValueError(
      f"{src}: none of {images} images has an object, all answers would be "
      f"empty; are the labels where the format has them?{''.join(hints[:1])}"
    )
  count, first = problems.notes.get(pixels.MOSTLY_OUTSIDE, (0, ""))
  boxes = sum(len(line.get("objects", ())) for line in lines)
  if count >= _MISREAD and count > _MISREAD_SHARE * boxes:
    raise ValueError(
      f"{first}: this and {count - 1} more of {boxes} boxes lie for the most "
      "part outside of their images; are their numbers others than they are "
      "read as (--boxes), or of images of another size?"
    )


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


def _pairs(text):
  """Reads "caption=title,image=file"."""
  pairs = [pair.partition("=") for pair in text.split(",")]
  if not all(name and equals and column for name, equals, column in pairs):
    raise ValueError(f'--columns is "{text}", expected NAME=COLUMN,...')
  return {name.strip(): column.strip() for name, _, column in pairs}


def main() -> None:
  rows = [
    (f"  {kind}", module.__doc__.splitlines()[0].partition(": ")[2])
    for kind, module in FORMATS.items()
  ]
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog="\n".join(["formats, and what SRC is:", *messages.aligned(rows)]),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("src", help="the data set, see the formats below")
  parser.add_argument("out", help="the folder to write JSONL files to")
  parser.add_argument(
    "--from",
    dest="kind",
    metavar="FORMAT",
    required=True,
    choices=FORMATS,
    help="the format of the data set, one of those below",
  )
  parser.add_argument(
    "--task",
    required=True,
    choices=prompts.TASKS,
    help="what the prompts ask for",
  )
  parser.add_argument(
    "--images",
    help="folder that the paths of images start from, where it is not the one "
    "that the format has",
  )
  parser.add_argument(
    "--columns",
    metavar="NAME=COLUMN,...",
    help=f"for {_taking('names')}: the columns, or keys, that have another "
    f"name; NAME is one of {', '.join(columns.NAMES)}",
  )
  parser.add_argument(
    "--boxes",
    choices=entries.BOXES,
    help=f"for {_taking('boxes')}: what the four numbers of a box are",
  )
  parser.add_argument(
    "--labels",
    choices=prompts.LABELS,
    default="all",
    help="a prompt asks for all labels of the data set, or for those that are "
    "present in its image (default: %(default)s)",
  )
  parser.add_argument(
    "--mask_codec", help="for --task segment: the codec, such as vae-oid.npz"
  )
  parser.add_argument(
    "--tokenizer", help="that of the model, to count the tokens of the texts"
  )
  parser.add_argument(
    "--val", type=float, help="share of train to cut off as val, such as 0.05"
  )
  parser.add_argument(
    "--copy", action="store_true", help="copy the images to OUT/images"
  )
  parser.add_argument(
    "--skip_bad",
    action="store_true",
    help="leave out an image with something bad, and go on; without it the "
    "first one ends the import",
  )
  options = parser.parse_args()
  records, about = import_data(
    options.kind,
    options.src,
    options.out,
    task=options.task,
    images=options.images,
    names=options.columns and _pairs(options.columns),
    boxes=options.boxes,
    labels=options.labels,
    codec=options.mask_codec,
    tokenizer=options.tokenizer,
    val=options.val,
    copy=options.copy,
    skip_bad=options.skip_bad,
  )
  print(about)
  for message in about.left_out[:SHOWN]:
    print(f"left out: {messages.one_line(message)}", file=sys.stderr)
  if len(about.left_out) > SHOWN:
    print(f"left out: {len(about.left_out) - SHOWN} more", file=sys.stderr)
  for split in records:
    print(f"wrote {pathlib.Path(options.out, split)}.jsonl")


if __name__ == "__main__":
  command_line.run(main)
