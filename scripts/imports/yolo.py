"""YOLO: data.yaml, or its folder, with a text file for each image."""

from paligemma import messages
from paligemma.data import image_files
from scripts.imports import entries, files, folders, yolo_labels

_ABSENT = (None, "", "null", "~")  # of YAML, whose scalars stay text
# Text files beside labels that hold none, as do lists of a split's images.
_OTHERS = ("classes.txt", "notes.txt", "readme")


def read(request: entries.Request) -> entries.Entries:
  """Reads a data set in the layout of Ultralytics.

  The data set is the YAML; or a folder with data.yaml, or with one YAML, or
  with classes.txt (a name a line) and images of splits in images/train,
  train/images or train, or of no split in images or the folder itself. Paths in
  the YAML are relative to `images`; without it to its "path", and that to its
  own folder. Labels are read by yolo_labels.read; with "kpt_shape" key points
  follow the box and are left out.
  """
  src, problems = request.src, request.problems
  path = _main_file(src) if src.is_dir() else src
  if path.suffix == ".txt":
    root, key_points = request.images or src, None
    names = [line for _, line in files.lines_and_places(path)]
    labels, splits = dict(enumerate(names)), _splits_of_folders(root)
  else:
    content = files.parse_yaml(files.read_text(path), path)
    if not isinstance(content, dict):
      raise ValueError(
        f"{path}: expected names and folders, found {content!r:.60}"
      )
    labels, splits = _labels(content, path), _splits(content, path)
    root = request.images or _root(content, path, problems)
    key_points = _key_points(content, path)
  request.labels = list(labels.values())
  for split, (key, places) in splits.items():
    where = f'{path}: "{key}"'
    images = []
    for place in places:
      with problems:
        images += _images(root, place, where, problems)
    with problems:
      yield from yolo_labels.read(
        images, root, split, labels, where, problems, key_points=key_points
      )


def _main_file(folder):
  found = [folder / name for name in ("data.yaml", "data.yml")]
  found = [path for path in found if path.is_file()]
  found = found or folders.matching(folder, "*.y*ml")
  if len(found) > 1:
    names = ", ".join(path.name for path in found)
    raise ValueError(f"{folder}: name one of its files as SRC: {names}")
  for name in ("classes.txt", "labels/classes.txt"):
    found = found or [path for path in [folder / name] if path.is_file()]
  if not found:
    raise ValueError(f"{folder}: has no data.yaml and no classes.txt")
  return found[0]


def _labels(content, src):
  """{number of a class: label}."""
  names = files.get(content, "names", (list, dict), str(src))
  given = names if isinstance(names, dict) else dict(enumerate(names))
  # "0" of a file is 0, "a" stays what it is, to be shown.
  labels = {_whole(key): name for key, name in given.items()}
  for key, name in labels.items():
    if not isinstance(name, str):
      raise ValueError(
        f"{src}: expected a text as name of class {key}, found {name!r:.60}"
      )
  count = _whole(content.get("nc", len(labels)))
  if set(labels) != set(range(len(labels))) or count != len(labels):
    found = messages.shown(", ".join(map(str, labels)))
    raise ValueError(
      f"{src}: expected a name for each of {messages.shown(str(count))} "
      f"classes from 0, found names of {found or 'none'}"
    )
  return labels


def _whole(text):
  return int(text) if str(text).strip().isdecimal() else text


def _splits(content, src):
  """{split: (its name in the YAML, folders or lists of images)}."""
  splits = {}
  for key, split in entries.SPLITS.items():
    places = content.get(key)
    places = places if isinstance(places, list) else [places]
    places = [str(place) for place in places if place not in _ABSENT]
    if places and split in splits:
      raise ValueError(f'{src}: "{key}" and "{splits[split][0]}" are one split')
    if places:
      splits[split] = key, places
  if not splits:
    raise ValueError(f'{src}: has none of "train", "val" and "test"')
  return splits


def _splits_of_folders(root):
  """As _splits, of a data set without a YAML."""
  splits = {}
  for name, split in entries.SPLITS.items():
    for place in (f"images/{name}", f"{name}/images", name):
      if (root / place).is_dir():
        splits.setdefault(split, (name, [place]))
  place = "images" if (root / "images").is_dir() else "."
  return splits or {"train": ("train", [place])}


def _root(content, src, problems):
  """The folder that paths in the YAML are relative to."""
  path = content.get("path")
  if path in _ABSENT:
    return src.parent
  root = folders.find(str(path), [src.parent], f'{src}: "path"', problems)
  if root.is_dir():
    return root
  what = '"path" that is not there, taken as the folder of the YAML'
  problems.note(what, f"{src}: {root}")
  return src.parent


def _images(root, place, where, problems):
  """The images in a folder, or those that a text file lists."""
  path = folders.find(place, [root], where, problems)
  if path.is_dir():
    found = [
      file
      for file in folders.matching(path, "**/*")
      if file.suffix.lower() in image_files.SUFFIXES
    ]
    known = {yolo_labels.path_of(image) for image in found}
    known |= {image.with_suffix(".txt") for image in found}
    labels = yolo_labels.path_of(path / "any").parent
    for file in folders.matching(labels, "**/*.txt"):
      with problems:
        other = file.stem in entries.SPLITS
        other = other or file.name.lower().startswith(_OTHERS)
        if not other and file not in known:
          raise ValueError(f"{file}: missing image of these labels in {path}")
  elif path.is_file():
    found = [
      _listed(line, path, root, line_at, problems)
      for line_at, line in files.lines_and_places(path)
    ]
  else:
    raise ValueError(
      f"{where}: no such folder or list of images: "
      f"{messages.shown(str(path))}; take the line out if there are none"
    )
  if not found:
    raise ValueError(f"{where}: no image in {path}")
  return found


def _listed(line, path, root, where, problems):
  """An image of a list, relative to the root or to the list."""
  beside = path.parent / line.strip().replace("\\", "/")
  found = folders.find(line, [root], where, problems)
  return beside if beside.exists() and not found.exists() else found


def _key_points(content, src):
  """Whether key points follow the box; None if that is not said."""
  if "kpt_shape" not in content:
    return None
  shape = content["kpt_shape"]
  if shape in _ABSENT or shape == []:
    return False
  if not isinstance(shape, list):
    raise ValueError(
      f'{src}: expected [points, 2 or 3] under "kpt_shape", found {shape!r:.60}'
    )
  return True
