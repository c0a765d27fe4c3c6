"""Class folders: pictures in a folder for each class, train/cat/1.jpg.

The layout of torchvision's ImageFolder, and of imagefolder in the library
datasets; cat/1.jpg is one as well.
"""

from paligemma.data import image_files
from scripts.imports import entries, folders

QUESTION = "what is in the picture?"


def read(request: entries.Request) -> entries.Annotations:
  """Reads images; the folder of each is its class.

  Folders above that of the class tell the splits. The class is the answer to
  QUESTION, or the caption, as it is spelled; each line also keeps it as
  "label", so that a config can ask otherwise. The task is "vqa" or "caption".
  """
  src = request.src
  if request.task not in ("vqa", "caption"):
    raise ValueError(
      f"{src}: a folder for each class has no boxes; expected --task vqa or "
      "caption"
    )
  if request.images is not None:
    raise ValueError(f"{src}: --images is of no use, images lie in the folder")
  found = folders.ending(src, *image_files.SUFFIXES)
  if stray := _stray([path.relative_to(src) for path in found]):
    raise ValueError(
      f"{src}: {stray} lies in no folder of a class; expected train/cat/1.jpg "
      "or cat/1.jpg"
    )
  return entries.Annotations(_entries(request, found))


def _stray(found):
  """The first image that is in no folder of a class.

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


def _entries(request, found):
  for path in found:
    with request.problems:
      label = path.parent.name
      annotated = {"captions": (label,)}
      if request.task == "vqa":
        annotated = {"question": QUESTION, "answers": (label,)}
      yield entries.Entry(
        path,
        str(path),
        entries.split_of(path.relative_to(request.src).parent.parent)
        or "train",
        fields={"label": label},
        **annotated,
      )
