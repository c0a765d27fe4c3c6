"""YOLO: a data.yaml, folders of images, and a text file of boxes for each."""

import dataclasses
import pathlib

import yaml

from scripts.imports import boxes, entries, files, paths, pictures

_ABSENT = (None, "", "null", "~")  # of YAML, whose scalars stay text
_EDGE = 0.01  # by which a share may lie outside of its image
# Text files beside labels that hold none, as do lists of a split's images.
_OTHERS = ("classes.txt", "notes.txt", "readme")


@dataclasses.dataclass(frozen=True)
class _Dataset:
  """What a data.yaml says.

  Attributes:
    where: The place to name in an error.
    root: Folder that its paths are relative to.
    splits: Name of ours -> (name there, folders or lists of images).
    labels: Number of a class -> label.
    pose: Whether key points follow the box.
  """

  where: str
  root: pathlib.Path
  splits: dict[str, tuple[str, list[str]]]
  labels: dict[int, str]
  pose: bool


def read(src, images, problems):
  """Reads a data set in the layout of Ultralytics.

  An image's labels lie at its own path, with the last folder "images" replaced
  by "labels", or beside it; none means that nothing is in it, but one image of
  a split must have them. A line is "class x y width height", of the box's
  centre, or "class x0 y0 x1 y1 ..." of a polygon, all as shares of the image's
  sides; with "kpt_shape" key points follow the box and are left out.

  A folder or list that is not there is looked for under its end (paths.find).

  Args:
    src: path of the YAML; or of the folder with data.yaml, or with one YAML, or
      with classes.txt (a name a line) and images of splits in images/train,
      train/images or train, or of no split in images or the folder itself.
    images: folder that the YAML's paths are relative to; None for its "path",
      and that relative to its own folder.
    problems: entries.Problems.

  Returns:
    entries.Annotations.

  Raises:
    ValueError: a file is malformed, or whatever `problems` does not skip.
  """
  src = pathlib.Path(src)
  path = _main_file(src) if src.is_dir() else src
  if path.suffix == ".txt":
    root = src if images is None else pathlib.Path(images)
    data = _without_yaml(path, root)
  else:
    data = _with_yaml(path, images, problems)
  found = tuple(data.labels.values())
  return entries.Annotations(_entries(data, problems), found)


def label_path(image: pathlib.Path) -> pathlib.Path:
  """Where the labels of an image lie, if not beside it."""
  parts = list(image.with_suffix(".txt").parts)
  for i in reversed(range(len(parts) - 1)):
    if parts[i] == "images":
      parts[i] = "labels"
      break
  return pathlib.Path(*parts)


def _main_file(folder):
  found = [folder / name for name in ("data.yaml", "data.yml")]
  found = [path for path in found if path.is_file()]
  found = found or [
    path
    for path in sorted(folder.glob("*.y*ml"))
    if not path.name.startswith(".")
  ]
  if len(found) > 1:
    names = ", ".join(path.name for path in found)
    raise ValueError(f"{folder}: name one of its files as SRC: {names}")
  for name in ("classes.txt", "labels/classes.txt"):
    found = found or [path for path in [folder / name] if path.is_file()]
  if not found:
    raise ValueError(f"{folder}: has no data.yaml and no classes.txt")
  return found[0]


def _with_yaml(src, images, problems):
  content = _yaml(src)
  names = files.get(content, "names", (list, dict), str(src))
  given = names if isinstance(names, dict) else dict(enumerate(names))
  # "0" of a file is 0, "a" stays what it is, to be shown.
  named = {_whole(key): name for key, name in given.items()}
  for key, name in named.items():
    if not isinstance(name, str):
      raise ValueError(
        f"{src}: expected a text as name of class {key}, found {name!r:.60}"
      )
  count = _whole(content.get("nc", len(named)))
  found = files.shown(", ".join(map(str, named)))
  if set(named) != set(range(len(named))) or count != len(named):
    raise ValueError(
      f"{src}: expected a name for each of {files.shown(str(count))} classes "
      f"from 0, found names of {found or 'none'}"
    )
  splits = {}
  for key, split in entries.SPLITS.items():
    places = content.get(key)
    places = places if isinstance(places, list) else [places]
    places = [place for place in places if place not in _ABSENT]
    if not places:
      continue
    if split in splits:
      raise ValueError(f'{src}: "{key}" and "{splits[split][0]}" are one split')
    splits[split] = key, [str(place) for place in places]
  if not splits:
    raise ValueError(f'{src}: has none of "train", "val" and "test"')
  root = src.parent
  if images is not None:
    root = pathlib.Path(images)
  elif content.get("path") not in _ABSENT:
    root = paths.find(str(content["path"]), root, f'{src}: "path"', problems)
    if not root.is_dir():
      what = '"path" that is not there, taken as the folder of the YAML'
      problems.note(what, f"{src}: {root}")
      root = src.parent
  pose = isinstance(content.get("kpt_shape"), list)
  return _Dataset(str(src), root, splits, named, pose)


def _without_yaml(path, root):
  names = [line for line in files.read_lines(path) if line.strip()]
  named = dict(enumerate(names))
  splits = {}
  for name, split in entries.SPLITS.items():
    for place in (f"images/{name}", f"{name}/images", name):
      if (root / place).is_dir() and split not in splits:
        splits[split] = name, [place]
  if not splits:
    place = "images" if (root / "images").is_dir() else "."
    splits["train"] = "train", [place]
  return _Dataset(str(path), root, splits, named, False)


