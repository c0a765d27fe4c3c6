"""A data set of thirteen pictures, a tiny model on it, and runs of the trainer.

The subprocess runs use two virtual devices each, unless a test says otherwise.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma import tree
from paligemma.checkpoints import npz
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.models import paligemma as paligemma_model
from trainers import command_line, train
from trainers.plan import Plan

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
TINY_CONFIG = pathlib.Path(__file__).parent / "tiny_config.py"
# As in tests/conftest.py: without optimizations, in half the time.
FAST_COMPILE = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": "true",
}
# What may differ between configs that share a compiled step.
NOT_IN_THE_STEP = (
  "checkpoint_percent",
  "checkpoint_steps",
  "early_stop",
  "evals",
  "init",
  "keep_best",
  "keep_checkpoints",
  "keep_every",
  "log_steps",
  "tokenizer",
  "train",
)


def write_jsonl(path, rows):
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@dataclasses.dataclass(frozen=True)
class Tiny:
  """The files of the tiny data set, and configs that read them.

  Attributes:
    folder: pathlib.Path of train.jsonl (13 lines), val.jsonl (5) and pictures.
  """

  folder: pathlib.Path

  def argument(self, **arguments):
    """What stands behind the colon of --config tests/trainers/tiny_config.py.

    The initial weights are in a file, as drawing them takes 10 s to compile.
    """
    variant = arguments.get("variant", "paligemma_tiny")
    arguments = {
      "tokenizer": TOKENIZER,
      "train": self.folder / "train.jsonl",
      "val": self.folder / "val.jsonl",
      "init": self.folder / f"{variant}.npz",
      **arguments,
    }
    return ",".join(f"{name}={value}" for name, value in arguments.items())

  def config(self, values=None, **arguments):
    """The config, with `values` such as {"mesh.model": 2} set on top."""
    config = load_module(TINY_CONFIG).get_config(self.argument(**arguments))
    for name, value in (values or {}).items():
      *parents, last = name.split(".")
      holder = config
      for parent in parents:
        holder = holder[parent]
      holder[last] = value
    return config


def load_module(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  rng = np.random.default_rng(0)
  for split, count in (("train", 13), ("val", 5)):
    rows = []
    for i in range(count):
      pixels = rng.integers(0, 256, (14 + i, 31, 3), np.uint8)
      Image.fromarray(pixels).save(folder / f"{split}{i}.png")
      prefix = "what digit" + " is this" * (i % 3)
      suffix = f"{i} dots" if i % 2 else f"{i}"
      rows.append(
        {"image": f"{split}{i}.png", "prefix": prefix, "suffix": suffix}
      )
    write_jsonl(folder / f"{split}.jsonl", rows)
  made = Tiny(folder)
  for variant in ("paligemma_tiny", "paligemma2_tiny"):
    config = made.config(variant=variant)
    model = paligemma_model.make(**config.model.to_dict())
    npz.save(folder / f"{variant}.npz", random_params(model, config.res))
  return made


def random_params(model, res):
  """name -> float32 array, without compiling any initialisation."""
  image = np.zeros((1, res, res, 3), np.float32)
  text = np.zeros((1, 1), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(1)
  return {
    name: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
    for name, leaf in tree.flatten(shapes["params"]).items()
  }


@pytest.fixture(scope="session")
def tokenizer():
  return tokenizer_lib.Tokenizer(TOKENIZER)


class Processes:
  """Runs of `python -m trainers.train`, none of which outlives the tests."""

  def __init__(self, folder):
    self._folder = folder
    self._logs = {}  # process -> path of what it prints

  def start(self, *arguments, devices=2, environment=()):
    """Starts one with so many virtual CPU devices."""
    flags = {"xla_force_host_platform_device_count": devices, **FAST_COMPILE}
    log = self._folder / f"{len(self._logs)}.log"
    with log.open("w") as file:
      process = subprocess.Popen(
        [sys.executable, "-m", "trainers.train", *map(str, arguments)],
        cwd=ROOT,
        env={
          **os.environ,
          "XLA_FLAGS": " ".join(f"--{k}={v}" for k, v in flags.items()),
          # What one run has compiled, its resumption need not.
          "JAX_COMPILATION_CACHE_DIR": str(self._folder / "compiled"),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
          **dict(environment),
        },
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    self._logs[process] = log
    return process

  def output(self, process):
    """What it has printed so far."""
    return self._logs[process].read_text()

  def wait_until(self, process, condition, seconds=300):
    """Waits for a condition that must come true while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
      assert process.poll() is None, self.output(process)
      assert time.monotonic() < end, self.output(process)
      time.sleep(0.01)

  def finish(self, process, seconds=300):
    """Waits for the end; returns the exit status and what was printed."""
    try:
      process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      pytest.fail(f"no end after {seconds} s:\n{self.output(process)}")
    return process.returncode, self.output(process)

  def run(self, *arguments, **settings):
    """Starts one and waits for its end, which must be a good one."""
    status, output = self.finish(self.start(*arguments, **settings))
    assert status == 0, output
    return output

  def close(self):
    for process in self._logs:
      process.kill()
      process.wait()


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
  started = Processes(tmp_path_factory.mktemp("logs"))
  yield started
  started.close()


@dataclasses.dataclass(frozen=True)
class Run:
  """A training of 60 steps: shuffled 37 times, with a moving average.

  Attributes:
    command: arguments of trainers.train, but for --workdir.
    folder: pathlib.Path of the run that nothing interrupted.
  """

  command: tuple[str, ...]
  folder: pathlib.Path


@pytest.fixture(scope="session")
def uninterrupted(tiny, processes, tmp_path_factory):
  # Momentum, the embedding table (the one leaf that is split over devices)
  # among what trains, and evaluations at steps 0, 15, 30, 45 and 60.
  argument = tiny.argument(tune="decoder", epochs=37)
  command = (
    f"--config={TINY_CONFIG}:{argument}",
    "--config.optimizer_args={'momentum': 0.9}",
    "--config.clip_norm=1.5",
    "--config.ema_decay=0.9",
    "--config.checkpoint_percent=0.0834",  # every 5 steps
    "--config.keep_checkpoints=2",
    "--config.keep_best=pplx/ema/perplexity",
  )
  folder = tmp_path_factory.mktemp("uninterrupted")
  processes.run(*command, f"--workdir={folder}")
  return Run(command, folder)


@pytest.fixture
def main():
  """What trainers.train does in this process with a config and a folder.

  Returns the line a mistake ends in, or None.
  """

  def run(config, folder, dry_run=False, override=False, verbose=False):
    try:
      with command_line.mistakes_in_one_line():
        if dry_run:
          train.dry_run(config, verbose=verbose)
        else:
          train.train(config, folder, override=override)
    except SystemExit as end:
      return str(end)
    return None

  return run


@pytest.fixture(scope="session")
def compiled_steps():
  return {}


@pytest.fixture
def reuse_steps(monkeypatch, compiled_steps):
  """Compiles a step once for all tests whose configs differ in data alone."""
  compile_step = Plan.compile_step

  def reuse(plan, text_len=None):
    values = {
      name: value
      for name, value in plan.config.to_dict().items()
      if name not in NOT_IN_THE_STEP
    }
    key = f"{values} {plan.mesh} {plan.total_steps} {text_len}"
    if key not in compiled_steps:
      compiled_steps[key] = compile_step(plan, text_len)
    return compiled_steps[key]

  monkeypatch.setattr(Plan, "compile_step", reuse)


@pytest.fixture(scope="session")
def read_metrics():
  """The lines of metrics.jsonl in a folder."""

  def read(folder):
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]

  return read
