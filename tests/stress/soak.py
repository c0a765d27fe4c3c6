"""Kills runs at random moments, resumes them, and compares bit for bit.

    python -m tests.stress.soak 60 1

Trains the tiny model on scans of digits in several modes, and predicts with it.
Each run is killed (kill -9) or told to end (SIGTERM, SIGINT) once, in every
second round over the modes twice: at any time, or while it writes a checkpoint,
evaluates or writes what is final. Then it is started once more, and must leave
what an undisturbed run leaves: the same bytes of weights and predictions, the
same metrics (on other devices: the same to 1e-3, and metrics of the same
steps), as many checkpoints up to the same step, and nothing half-written.
Prints a line a run and a table, and ends with 1 if any run differs; those stay
in --work.
"""

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
from typing import NamedTuple

import numpy as np

from paligemma import messages
from paligemma.checkpoints import npz
from scripts import make_digits
from trainers import command_line

ROOT = pathlib.Path(__file__).parents[2]
STEPS, BATCH = 12, 8
TRAIN, VAL = 67, 19  # examples; prime, so that no batch is ever full at an end
SPEED = {
  *("examples_per_second", "tokens_per_second", "waited_for_data"),
  *("mfu", "peak_memory_gib", "bundle"),
}
SECONDS = 600  # after which a run hangs; generous, as machines are busy
# When a run is disturbed -> the new files in its folder that show that.
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
  def is_exact(self):
    """On other devices sums are rounded otherwise."""
    return len(self.devices) == 1

  @property
  def log(self):
    """The file that gets a line at every step, and none after the last."""
    return "predictions.jsonl" if self.predicts else "metrics.jsonl"


