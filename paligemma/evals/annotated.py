"""Pictures with the predicted objects drawn in, one file per image."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import ExifTags, Image

from paligemma import disk
from paligemma.data import drawing, objects, pictures, sources
from paligemma.evals import predictions
from paligemma.evals.answer_objects import Answers
from paligemma.evals.evaluator import Evaluator, Progress

# Begins the description in a drawn picture; a hash of what is drawn follows.
_MARK = "drawn by paligemma "
_JPEG = {".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".hif", ".avif", ".webp"}


def check_folder(
  folder: epath.PathLike, images: Sequence[epath.PathLike]
) -> None:
  """Raises if drawn pictures would replace others, or be taken for photos.

  Args:
    images: paths of files and folders whose images are asked about.

  Raises:
    ValueError: the folder holds a picture that `write` has not drawn, or lies
      in one of the folders of images.
  """
  folder = disk.path(folder)
  above = [folder.absolute(), *folder.absolute().parents]
  for image in images:
    if disk.path(image).is_dir() and disk.path(image).absolute() in above:
      raise ValueError(
        f"{folder}: lies in {image}, so its pictures would be asked about next "
        "time; name a folder outside"
      )
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    if path.suffix in (".jpg", ".png") and not _description(path):
      raise _not_drawn(path)


def write(
  answers: Sequence[Answers],
  source: sources.Source,
  folder: epath.PathLike,
  *,
  progress: Progress | None = None,
) -> None:
  """Draws answers into their images.

  Files are called as the images, with the suffix .jpg for photographs and .png
  for others. Each holds a hash of what is drawn in its EXIF data; one that is
  there with the same is not drawn again.

  Args:
    source: of the images.
    progress: called with the numbers of files done and of all.

  Raises:
    ValueError: a file of that name is there which was not drawn here.
  """
  folder = disk.path(folder)
  progress = progress or (lambda done, total: None)
  progress(0, len(answers))
  draw = functools.partial(_write, source=source, folder=folder)
  with futures.ThreadPoolExecutor() as pool:
    for done, _ in enumerate(pool.map(draw, answers), start=1):
      progress(done, len(answers))


class Sample(NamedTuple):
  """A prediction to look at: index of its example, a picture, and a text."""

  index: int
  picture: Image.Image
  text: str


def samples(
  evaluator: Evaluator,
  records: Sequence[predictions.Record],
  *,
  count: int = 4,
  size: int = 512,
) -> list[Sample]:
  """Draws predictions into the images of their examples.

  Args:
    evaluator: that made them.
    records: all of its predictions; those drawn are spread evenly, the same
      ones each time. Examples that cannot be read are left out.
    count: of pictures.
    size: of their longer sides, in pixels.
  """
  drawn = []
  if evaluator.preprocess.res is None:  # there are no images
    return drawn
  indices = np.linspace(0, len(records) - 1, min(count, len(records)))
  for record in (records[round(i)] for i in indices.tolist()):
    if not predictions.is_bad(record):
      with contextlib.suppress(OSError, ValueError):
        drawn.append(_sample(evaluator, record, size))
  return drawn


def _sample(evaluator, record, size):
  picture = _first_picture(evaluator.source, record["index"], "image")
  picture = drawing.enlarge(picture, size)
  text = record["prediction"]
  found = objects.parse(
    text,
    (picture.height, picture.width),
    decode=getattr(getattr(evaluator, "metric", None), "decode", None),
    scores=record.get("confidences", ()),
  )
  keys = ("prefix", "prediction", evaluator.answer_key)
  lines = [f"{key}: {record[key]}" for key in keys if key in record]
  picture = drawing.draw(picture, found, "" if found else text)
  return Sample(record["index"], picture, "\n".join(lines))


def _first_picture(source, index, where):
  """Returns the image of an example, of several the first."""
  image = source[index]["image"]
  image = image[0] if isinstance(image, list) else image
  return Image.fromarray(pictures.pixels(image, where=where))


def _write(answers, *, source, folder):
  suffix = epath.Path(answers.image).suffix.lower()
  is_jpeg = suffix in _JPEG
  path = folder / f"{answers.name}{'.jpg' if is_jpeg else '.png'}"
  drawn = json.dumps([answers.image, answers.texts, answers.objects])
  description = _MARK + hashlib.sha256(drawn.encode()).hexdigest()
  if path.exists():
    before = _description(path)
    if not before:
      raise _not_drawn(path)
    if before == description:
      return
  picture = _first_picture(source, answers.index, answers.image)
  found = [objects.from_json(item) for item in answers.objects]
  text = "" if found else "; ".join(answers.texts)
  exif = Image.Exif()
  exif[ExifTags.Base.ImageDescription] = description
  with disk.file(path) as temporary, temporary.open("wb") as file:
    drawing.draw(picture, found, text).save(
      file, "JPEG" if is_jpeg else "PNG", quality=92, exif=exif
    )


def _not_drawn(path):
  return ValueError(
    f"{path}: is there, and was not drawn by this program; name another folder"
  )


def _description(path):
  """Returns the description in a drawn picture, "" of any other file."""
  try:
    with path.open("rb") as file, Image.open(file) as picture:
      found = picture.getexif().get(ExifTags.Base.ImageDescription, "")
  except (OSError, ValueError, Image.DecompressionBombError):
    return ""
  return found if str(found).startswith(_MARK) else ""
