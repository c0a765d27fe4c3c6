"""Turns a data set of another format into PaliGemma JSONL.

    python -m scripts.import_data --from coco --task detect --val 0.05 \
      --images coco/train2017 coco/instances_train2017.json data/coco

Writes OUT/train.jsonl, and a file for every other split that the data set has
or that --val cuts off. Images stay where they are, named relative to OUT; those
that are no files, as in Parquet, go to OUT/images. Every line keeps its raw
fields (captions, question, objects in pixels), so that the ops of a config can
write other prompts. A summary ends the import: read it before you train.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import sys

import numpy as np

import paligemma
from paligemma import messages
from paligemma.data import mask_codes, masks
from scripts.imports import boxes as boxes_lib
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
  mask_images,
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

# name -> module with read(entries.Request). Its docstring begins with what SRC
# is: "COCO: a JSON file of ...".
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
  "masks": mask_images,
  "open_images": open_images,
  "voc": voc,
  "vqav2": vqav2,
  "yolo": yolo,
}
# option -> the formats that take it
TAKEN_BY = {
  "names": ("csv", "hf", "label_studio"),
  "boxes": ("coco", "csv", "hf"),
}
SHOWN = 5  # messages about what was skipped
# So many boxes that lie mostly outside, and more than this share, are misread.
_MISREAD, _MISREAD_SHARE = 5, 0.1


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

  Arguments are the options of the command line; `--help` explains them. No
  JSONL file may be in `out`. With labels "all" every prompt asks for the same,
  in alphabetical order; with "present" for those in its image, as where there
  are too many to list, and images with none are left out. With `val` an image
  is always on the same side as long as the data set stays the same.

  Returns:
    {split: objects of its lines}, and a summary.

  Raises:
    ValueError: Anything wrong with the data set, in one line with its place.
  """
  out = pathlib.Path(out)
  if found := sorted(out.glob("*.jsonl")):
    raise ValueError(f"{found[0]}: exists; remove it or name another folder")
  if val is not None and not 0 < val < 1:
    raise ValueError(f"--val is {val}, expected a share between 0 and 1")
  if names and kind not in TAKEN_BY["names"]:
    raise ValueError(f"--columns: {kind} has no columns to name")
  if boxes and kind not in TAKEN_BY["boxes"]:
    raise ValueError(f"--boxes: {kind} says itself what its boxes are")
  tok = tokenizer and paligemma.Tokenizer(tokenizer)
  problems = entries.Problems(skip_bad)
  images = pathlib.Path(images) if images is not None else None
  request = entries.Request(
    pathlib.Path(src), problems, images, task, names or {}, boxes
  )
  read = FORMATS[kind].read(request)
  first = list(itertools.islice(read, 1))  # raises what the format refuses
  encode = _encoder(task, codec)
  with output.Output(out) as written:
    found = [written.store(entry) for entry in (*first, *read)]
    found = list(boxes_lib.resolve(found, request))
    used = (obj.label for entry in found for obj in entry.objects or ())
    asked = prompts.asked(request.labels, used, problems, str(src))
    records, annotated = {}, {}
    for entry in found:
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
        named = [written.name(x, entry.split, copy=copy) for x in entry.images]
        image = {"image": named if len(named) > 1 else named[0]}
        records.setdefault(entry.split, []).append(image | fields | image)
    _check(records, len(found), src, problems)
    if val is not None or len(records) > 1:
      picture = splits.pictures(records, written.images)
      for copies in splits.shared(records, picture):
        what = "images have copies in another split, which is then easier"
        problems.note(what, ", ".join(copies[:2]))
      if val is not None:
        records = splits.cut_off(records, val, picture)
    for split, lines in records.items():
      written.write(f"{split}.jsonl", lines)
    about = summary.make(records, asked, tok, problems.notes, problems.messages)
  return records, about