EMA = ("ema_decay=0.9", "accumulate_steps=2", "train.num_workers=2")
# The first six have all that runs have; .ci/run takes these.
MODES = {
  "plain": Mode(),
  "ema": Mode("full", tuple(f"--config.{value}" for value in EMA)),
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


class Run(NamedTuple):
  """How a disturbed run ended."""

  mode: str
  disturbed: list[str]  # signal and moment of each time
  longest: float  # seconds until all its processes had ended
  problems: list[str]  # how it differs from an undisturbed run


class Soak:
  """Runs of all modes in a folder, with the data they read."""

  def __init__(self, work, seed):
    self.work, self.seed = work, seed
    self.undisturbed = {}  # mode -> folder of such a run
    self.data = work / "digits"
    make_digits.make_digits(self.data)
    for split, count in (("train", TRAIN), ("test", VAL)):
      path = self.data / f"{split}.jsonl"
      lines = path.read_text().splitlines(keepends=True)
      path.write_text("".join(lines[:count]))

  def command(self, mode, folder):
    """The arguments of Python for a run that writes into a folder."""
    if mode.predicts:
      return [
        *("-m", "scripts.predict", "--batch_size=2", "--max_decode_len=8"),
        "--ckpt=paligemma/assets/tiny.npz",
        "--tokenizer=paligemma/assets/tiny_tokenizer.model",
        f"--image={self.data}/test.jsonl",
        f"--out={folder}/predictions.jsonl",
      ]
    argument = (
      f"batch_size={BATCH},epochs={STEPS * BATCH / TRAIN},tune={mode.tune},"
      f"train={self.data}/train.jsonl,val={self.data}/test.jsonl"
    )
    return [
      *("-m", "trainers.train", f"--workdir={folder}"),
      f"--config=configs/transfers/digits.py:{argument}",
      "--config.log_steps=1",
      "--config.checkpoint_percent=0.25",
      "--config.keep_checkpoints=2",
      "--config.evals.val.every_percent=0.5",
      "--config.evals.pplx.every_percent=0.5",
      *mode.flags,
    ]

  @contextlib.contextmanager
  def started(self, mode, folder, number):
    """The processes of a start, which are killed at the end of the block."""
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
      with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
      environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
      environment["JAX_NUM_PROCESSES"] = str(mode.processes)
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
      processes = []
      for index in range(mode.processes):
        log = stack.enter_context(open(f"{folder}.{index}.log", "a"))
        process = subprocess.Popen(
          [sys.executable, *self.command(mode, folder)],
          cwd=ROOT,
          env={**environment, "JAX_PROCESS_ID": str(index)},
          stdout=log,
          stderr=subprocess.STDOUT,
        )
        processes.append(process)
        stack.callback(process.wait)
        stack.callback(process.kill)
      yield processes

  def finish(self, mode, folder, number):
    """Runs to the end; returns the problems."""
    end = time.monotonic() + SECONDS
    with self.started(mode, folder, number) as processes:
      for process in processes:
        try:
          status = process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
          return [f"no end after {SECONDS} s"]
        if status:
          return [f"exit {status}, see {folder}.*.log"]
    return []

  def run(self, number, name):
    """Disturbs a run, finishes it and compares it."""
    mode = MODES[name]
    if name not in self.undisturbed:
      folder = self.work / f"undisturbed {name}"
      if problems := self.finish(mode, folder, 0):
        raise ValueError(f"mode {name}, undisturbed: {problems[0]}")
      self.undisturbed[name] = folder
    expected, folder = self.undisturbed[name], self.work / f"{number} {name}"
    rng = random.Random(f"{self.seed} {number}")
    moments = ["any time", "final"] if mode.predicts else list(MOMENTS)
    disturbed, longest = [], 0.0
    while not disturbed:  # it may end before its moment, on a busy machine
      shutil.rmtree(folder, ignore_errors=True)
      moment = moments[number % len(moments)]
      for start in range(1 + number // len(MODES) % 2):
        number_of = rng.choice(SIGNALS)
        with self.started(mode, folder, start) as processes:
          victim = rng.choice(processes)
          if not _wait(victim, mode, folder, expected, moment, rng):
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
        disturbed.append(f"{signal.Signals(number_of).name} at {moment}")
        saved = folder / "checkpoints" / str(STEPS)
        moment = "final" if saved.exists() else rng.choice(moments)
    problems = self.finish(mode, folder, len(disturbed))
    problems = problems or differences(mode, folder, expected)
    if not problems:
      shutil.rmtree(folder)
      for log in self.work.glob(f"{number} {name}.*.log"):
        log.unlink()
    return Run(name, disturbed, longest, problems)


def differences(mode, folder, expected):
  """How a run differs from an undisturbed one, as sentences."""
  found = [
    f"{path.relative_to(folder)} is left over"
    for path in sorted(folder.rglob("*"))
    if "tmp" in path.name or path.name == "trainer.lock"
  ]
  final = "adapter.safetensors" if mode.tune == "lora" else "final.npz"
  same = (final, "val/predictions.jsonl")
  if mode.predicts:
    same = ("predictions.jsonl",)
  elif not mode.is_exact:
    same = ()
    before, after = npz.load(expected / final), npz.load(folder / final)
    worst = max(np.abs(after[n] - x).max() for n, x in before.items())
    if not worst < 1e-3:  # nor NaN
      found.append(f"{final} differs by {worst}")
  found += [
    f"{name} differs"
    for name in same
    if (folder / name).read_bytes() != (expected / name).read_bytes()
  ]
  if mode.predicts:
    return found
  lines, expected_lines = _metrics(mode, folder), _metrics(mode, expected)
  if lines != expected_lines:
    steps, others = ([x["step"] for x in y] for y in (lines, expected_lines))
    what = "values" if steps == others else f"steps {steps}"
    found.append(f"metrics.jsonl has other {what}")
  # One that was told to end keeps the step at which it did.
  steps, others = (
    sorted(map(int, os.listdir(f / "checkpoints"))) for f in (folder, expected)
  )
  if len(steps) != len(others) or steps[-1] != others[-1]:
    found.append(f"checkpoints of steps {steps}, not {others}")
  return found


def _metrics(mode, folder):
  """The lines of metrics.jsonl, without what may differ between two runs."""
  text = (folder / "metrics.jsonl").read_text()
  lines = []
  for line in map(json.loads, text.splitlines()):
    line = {name: x for name, x in line.items() if name not in SPEED}
    if not mode.is_exact:
      line |= dict.fromkeys(line.keys() - {"step"})
    lines.append(line)
  return lines


def _wait(process, mode, folder, expected, moment, rng):
  """Waits for the moment to send a signal; whether the process still runs."""
  lines = _lines(expected / mode.log)
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


def main():
  parser = command_line.parser(__doc__)
  parser.add_argument("runs", type=int)
  parser.add_argument("seed", type=int)
  parser.add_argument("--modes", default=",".join(MODES), help="default all")
  parser.add_argument("--work", type=pathlib.Path, help="a new folder")
  args = parser.parse_args()
  names = args.modes.split(",")
  if unknown := set(names) - MODES.keys():
    raise ValueError(f"unknown modes {unknown}, expected of {', '.join(MODES)}")
  work = args.work or pathlib.Path(tempfile.mkdtemp(prefix="soak"))
  soak, runs = Soak(work.resolve(), args.seed), []
  for number in range(args.runs):
    run = soak.run(number, names[number % len(names)])
    runs.append(run)
    result = "; ".join(run.problems) or "equal"
    print(f"{number:3d} {run.mode}: {', '.join(run.disturbed)}: {result}")
    sys.stdout.flush()
  print("\n".join(messages.aligned(table(runs))))
  if any(run.problems for run in runs):
    raise SystemExit(f"what differs is in {work}")
  shutil.rmtree(work)


def table(runs):
  """Per mode: runs, signals, and how many runs were equal."""
  by_mode = collections.defaultdict(list)
  for run in runs:
    by_mode[run.mode].append(run)
  rows = [("mode", "runs", "killed", "told to end", "longest", "equal")]
  for mode, group in (*by_mode.items(), ("all", runs)):
    signals = [what.split()[0] for run in group for what in run.disturbed]
    kills = signals.count("SIGKILL")
    numbers = (
      len(group),
      kills,
      len(signals) - kills,
      f"{max(run.longest for run in group):.1f} s",
      sum(not run.problems for run in group),
    )
    rows.append((mode, *map(str, numbers)))
  return rows


if __name__ == "__main__":
  command_line.run(main)
