"""A fingerprint of the weights of a checkpoint, without reading all of them.

Two files with one fingerprint are the same base to train on. Settings that
change answers, such as soft caps, are compared where it matters (evals,
trainers/workdir.py): the comment of an npz, which holds them, does not count.
In folders the files of settings count, as all others.
"""

import hashlib
import re

from etils import epath

from paligemma import disk
from paligemma.checkpoints import npz

# Of a larger file so many blocks of so many bytes are read.
_BLOCKS = 256
_BLOCK_BYTES = 4096


def of(path: epath.PathLike) -> str:
  """The fingerprint of a checkpoint in any format.

  Args:
    path: File or folder, as in Checkpoint.path.

  Returns:
    "sha256:...". Of an npz: npz.fingerprint. Else over size, contents and path
    in the folder of each file, hidden ones aside (downloaders keep dates
    there). Of a file above 1 MiB that much is read, spread evenly: two models
    that differ in a few numbers may have one fingerprint, two trainings do not.

  Raises:
    ValueError: No such file or folder.
  """
  if re.search(r"\.npz(:|$)", str(path)):
    return npz.fingerprint(path)
  digest = hashlib.sha256()
  try:
    for name, file in sorted(_files(disk.path(path), "")):
      size = file.stat().length
      digest.update(repr((name, size, _sample(file, size))).encode())
  except OSError as e:
    raise ValueError(f"{path}: {e.strerror or e}") from None
  return f"sha256:{digest.hexdigest()}"


def _files(path, name):
  """Yields (relative path, file) of a file, or of all below a folder."""
  if not path.is_dir():
    yield name, path
    return
  for child in path.iterdir():
    if not child.name.startswith("."):
      yield from _files(child, f"{name}/{child.name}")


def _sample(file, size):
  digest = hashlib.sha256()
  with disk.path(file).open("rb") as opened:
    if size <= _BLOCKS * _BLOCK_BYTES:
      digest.update(opened.read())
    else:
      for i in range(_BLOCKS):
        opened.seek(i * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
        digest.update(opened.read(_BLOCK_BYTES))
  return digest.hexdigest()