def _is_repeated(entry, annotated, problems):
  """Whether the image was read before, with the same objects.

  Captions and questions may be several. Other objects, or another split, are an
  error: a model would learn that they are there and that they are not. Adds the
  first entry of an image to `annotated`.
  """
  if entry.objects is None or len(entry.images) > 1:
    return False
  (file,) = entry.images
  image = messages.shown(str(file))
  with contextlib.suppress(OSError, ValueError):  # raised where it is read
    file = file.resolve()
  if file not in annotated:
    annotated[file] = entry
    return False
  first = annotated[file]
  if first.split != entry.split:
    raise ValueError(
      f"{entry.where}: its image {image} is in {entry.split}, and in "
      f"{first.split} as well ({first.where}); take it out of one of them "
      "(--val cuts a part off train)"
    )
  one, other = (
    [dataclasses.replace(obj, where="") for obj in x.objects]
    for x in (first, entry)
  )
  if one != other:
    raise ValueError(
      f"{entry.where}: its image {image} has other objects in {first.where}; "
      "keep one of the two, with all objects of the image"
    )
  problems.note("images listed twice, read as one", entry.where)
  return True


def _check(records, images, src, problems):
  """Raises if there is nothing to learn, or boxes are not what was read."""
  lines = [line for lines in records.values() for line in lines]
  if not lines and problems.messages:
    raise ValueError(
      f"{src}: nothing to write, {len(problems.messages)} images or "
      f"annotations are bad; the first: {problems.messages[0]}"
    )
  if not any(line["suffix"] for line in lines):
    hints = [f"the first: {message}" for message in problems.messages]
    hints += [
      f"{count} {what}, the first: {first}"
      for what, (count, first) in problems.notes.items()
    ]
    raise ValueError(
      f"{src}: none of {images} images has an object, all answers would be "
      "empty; are the labels where the format has them?"
      + "".join(f"; {hint}" for hint in hints[:1])
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
  """The function from masks to codes; None for tasks without masks."""
  if task != "segment":
    return None
  if codec is None:
    raise ValueError(
      "--task segment: masks are written as codes of --mask_codec FILE, such "
      "as vae-oid.npz"
    )
  encode = mask_codes.Encoder(codec).codes
  encode(np.zeros((1, masks.SIDE, masks.SIDE)))  # what is no codec ends here
  return encode


def _pairs(text):
  """Reads "caption=title,image=file"."""
  pairs = [pair.partition("=") for pair in text.split(",")]
  if not all(name and equals and column for name, equals, column in pairs):
    raise ValueError(f'--columns is "{text}", expected NAME=COLUMN,...')
  return {name.strip(): column.strip() for name, _, column in pairs}


def _parser():
  def takers(option):
    *others, last = TAKEN_BY[option]
    return f"{', '.join(others)} and {last}"

  rows = [
    (f"  {kind}", module.__doc__.splitlines()[0].partition(": ")[2])
    for kind, module in FORMATS.items()
  ]
  parser = command_line.parser(
    __doc__.splitlines()[0],
    "\n".join(["formats, and what SRC is:", *messages.aligned(rows)]),
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
    dest="names",
    metavar="NAME=COLUMN,...",
    help=f"for {takers('names')}: the columns, or keys, that have another "
    f"name; NAME is one of {', '.join(columns.NAMES)}",
  )
  parser.add_argument(
    "--boxes",
    choices=entries.BOXES,
    help=f"for {takers('boxes')}: what the four numbers of a box are",
  )
  parser.add_argument(
    "--labels",
    choices=prompts.LABELS,
    default="all",
    help="a prompt asks for all labels of the data set, or for those that are "
    "present in its image (default: %(default)s)",
  )
  parser.add_argument(
    "--mask_codec",
    dest="codec",
    help="for --task segment: the codec, such as vae-oid.npz",
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
  return parser


def main() -> None:
  options = _parser().parse_args()
  options.names = options.names and _pairs(options.names)
  records, about = import_data(**vars(options))
  print(about)
  for message in about.left_out[:SHOWN]:
    print(f"left out: {messages.one_line(message)}", file=sys.stderr)
  if len(about.left_out) > SHOWN:
    print(f"left out: {len(about.left_out) - SHOWN} more", file=sys.stderr)
  for split in records:
    print(f"wrote {pathlib.Path(options.out, split)}.jsonl")


if __name__ == "__main__":
  command_line.run(main)
