"""Writes scikit-learn's scans of handwritten digits as PNG files and JSONL.

python -m scripts.make_digits OUT
"""

import hashlib
import json
import os
import pathlib

import numpy as np
from PIL import Image
from sklearn import datasets

from paligemma import disk
from trainers import command_line

PREFIX = "answer en what number is written here?"
# The scans are stored writer by writer, so the last 500 come largely from
# people whose hand is not in the first 1297.
NUM_TEST = 500
MANIFEST = "manifest.json"


def load_scans() -> tuple[np.ndarray, np.ndarray]:
  """Returns the 1797 scans as they are, and their labels, 0 to 9.

  A scan is uint8[8, 8], 0 (paper) to 16 (ink): the inked pixels of each 4x4
  block of a 32x32 bitmap.

  Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
  UCI (1998), the part that ships inside the scikit-learn wheel.
  """
  scans = datasets.load_digits()
  return scans.images.astype(np.uint8), scans.target


def to_gray(scan: np.ndarray) -> np.ndarray:
  """Maps ink counts 0..16 to gray values 0..255."""
  return np.round(scan * (255 / 16)).astype(np.uint8)


def digest(folder: pathlib.Path) -> str:
  """Returns the SHA-256 over names and bytes of the files, manifest apart."""
  total = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.name != MANIFEST:
      name = path.relative_to(folder).as_posix()
      content = hashlib.sha256(path.read_bytes()).hexdigest()
      total.update(f"{name} {content}\n".encode())
  return total.hexdigest()


def _write_split(folder, split, images, labels):
  (folder / split).mkdir()
  lines = []
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    name = f"{split}/{i:04d}.png"
    Image.fromarray(to_gray(image)).save(folder / name)
    example = {"image": name, "prefix": PREFIX, "suffix": str(label)}
    lines.append(json.dumps(example | {"label": int(label)}) + "\n")
  (folder / f"{split}.jsonl").write_text("".join(lines))


def make_digits(out: str | os.PathLike) -> bool:
  """Writes train.jsonl (1297 scans), test.jsonl (500) and their pictures.

  The folder appears at once or not at all. A complete folder is left as it is.
  Returns whether anything was written.

  Raises:
    OSError: `out` holds something else than the complete set.
  """
  out = pathlib.Path(out)
  manifest = out / MANIFEST
  stated = json.loads(manifest.read_text()) if manifest.is_file() else {}
  if stated.get("sha256") == digest(out):
    return False
  images, labels = load_scans()
  with disk.folder(out) as partial:
    _write_split(partial, "train", images[:-NUM_TEST], labels[:-NUM_TEST])
    _write_split(partial, "test", images[-NUM_TEST:], labels[-NUM_TEST:])
    manifest = {"num_images": len(images), "sha256": digest(partial)}
    (partial / MANIFEST).write_text(json.dumps(manifest) + "\n")
  return True


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the folder to make")
  out = parser.parse_args().out
  done = "written" if make_digits(out) else "already complete"
  print(f"digits: {out} {done}, 1297 train and {NUM_TEST} test scans")


if __name__ == "__main__":
  command_line.run(main)
