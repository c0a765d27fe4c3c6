"""Class folders: pictures in a folder for each class, train/cat/1.jpg.

The layout of torchvision's ImageFolder, and of imagefolder in the library
datasets; cat/1.jpg is one as well.
"""

from paligemma.data import image_files
from scripts.imports import entries, folders

QUESTION = "what is in the picture?"


def read(request: entries.Request) -> entries.Entries:
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
  for path in found:
    label = path.parent.name
    annotated = {"captions": (label,)}
    if request.task == "vqa":
      annotated = {"question": QUESTION, "answers": (label,)}
    split = entries.split_of(path.relative_to(src).parent.parent)
    fields = {"label": label}
    yield entries.Entry((path,), str(path), split, fields=fields, **annotated)


def _stray(found):
  """The first image in no folder of a class; None if there is none.

  A folder such as train is a class where other folders beside it are.
  """
  names = {path.parts[0].lower() for path in found}
  deep = any(len(path.parts) > 2 for path in found)
  splits = entries.SPLITS if deep or names <= entries.SPLITS.keys() else ()
  for path in found:
    top, *below = path.parts
    if not below or (len(below) == 1 and top.lower() in splits):
      return path
  return None