def _entries(data, problems):
  taken = {}
  for split, (key, places) in data.splits.items():
    where = f'{data.where}: "{key}"'
    found = []
    for place in places:
      with problems:
        found += _images(data.root, place, where, problems)
    fresh = []
    for image in found:
      with problems:
        other = taken.setdefault(image.resolve(), key)
        if other != key:
          raise ValueError(
            f'{where}: {image} is of "{other}" as well; take one of them out, '
            "and --val cuts off a part"
          )
        fresh.append(image)
    images = list(dict.fromkeys(fresh))
    if len(images) < len(fresh):
      problems.note("images listed twice, read as one", where)
    with problems:
      labels = _label_files(images, data.root, where, problems)
      for image in images:
        with problems:
          yield _entry(image, labels.get(image), split, data, problems)


def _label_files(images, root, where, problems):
  """The label files of images that have one."""
  found = {}
  for image in images:
    for path in (label_path(image), image.with_suffix(".txt")):
      if path.is_file():
        found.setdefault(image, path)
  if images and not found:
    wanted = label_path(images[0])
    folders = {str(x.parent) for x in root.rglob("*.txt") if x.parent != root}
    raise ValueError(
      f"{where}: none of {len(images)} images has a label file, such as "
      f"{wanted} or one beside the image; other folders with text files: "
      f"{', '.join(sorted(folders)[:3]) or 'none'}; an image of nothing has an "
      "empty file"
    )
  for image in images:
    if image not in found:
      what = "images without a label file, taken as images of nothing"
      problems.note(what, str(image))
  return found


def _entry(image, path, split, data, problems):
  things = []
  if path is not None:
    for number, line in enumerate(files.read_lines(path), start=1):
      if words := line.split():
        things.append(_thing(words, data, f"{path}:{number}", problems))
  return entries.Entry(image, str(path or image), split, things=tuple(things))


def _images(root, place, where, problems):
  """The images of a folder, or those that a text file lists."""
  path = paths.find(place, root, where, problems)
  if path.is_dir():
    found = sorted(
      file
      for file in path.rglob("*")
      if file.suffix.lower() in pictures.SUFFIXES and not _hidden(file, path)
    )
    known = {label_path(image) for image in found}
    known |= {image.with_suffix(".txt") for image in found}
    labels = label_path(path / "any").parent
    for file in sorted(labels.rglob("*.txt")):
      with problems:
        other = file.stem in entries.SPLITS or _hidden(file, labels)
        other = other or file.name.lower().startswith(_OTHERS)
        if not other and file not in known:
          raise ValueError(f"{file}: missing image of these labels in {path}")
  elif path.is_file():
    found = []
    for number, line in enumerate(files.read_lines(path), start=1):
      if line.strip():
        found.append(_listed(line, path, number, root, problems))
  else:
    raise ValueError(
      f"{where}: no such folder or list of images: "
      f"{files.shown(str(path))}; take the line out "
      "if there are none"
    )
  if not found:
    raise ValueError(f"{where}: no JPEG, PNG or WebP image in {path}")
  return found


def _listed(line, path, number, root, problems):
  """An image of a list, relative to the root or to the list."""
  beside = path.parent / line.strip().replace("\\", "/")
  found = paths.find(line, root, f"{path}:{number}", problems)
  return beside if beside.exists() and not found.exists() else found


def _hidden(file, folder):
  """Whether a file or a folder above it is hidden, as "._a.jpg" of macOS."""
  return any(x.startswith(".") for x in file.relative_to(folder).parts)


def _yaml(path):
  try:
    # As text, as [no, yes] would be truth values.
    content = yaml.load(files.read_text(path), yaml.BaseLoader)
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


def _whole(text):
  return int(text) if str(text).strip().isdecimal() else text


def _thing(words, data, where, problems):
  polygon = not data.pose and len(words) >= 7 and len(words) % 2 == 1
  if data.pose:
    words = words[:5]
  elif len(words) == 6:
    raise ValueError(
      f"{where}: found 6 numbers, expected 5: class x y width height; is the "
      "last a confidence of a prediction, or an angle?"
    )
  if len(words) != 5 and not polygon:
    raise ValueError(
      f"{where}: found {len(words)} numbers, expected a class and 4 of a box, "
      "or x and y of 3 points or more; key points need kpt_shape in the YAML"
    )
  what = "class x0 y0 x1 y1 ..." if polygon else "class x y width height"
  number, *shares = files.numbers(words, len(words), what, where)
  if number not in data.labels:
    raise ValueError(
      f"{where}: unknown class {words[0]:.20}, expected one from 0 to "
      f"{len(data.labels) - 1}"
    )
  label = data.labels[number]
  for share in shares:
    if not -_EDGE <= share <= 1 + _EDGE:
      raise ValueError(
        f"{where}: expected shares of the image's sides, from 0 to 1, found "
        f"{share:g}"
      )
  if not polygon:
    return boxes.Reading("cxcywh", shares=True).thing(label, shares, where)
  if len(shares) == 8:
    problems.note(
      "polygons of 4 points or turned boxes, read as the box around", where
    )
  around = boxes.around([shares], where)
  return entries.Thing(label, around, where, mask=[shares], shares=True)
