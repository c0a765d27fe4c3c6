"""YOLO: a data.yaml, folders of images, and a text file of boxes for each."""

import pathlib

import yaml

from scripts.imports import entries, files, pictures


def read(src, images, problems):
  """Reads a data set in the layout of Ultralytics.

  An image's labels lie at its own path, with the last folder "images" replaced
  by "labels"; none means that nothing is in it. A line is "class x y width
  height", of the box's centre, or "class x0 y0 x1 y1 ..." of a polygon, all as
  shares of the image's sides.

  Args:
    src: path of the YAML, or of the folder with it as data.yaml.
    images: folder that the YAML's paths are relative to; None for its "path",
      and that relative to its own folder.
    problems: entries.Problems.

  Returns:
    entries.Annotations.

  Raises:
    ValueError: a file is malformed, or whatever `problems` does not skip.
  """
  src = pathlib.Path(src)
  src = src / "data.yaml" if src.is_dir() else src
  content = _yaml(src)
  names = files.get(content, "names", (list, dict), str(src))
  labels = dict(names.items() if isinstance(names, dict) else enumerate(names))
  count = content.get("nc", len(labels))
  if set(labels) != set(range(len(labels))) or count != len(labels):
    raise ValueError(
      f"{src}: expected a name for each of {count} classes from 0, found names "
      f"of {', '.join(map(str, labels)) or 'none'}"
    )
  labels = {number: str(label) for number, label in labels.items()}
  root = pathlib.Path(images or src.parent / str(content.get("path") or "."))
  splits = {
    entries.split_name(key): content[key]
    for key in entries.SPLITS
    if content.get(key)
  }
  if not splits:
    raise ValueError(f'{src}: has none of "train", "val" and "test"')
  return entries.Annotations(
    _entries(src, root, splits, labels, problems), tuple(labels.values())
  )


def label_path(image: pathlib.Path) -> pathlib.Path:
  """Where the labels of an image lie."""
  parts = list(image.with_suffix(".txt").parts)
  for i in reversed(range(len(parts) - 1)):
    if parts[i] == "images":
      parts[i] = "labels"
      break
  return pathlib.Path(*parts)


def _entries(src, root, splits, labels, problems):
  for split, places in splits.items():
    for place in places if isinstance(places, list) else [places]:
      for image in _images(root, str(place), f'{src}: "{split}"', problems):
        with problems:
          yield _entry(image, split, labels, problems)


def _entry(image, split, labels, problems):
  path, things = label_path(image), []
  size = pictures.size(image, str(path))
  if path.exists():
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
      if line.strip():
        with problems:
          things.append(_thing(line.split(), size, labels, f"{path}:{number}"))
  return entries.Entry(image, str(path), split, things=tuple(things))


def _images(root, place, where, problems):
  """The images of a folder, or those that a text file lists."""
  path = root / place
  if not path.exists() and place.startswith("../"):
    path = root / place.removeprefix("../")  # as Roboflow writes its paths
  if path.is_dir():
    found = sorted(
      file
      for file in path.rglob("*")
      if file.suffix.lower() in pictures.SUFFIXES
    )
    known = {label_path(image) for image in found}
    for file in sorted(label_path(path / "any").parent.rglob("*.txt")):
      with problems:
        if file not in known and file.name != "classes.txt":
          raise ValueError(f"{file}: missing image of these labels in {path}")
  else:
    lines = files.read_text(path).splitlines() if path.is_file() else None
    if lines is None:
      raise ValueError(f"{where}: no such folder or list of images: {path}")
    found = [root / line.strip() for line in lines if line.strip()]
  if not found:
    raise ValueError(f"{where}: no JPEG, PNG or WebP image in {path}")
  return found


def _yaml(path):
  try:
    content = yaml.safe_load(files.read_text(path))
  except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or "not to be parsed"
    raise ValueError(f"{path}{line}: malformed YAML: {reason}") from None
  if not isinstance(content, dict):
    raise ValueError(
      f"{path}: expected names and folders, found {content!r:.60}"
    )
  return content


def _thing(words, size, labels, where):
  polygon = len(words) >= 7 and len(words) % 2
  if len(words) != 5 and not polygon:
    raise ValueError(
      f"{where}: found {len(words)} numbers, expected a class and 4 of a box, "
      "or x and y of 3 points or more"
    )
  what = "class x y width height" if not polygon else "class x0 y0 x1 y1 ..."
  number, *shares = files.numbers(words, len(words), what, where)
  if number not in labels:
    raise ValueError(
      f"{where}: unknown class {words[0]}, expected one from 0 to "
      f"{len(labels) - 1}"
    )
  height, width = size
  if polygon:
    xs = [x * width for x in shares[::2]]
    ys = [y * height for y in shares[1::2]]
    box = min(ys), min(xs), max(ys), max(xs)
    points = [c for point in zip(xs, ys, strict=True) for c in point]
  else:
    x, y, w, h = shares
    box = y - h / 2, x - w / 2, y + h / 2, x + w / 2
    box = tuple(c * s for c, s in zip(box, (height, width) * 2, strict=True))
    points = None
  return entries.Thing(labels[number], box, where, points and [points])
