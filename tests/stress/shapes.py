"""Trains SigLIP on drawn shapes from nothing, kills it once, and tunes LiT.

    python -m tests.stress.shapes OUT

OUT must not exist. Prints the zero-shot accuracy on the shapes held out, before
and after, and the seconds: of all weights from nothing; then of a new text
tower beside the image tower that was learned, which is locked. The first run is
made twice, the second time killed (kill -9) and resumed, and must leave the
same bytes. Ends with 1 if it does not, or if an accuracy is below 0.9.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np

import paligemma
from paligemma import messages
from scripts import make_shapes
from trainers import command_line

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
TEMPLATES = ("a {}", "a picture of a {}")
LEAST = 0.9
RES = make_shapes.RES


def command(out: pathlib.Path, name: str, argument: str = "") -> list[str]:
  """What starts or resumes the run of that name."""
  argument = f"train={out}/data/train.jsonl,{argument}"
  config = f"--config={ROOT}/configs/siglip/shapes.py:{argument}"
  workdir = f"--workdir={out}/{name}"
  return [sys.executable, "-m", "trainers.train", config, workdir]


def accuracy(out: pathlib.Path, path: pathlib.Path) -> float:
  """Zero-shot accuracy of a checkpoint on the shapes held out."""
  model, params = paligemma.load(path)
  tok = paligemma.SiglipTokenizer(TOKENIZER)
  rows = [json.loads(x) for x in (out / "data/val.jsonl").open()]
  names = sorted({row["label"] for row in rows})
  images = [out / "data" / row["image"] for row in rows]
  found = paligemma.classify(
    model, params, tok, images, names, templates=TEMPLATES
  )
  truths = [names.index(row["label"]) for row in rows]
  return float(np.mean(found.argmax(axis=1) == truths))


def kill_and_resume(out: pathlib.Path, name: str) -> None:
  """Makes a run that is killed once it has a checkpoint, and resumes it."""
  process = subprocess.Popen(command(out, name), cwd=ROOT)
  checkpoints = out / name / "checkpoints"
  while process.poll() is None and not list(checkpoints.glob("[0-9]*")):
    time.sleep(0.1)
  time.sleep(1)
  process.send_signal(signal.SIGKILL)
  if process.wait() == 0:
    raise RuntimeError("the run ended before it could be killed")
  subprocess.run(command(out, name), cwd=ROOT, check=True)


def draw(path: pathlib.Path, to: pathlib.Path, *, keep: str = "") -> None:
  """Writes a checkpoint with new weights, but for the tower `keep`."""
  model, params = paligemma.load(path)
  new = model.init(jax.random.key(1), *model.init_inputs(RES))["params"]
  kept = {keep: params[keep]} if keep else {}
  paligemma.save(to, model, {**new, **kept})


def run(out: pathlib.Path) -> tuple[list[tuple], bool]:
  """Makes all runs; rows of the table, and whether killing changes nothing."""
  make_shapes.make_shapes(out / "data", num=6000)
  names = "whole", "killed", "lit"
  whole, killed, lit = (out / name / "final.npz" for name in names)
  rows = [("trained", "before", "after", "seconds")]
  start = time.monotonic()
  subprocess.run(command(out, "whole"), cwd=ROOT, check=True)
  seconds = time.monotonic() - start
  draw(whole, out / "new.npz")
  scores = accuracy(out, out / "new.npz"), accuracy(out, whole)
  rows.append(("all weights", *scores, seconds))
  draw(whole, out / "start.npz", keep="img")
  start = time.monotonic()
  argument = f"tune=lit,epochs=5,init={out}/start.npz"
  subprocess.run(command(out, "lit", argument), cwd=ROOT, check=True)
  seconds = time.monotonic() - start
  scores = accuracy(out, out / "start.npz"), accuracy(out, lit)
  rows.append(("text tower", *scores, seconds))
  kill_and_resume(out, "killed")
  return rows, whole.read_bytes() == killed.read_bytes()


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", type=pathlib.Path, help="the folder to make")
  (head, *rows), is_same = run(parser.parse_args().out)
  shown = [
    (name, f"{before:.3f}", f"{after:.3f}", f"{seconds:.0f}")
    for name, before, after, seconds in rows
  ]
  print("\n".join(messages.aligned([head, *shown])))
  print(f"killed and resumed: {'the same bytes' if is_same else 'DIFFERENT'}")
  if not is_same or min(after for _, _, after, _ in rows) < LEAST:
    sys.exit(1)


if __name__ == "__main__":
  command_line.run(main)
