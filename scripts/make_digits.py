"""Writes scikit-learn's scans of handwritten digits as PNG files and JSONL.

python -m scripts.make_digits OUT
"""

import argparse
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
  """Returns the 1797 scans as they are, with their labels.

  Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
  UCI (1998), the part that ships inside the scikit-learn wheel.

  Returns:
    images: uint8[1797,8,8], 0 (paper) to 16 (ink): the inked pixels of each
      4x4 block of a 32x32 bitmap.
    labels: int64[1797], 0 to 9.
  """
  scans = datasets.load_digits()
  return scans.images.astype(np.uint8), scans.target


def to_gray(scan: np.ndarray) -> np.ndarray:
  """Maps ink counts 0..16, uint8[...], to gray values 0..255, uint8[...]."""
  return np.round(scan * (255 / 16)).astype(np.uint8)


def digest(folder: pathlib.Path) -> str:
  """Returns the SHA-256 over names and bytes of the files, manifest apart."""
  files = (p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
  total = hashlib.sha256()
  for path in sorted(files):
    name = path.relative_to(folder).as_posix()
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    total.update(f"{name} {content}\n".encode())
  return total.hexdigest()


def _is_complete(folder):
  """Says whether `folder` holds exactly what its manifest states."""
  manifest = folder / MANIFEST
  if not manifest.is_file():
    return False
  return json.loads(manifest.read_text())["sha256"] == digest(folder)


def _write_split(folder, split, images, labels):
  """Writes folder/split.jsonl and the 8x8 gray pictures folder/split/*.png."""
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

  The folder appears at once or not at all: it is written beside `out` and then
  renamed. A complete folder is left as it is. Returns whether anything was
  written.

  Raises:
    ValueError: `out` holds something else than the complete set.
  """
  out = pathlib.Path(out)
  if _is_complete(out):
    return False
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(
      f"{out}: exists and is not a complete set of digits (expected a folder"
      f" that matches its {MANIFEST}): remove it or name another folder."
    )
  images, labels = load_scans()
  with disk.folder(out) as partial:
    _write_split(partial, "train", images[:-NUM_TEST], labels[:-NUM_TEST])
    _write_split(partial, "test", images[-NUM_TEST:], labels[-NUM_TEST:])
    manifest = {"num_images": len(images), "sha256": digest(partial)}
    (partial / MANIFEST).write_text(json.dumps(manifest) + "\n")
  return True


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("out", help="the folder to make")
  out = parser.parse_args().out
  done = "written" if make_digits(out) else "already complete"
  print(f"digits: {out} {done}, 1297 train and {NUM_TEST} test scans")


if __name__ == "__main__":
  command_line.run(main)
