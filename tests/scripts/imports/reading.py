"""Reads a data set as scripts.import_data does."""

import json
import pathlib

import numpy as np
from PIL import Image

from scripts.imports import boxes, entries


def read(function, src, images=None, *, skip=False, **options):
  """Returns the entries, the labels, and the problems."""
  problems = entries.Problems(skip)
  images = images and pathlib.Path(images)
  request = entries.Request(pathlib.Path(src), problems, images, **options)
  found = list(boxes.resolve(list(function(request)), request))
  return found, request.labels and tuple(request.labels), problems


def picture(path, size=(20, 30), **arguments):
  """Writes an empty picture of (height, width)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size[::-1]).save(path, **arguments)
  return path


def area(polygon):
  """Of [x0, y0, x1, y1, ...]."""
  x, y = np.reshape(polygon, (-1, 2)).T
  return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


def write_json(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))
  return path
