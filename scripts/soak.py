"""Kills runs at random moments, resumes them, and compares bit for bit.

    python -m scripts.soak 60 1

Trains the tiny model on scans of digits in several modes, and predicts with it.
Each run is killed (kill -9) or told to end (SIGTERM, SIGINT) once, in every
second round over the modes twice: at any time, or while it writes a checkpoint,
evaluates or writes what is final. Then it is started once more, and must leave
what a run leaves that nothing disturbed: the same bytes of weights and
predictions, the same metrics (on other devices: the same to 1e-3, and metrics
of the same steps), as many checkpoints up to the same step, and nothing half-
written. Prints a line a run and a table, and ends with 1 if any run differs;
those stay in --work.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from paligemma import messages
from paligemma.checkpoints import npz
from scripts import make_digits
from trainers import command_line

ROOT = pathlib.Path(__file__).parents[1]
STEPS, BATCH = 12, 8
TRAIN, VAL = 67, 19  # examples; prime, so that no batch is ever full at an end
SPEED = {
  "examples_per_second",
  "tokens_per_second",
  "waited_for_data",
  "mfu",
  "peak_memory_gib",
}
SECONDS = 600  # after which a run hangs; generous, as machines are busy
# When a run is disturbed, and which files below its folder show that.
MOMENTS = {
  "any time": None,
  "checkpoint": "checkpoints/*tmp*",
  "evaluation": "val/.predictions.jsonl.*.tmp",
  "final": None,
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Mode:
  """How a run is made.

  Attributes:
    tune: what trains.
    flags: of trainers.train, on top of those of all modes.
    devices: virtual ones of a process, by number of the start; the last one
      counts for all later ones.
    processes: that are one program.
    predicts: whether scripts.predict is run in the place of a training.
  """

  tune: str = "attention"
  flags: tuple[str, ...] = ()
  devices: tuple[int, ...] = (1,)
  processes: int = 1
  predicts: bool = False

  @property
  def is_exact(self) -> bool:
    """On other devices sums are rounded otherwise."""
    return len(self.devices) == 1

  @property
  def log(self) -> str:
    """The file that gets a line at every step, and none after the last."""
    return "predictions.jsonl" if self.predicts else "metrics.jsonl"


# The first six have all that runs have; .ci/run takes these.
MODES = {
  "plain": Mode(),
  "ema": Mode(
    "full",
    (
      "--config.ema_decay=0.9",
      "--config.accumulate_steps=2",
      "--config.train.num_workers=2",
    ),
  ),
  "processes": Mode("decoder", processes=2),
  "lora": Mode("lora"),
  "devices": Mode("full", devices=(4,)),
  "predict": Mode(predicts=True),
  # Small steps of SGD, in which what is rounded otherwise stays small.
  "1 to 4 devices": Mode(
    "decoder", ("--config.learning_rate=0.01",), devices=(1, 4)
  ),
  "four processes": Mode("decoder", processes=4),
}


class Soak:
  """Runs of all modes in a folder, with the data they read."""

  def __init__(self, work, seed):
    self.work, self.seed = work, seed
    self.whole = {}  # mode -> folder of the run that nothing disturbed
    self.data = work / "digits"
    make_digits.make_digits(self.data)
    for split, count in (("train", TRAIN), ("test", VAL)):
      path = self.data / f"{split}.jsonl"
      lines = path.read_text().splitlines(keepends=True)
      path.write_text("".join(lines[:count]))

  def command(self, mode: Mode, folder: pathlib.Path) -> list[str]:
    """What starts a run that writes into a folder."""
    python = [sys.executable, "-m"]
    if mode.predicts:
      return [
        *python,
        "scripts.predict",
        "--ckpt=paligemma/assets/tiny.npz",
        "--tokenizer=paligemma/assets/tiny_tokenizer.model",
        f"--image={self.data}/test.jsonl",
        f"--out={folder}/predictions.jsonl",
        "--batch_size=2",
        "--max_decode_len=8",
      ]
    argument = (
      f"batch_size={BATCH},epochs={STEPS * BATCH / TRAIN},tune={mode.tune},"
      f"train={self.data}/train.jsonl,val={self.data}/test.jsonl"
    )
    return [
      *python,
      "trainers.train",
      f"--workdir={folder}",
      f"--config=configs/transfers/digits.py:{argument}",
      "--config.log_steps=1",
      "--config.checkpoint_percent=0.25",
      "--config.keep_checkpoints=2",
      "--config.evals.val.every_percent=0.5",
      "--config.evals.pplx.every_percent=0.5",
      *mode.flags,
    ]

  @contextlib.contextmanager
  def started(
    self, mode: Mode, folder: pathlib.Path, number: int
  ) -> Iterator[list[subprocess.Popen]]:
    """The processes of a start, which the end of the block ends."""
    devices = mode.devices[min(number, len(mode.devices) - 1)]
    environment = {
      **os.environ,
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
      # Compiles in half the time.
      "--xla_backend_optimization_level=0 "
      "--xla_llvm_disable_expensive_passes=true",
      "JAX_COMPILATION_CACHE_DIR": str(self.work / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if mode.processes > 1:
      environment |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{_free_port()}",
        "JAX_NUM_PROCESSES": str(mode.processes),
      }
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
      processes = []
      for index in range(mode.processes):
        log = stack.enter_context(open(f"{folder}.{index}.log", "a"))
        process = subprocess.Popen(
          self.command(mode, folder),
          cwd=ROOT,
          env={**environment, "JAX_PROCESS_ID": str(index)},
          stdout=log,
          stderr=subprocess.STDOUT,
        )
        processes.append(process)
        stack.callback(process.wait)
        stack.callback(process.kill)
      yield processes

  def finish(self, mode: Mode, folder: pathlib.Path, number: int) -> str:
    """Runs to the end; returns what went wrong, or nothing."""
    end = time.monotonic() + SECONDS
    with self.started(mode, folder, number) as processes:
      for process in processes:
        try:
          status = process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
          return f"no end after {SECONDS} s"
        if status:
          return f"exit {status}, see {folder}.*.log"
    return ""

  def undisturbed(self, name: str) -> pathlib.Path:
    """The folder of a run of this mode that nothing disturbed."""
    if name not in self.whole:
      folder = self.work / f"whole {name}"
      if problem := self.finish(MODES[name], folder, 0):
        raise ValueError(f"mode {name}, which nothing disturbed: {problem}")
      self.whole[name] = folder
    return self.whole[name]

  def run(self, number: int, name: str) -> "Row":
    """Disturbs a run; returns its row of the report."""
    rng = random.Random(f"{self.seed} {number}")
    whole, mode = self.undisturbed(name), MODES[name]
    folder = self.work / f"{number} {name}"
    moments = ["any time", "final"] if mode.predicts else list(MOMENTS)
    told, longest = [], 0.0
    while not told:  # it may end before its moment, if the machine is busy
      shutil.rmtree(folder, ignore_errors=True)
      moment = moments[number % len(moments)]
      for start in range(1 + number // len(MODES) % 2):
        number_of = rng.choice(SIGNALS)
        with self.started(mode, folder, start) as processes:
          victim = rng.choice(processes)
          if not _wait(victim, mode, folder, whole, moment, rng):
            break
          victim.send_signal(number_of)
          begin = time.monotonic()
          end = begin + SECONDS / 4
          for process in (victim, *processes):  # the others hear of it,
            with contextlib.suppress(subprocess.TimeoutExpired):  # or wait
              process.wait(max(end - time.monotonic(), 0))
            if process is victim:
              longest = max(longest, time.monotonic() - begin)
              end = min(end, time.monotonic() + SECONDS / 20)
        told.append(f"{signal.Signals(number_of).name} at {moment}")
        saved = folder / "checkpoints" / str(STEPS)
        moment = "final" if saved.exists() else rng.choice(moments)
    problem = self.finish(mode, folder, len(told))
    problems = [problem] if problem else differences(mode, folder, whole)
    if not problems:
      shutil.rmtree(folder)
      for log in self.work.glob(f"{number} {name}.*.log"):
        log.unlink()
    return Row(name, told, longest, problems)


@dataclasses.dataclass(frozen=True)
class Row:
  """What came of a run.

  Attributes:
    mode: its name.
    told: how it was disturbed each time.
    longest: seconds until all its processes had ended.
    problems: how it differs from one that nothing disturbed.
  """

  mode: str
  told: list[str]
  longest: float
  problems: list[str]


def differences(
  mode: Mode, folder: pathlib.Path, whole: pathlib.Path
) -> list[str]:
  """How a run differs from one that nothing disturbed, as sentences."""
  found = [
    f"{path.relative_to(folder)} is left over"
    for path in sorted(folder.rglob("*"))
    if "tmp" in path.name or path.name == "trainer.lock"
  ]
  if mode.predicts:
    return found + _same_bytes(folder, whole, "predictions.jsonl")
  final = "adapter.safetensors" if mode.tune == "lora" else "final.npz"
  if mode.is_exact:
    found += _same_bytes(folder, whole, final)
    found += _same_bytes(folder, whole, "val/predictions.jsonl")
  else:
    found += _close(folder / final, whole / final)
  found += _same_metrics(mode, folder, whole)
  # One that was told to end keeps the step at which it did.
  steps = [
    sorted(map(int, os.listdir(f / "checkpoints"))) for f in (folder, whole)
  ]
  if len(steps[0]) != len(steps[1]) or steps[0][-1] != steps[1][-1]:
    found.append(f"checkpoints of steps {steps[0]}, not {steps[1]}")
  return found


def _same_bytes(folder, whole, name):
  same = (folder / name).read_bytes() == (whole / name).read_bytes()
  return [] if same else [f"{name} differs"]


def _close(path, expected):
  found, expected = npz.load(path), npz.load(expected)
  worst = max(np.abs(found[n] - x).max() for n, x in expected.items())
  return [] if worst < 1e-3 else [f"{path.name} differs by {worst}"]


def _same_metrics(mode, folder, whole):
  found, expected = (
    list(map(json.loads, (f / "metrics.jsonl").read_text().splitlines()))
    for f in (folder, whole)
  )
  for line in (*found, *expected):
    for name in SPEED & line.keys():
      del line[name]
    if not mode.is_exact:
      line |= dict.fromkeys(line.keys() - {"step"})
  if found == expected:
    return []
  steps = [[line["step"] for line in lines] for lines in (found, expected)]
  what = "values" if steps[0] == steps[1] else f"steps {steps[0]}"
  return [f"metrics.jsonl has other {what}"]


def _wait(process, mode, folder, whole, moment, rng):
  """Waits for the moment to send a signal; whether the process still runs."""
  lines = _lines(whole / mode.log)
  wanted = rng.randint(1, lines) if moment == "any time" else lines
  pattern, before = MOMENTS[moment], set()
  left = rng.randint(1, 2)  # at a later file as well as at the first
  if pattern is None and _lines(folder / mode.log) >= wanted:
    time.sleep(rng.uniform(0, 3))  # it starts again, and was there before
    return process.poll() is None
  while process.poll() is None and left:
    if pattern is None:
      left = left if _lines(folder / mode.log) < wanted else 0
    else:
      now = set(folder.glob(pattern))
      left -= bool(now - before)
      before = now
    time.sleep(0.001)
  time.sleep(rng.uniform(0, 0.05))
  return process.poll() is None


def _lines(path):
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("runs", type=int)
  parser.add_argument("seed", type=int)
  parser.add_argument("--modes", default=",".join(MODES), help="default all")
  parser.add_argument("--work", type=pathlib.Path, help="a new folder")
  args = parser.parse_args()
  names = args.modes.split(",")
  if unknown := set(names) - MODES.keys():
    raise ValueError(f"unknown modes {unknown}, expected of {', '.join(MODES)}")
  work = args.work or pathlib.Path(tempfile.mkdtemp(prefix="soak"))
  soak, rows = Soak(work.resolve(), args.seed), []
  for number in range(args.runs):
    row = soak.run(number, names[number % len(names)])
    rows.append(row)
    said = "; ".join(row.problems) or "equal"
    print(f"{number:3d} {row.mode}: {', '.join(row.told)}: {said}", flush=True)
  print("\n".join(messages.aligned(table(rows))))
  if any(row.problems for row in rows):
    raise SystemExit(f"what differs is in {work}")
  shutil.rmtree(work)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
  """Per mode: runs, signals, and how many runs were equal."""
  made = [("mode", "runs", "killed", "told to end", "longest", "equal")]
  by_mode = collections.defaultdict(list)
  for row in rows:
    by_mode[row.mode].append(row)
    by_mode["all"].append(row)
  by_mode["all"] = by_mode.pop("all", [])
  for mode, group in by_mode.items():
    told = [what for row in group for what in row.told]
    kills = sum(what.startswith("SIGKILL") for what in told)
    ends = sum(what.startswith(("SIGTERM", "SIGINT")) for what in told)
    longest = max(row.longest for row in group)
    equal = sum(not row.problems for row in group)
    made.append(
      (mode, *map(str, (len(group), kills, ends, f"{longest:.1f} s", equal)))
    )
  return made


if __name__ == "__main__":
  command_line.run(main)
