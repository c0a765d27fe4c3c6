"""A tiny model, a data set of pictures about it, and runs of the scripts."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma import tree
from paligemma.checkpoints import npz
from paligemma.models import paligemma as paligemma_model

ROOT = pathlib.Path(__file__).parents[2]
TINY_CONFIG = ROOT / "tests/trainers/tiny_config.py"
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
EXAMPLES = 23


@dataclasses.dataclass(frozen=True)
class Tiny:
  """The files of the tiny model, whose predictions differ between examples.

  Attributes:
    folder: pathlib.Path of val.jsonl, its pictures, and weights.npz.
    arguments: what scripts are given as --config, without "--config".
  """

  folder: pathlib.Path
  arguments: str
  tokenizer = TOKENIZER

  @property
  def weights(self):
    return self.folder / "weights.npz"

  @property
  def data(self):
    return self.folder / "val.jsonl"

  def config(self, **evaluator):
    """The config, with other values of evals.val."""
    spec = importlib.util.spec_from_file_location("tiny_config", TINY_CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(self.arguments.partition(":")[2])
    with config.unlocked():
      config.evals.val = {**config.evals.val.to_dict(), **evaluator}
    return config

  def run(self, script, *arguments, fails=False):
    """Runs `python -m script`; returns what it prints, or says if it fails."""
    done = subprocess.run(
      [sys.executable, "-m", script, *map(str, arguments)],
      cwd=ROOT,
      env=self.environment(),
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout

  def environment(self, devices=2):
    """Of a process that finds what an earlier one has compiled."""
    return {
      **os.environ,
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
      " --xla_backend_optimization_level=0"
      " --xla_llvm_disable_expensive_passes=true",
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  rng = np.random.default_rng(0)
  rows = []
  for i in range(EXAMPLES):
    pixels = rng.integers(0, 256, (14 + i, 31, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    rows.append(
      {
        "image": f"{i}.png",
        "prefix": "what digit" + " is this" * (i % 3),
        "suffix": f"{i} dots" if i % 2 else f"{i}",
        "number": i,
      }
    )
  path = folder / "val.jsonl"
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  arguments = f"{TINY_CONFIG}:val={path},train=none.jsonl,tokenizer={TOKENIZER}"
  made = Tiny(folder, arguments)
  npz.save(made.weights, random_params(made.config()))
  return made


def random_params(config):
  """name -> float32 array under which predictions differ."""
  model = paligemma_model.make(**config.model.to_dict())
  image = np.zeros((1, config.res, config.res, 3), np.float32)
  text = np.zeros((1, 1), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(1)
  params = {
    name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    for name, leaf in tree.flatten(shapes["params"]).items()
  }
  # The table is tied to the logits: a large one makes each token repeat itself.
  params["llm/embedder/input_embedding"] *= 0.2
  return params
