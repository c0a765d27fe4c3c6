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

import paligemma
from paligemma import messages
from scripts import make_shapes
from trainers import command_line

ROOT = pathlib.Path(__file__).parents[2]
SCORE, LEAST = "zero_shot/accuracy", 0.9


def command(out: pathlib.Path, name: str, argument: str = "") -> list[str]:
  """What starts or resumes the run of that name."""
  data = out / "data"
  argument = f"train={data}/train.jsonl,val={data}/val.jsonl,{argument}"
  config = f"--config={ROOT}/configs/siglip/shapes.py:{argument}"
  workdir = f"--workdir={out}/{name}"
  return [sys.executable, "-m", "trainers.train", config, workdir]


def accuracy(out: pathlib.Path, name: str) -> tuple[float, float]:
  """Zero-shot accuracy of a run before its first and after its last step."""
  rows = map(json.loads, (out / name / "metrics.jsonl").open())
  found = [x[SCORE] for x in rows if SCORE in x]
  return found[0], found[-1]


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


def draw(path: pathlib.Path, to: pathlib.Path, *, keep: str) -> None:
  """Writes a checkpoint with new weights, but for the tower `keep`."""
  model, params = paligemma.load(path)
  inputs = model.init_inputs(make_shapes.RES)
  new = model.init(jax.random.key(1), *inputs)["params"]
  paligemma.save(to, model, {**new, keep: params[keep]})


def run(out: pathlib.Path) -> tuple[list[tuple], bool]:
  """Makes all runs; rows of the table, and whether killing changes nothing."""
  make_shapes.make_shapes(out / "data", num=6000)
  rows = [("trained", "before", "after", "seconds")]
  whole, start = out / "whole/final.npz", out / "start.npz"
  for trained, name, argument in (
    ("all weights", "whole", ""),
    ("text tower", "lit", f"tune=lit,epochs=5,init={start}"),
  ):
    began = time.monotonic()
    subprocess.run(command(out, name, argument), cwd=ROOT, check=True)
    seconds = time.monotonic() - began
    rows.append((trained, *accuracy(out, name), seconds))
    draw(whole, start, keep="img")
  kill_and_resume(out, "killed")
  killed = out / "killed/final.npz"
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
