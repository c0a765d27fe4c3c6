"""Runs README's way from own photos to boxes, and says what came of it.

    python -m tests.stress.own_photos 60 OUT

Writes so many photographs with a COCO export and one more to OUT, which must
not exist, and runs README's five commands there. Prints their time and the
AP50 of the photographs held out; the drawn boxes are in OUT/runs/new.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np

from scripts import make_digits
from tests.scripts import photographed

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = re.compile(
  r"^<!-- run by tests/stress/own_photos.py -->\n```bash\n(.*?)^```$",
  re.MULTILINE | re.DOTALL,
)
SEED = 61  # of the photograph that is in no export


def run(count: int, folder: pathlib.Path) -> float:
  """Makes a folder like a fresh clone, runs the commands in it, returns AP50.

  Raises:
    subprocess.CalledProcessError: a command failed.
  """
  for name in ("configs", "paligemma", "scripts", "trainers"):
    (folder / name).symlink_to(ROOT / name)
  photographed.export(folder / "export", count)
  scans, _ = make_digits.load_scans()
  picture, _ = photographed.photograph(scans, np.random.default_rng(SEED))
  photographed.save(picture, folder / "new.jpg", 6)
  (commands,) = COMMANDS.findall((ROOT / "README.md").read_text())
  python = pathlib.Path(sys.executable).parent
  said = ""
  for command in commands.splitlines():
    print(command, flush=True)
    done = subprocess.run(
      ["bash", "-c", command],
      cwd=folder,
      env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}"},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    print(done.stdout)
    said += done.stdout
  (found,) = re.findall(r"^AP50 +([\d.]+)", said, re.MULTILINE)
  return float(found)


def main() -> None:
  count, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
  folder.mkdir(parents=True)
  start = time.monotonic()
  score = run(count, folder)
  seconds = time.monotonic() - start
  print(f"AP50 {score:.3f} of {count} photographs in {seconds:.0f} s")


if __name__ == "__main__":
  main()
