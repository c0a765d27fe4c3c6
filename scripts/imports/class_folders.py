"""A folder for each class, which holds its pictures.

The layout of torchvision's ImageFolder, and of imagefolder in the library
datasets: train/cat/1.jpg.
"""

import pathlib

from scripts.imports import entries, folders, pictures

QUESTION = "what is in the picture?"


def read(src, images, problems, *, task):
  """Reads the pictures of a folder; that which each lies in is its class.

  Folders above that of the class tell the splits. The class is the answer to
  QUESTION, or the caption, as it is spelled; each line also keeps it as
  "label", so that a config can ask otherwise.

  Args:
    src: the folder.
    images: must be None: the folder says where its images lie.
    problems: entries.Problems.
    task: "vqa" or "caption".

  Returns:
    entries.Annotations.

  Raises:
    ValueError: there is no picture in a folder of a class, or another task.
  """
  src = pathlib.Path(src)
  if task not in ("vqa", "caption"):
    raise ValueError(
      f"{src}: a folder for each class has no boxes; expected --task vqa or "
      "caption"
    )
  if images is not None:
    raise ValueError(f"{src}: --images is of no use, images lie in the folder")
  found = folders.ending(src, *pictures.SUFFIXES)
  if stray := _stray([path.relative_to(src) for path in found]):
    raise ValueError(
      f"{src}: {stray} lies in no folder of a class; expected train/cat/1.jpg "
      "or cat/1.jpg"
    )
  return entries.Annotations(_entries(src, found, task, problems))


def _stray(found):
  """The first picture that lies in no folder, or right in that of a split.

  A folder such as train beside boat is that of a class.
  """
  names = {path.parts[0].lower() for path in found}
  deep = any(len(path.parts) > 2 for path in found)
  splits = (
    entries.SPLITS.keys() if deep or names <= entries.SPLITS.keys() else ()
  )
  for path in found:
    if len(path.parts) == 1:
      return path
    if len(path.parts) == 2 and path.parts[0].lower() in splits:
      return path
  return None


def _entries(src, found, task, problems):
  for path in found:
    with problems:
      label = path.parent.name
      annotated = {"captions": (label,)}
      if task == "vqa":
        annotated = {"question": QUESTION, "answers": (label,)}
      yield entries.Entry(
        path,
        str(path),
        entries.split_of(path.relative_to(src).parent.parent) or "train",
        fields={"label": label},
        **annotated,
      )
