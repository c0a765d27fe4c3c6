"""Pictures with the predicted objects drawn in, one file per image."""

import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent import futures

from etils import epath
from PIL import ExifTags, Image, UnidentifiedImageError

from paligemma import disk
from paligemma.data import drawing, objects, pictures, sources
from paligemma.evals.answer_objects import Answers
from paligemma.evals.evaluator import Progress

_JPEG = {".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".hif", ".avif", ".webp"}


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
  """
  folder = disk.path(folder)
  progress = progress or (lambda done, total: None)
  progress(0, len(answers))
  draw = functools.partial(_write, source=source, folder=folder)
  with futures.ThreadPoolExecutor() as pool:
    for done, _ in enumerate(pool.map(draw, answers), start=1):
      progress(done, len(answers))


def _write(answers, *, source, folder):
  suffix = epath.Path(answers.image).suffix.lower()
  is_jpeg = suffix in _JPEG
  path = folder / f"{answers.name}{'.jpg' if is_jpeg else '.png'}"
  drawn = json.dumps([answers.image, answers.texts, answers.objects])
  name = hashlib.sha256(drawn.encode()).hexdigest()
  if _name_of(path) == name:
    return
  image = source[answers.index]["image"]
  image = image[0] if isinstance(image, list) else image
  picture = Image.fromarray(pictures.pixels(image, where=answers.image))
  found = [objects.from_json(item) for item in answers.objects]
  text = "" if found else "; ".join(answers.texts)
  exif = Image.Exif()
  exif[ExifTags.Base.ImageDescription] = name
  with disk.file(path) as temporary, temporary.open("wb") as file:
    drawing.draw(picture, found, text).save(
      file, "JPEG" if is_jpeg else "PNG", quality=92, exif=exif
    )


def _name_of(path):
  """Returns the hash in a file, None if there is none."""
  try:
    with path.open("rb") as file, Image.open(file) as picture:
      return picture.getexif().get(ExifTags.Base.ImageDescription)
  except (OSError, UnidentifiedImageError):
    return None
