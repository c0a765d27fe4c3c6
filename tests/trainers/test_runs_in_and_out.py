"""A run of every `tune` is used as it was trained, whoever opens it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from configs import tuning
from paligemma import quantization, tree
from paligemma.checkpoints import formats
from paligemma.checkpoints.training import steps
from paligemma.lora import apply as lora
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from scripts import convert
from trainers import evaluation, start, state, train
from trainers.workdir import as_json

HALF = {"frozen_dtype": "bfloat16", "model.dtype": "bfloat16"}
# Name -> tune and values of the config. The last trains matrices beside others
# that are in few bits.
RUNS = {
  **{tune: (tune, {}) for tune in tuning.METHODS},
  "attention in bfloat16": ("attention", HALF),
  "lora in bfloat16": ("lora", HALF),
  "attention beside int8": ("attention", {"frozen_dtype": "int8"}),
}
RES = 28


@pytest.fixture(scope="module")
def run_of(tiny, tmp_path_factory):
  """Name -> config, folder of a run with one step, logits of its evaluation."""

  @functools.cache
  def make(name):
    tune, values = RUNS[name]
    config = tiny.config({"train.resize": "hf", **values}, tune=tune)
    folder = tmp_path_factory.mktemp("run")
    with steps.StepCheckpoints(folder / "checkpoints") as checkpoints:
      checkpoints.save(
        3,
        trained(config),
        (),
        metadata={
          "config": as_json(config),
          "init": start.frozen_source(config),
        },
      )
    _, model, params = evaluation.load(config, folder)
    return config, folder, logits(model, params)

  return make


def trained(config):
  """What a run of the config may have made of what it trains."""
  model = paligemma_model.make(**config.model.to_dict())
  abstract, _ = state.abstract_params(model, config, sharding.make_mesh())
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32)
    for name, x in abstract.items()
  }


def logits(model, params):
  rng = np.random.default_rng(2)
  image = rng.uniform(-1, 1, (1, RES, RES, 3)).astype(np.float32)
  return np.asarray(forward(model, params, image, rng.integers(3, 97, (1, 7))))


@functools.partial(jax.jit, static_argnums=0)  # equal models compile once
def forward(model, params, image, text):
  found, _ = model.apply({"params": params}, image, text, jnp.ones_like(text))
  return found.astype(jnp.float32)


@pytest.mark.parametrize("name", RUNS)
def test_loaded_it_is_what_is_evaluated(run_of, name):
  config, folder, expected = run_of(name)
  model, params = paligemma.load(folder)
  # A model that computes in bfloat16 gives logits of 3 digits.
  atol = 0.05 if config.model.dtype == "bfloat16" else 1e-5
  np.testing.assert_allclose(logits(model, params), expected, atol=atol)
  assert model.llm.dtype == model.img.dtype == config.model.dtype
  kinds = {
    part for n in tree.flatten(params) if (part := quantization.split(n))
  }
  kinds = {part for _, part in kinds} - {"scale"}
  few_bits = config.frozen_dtype in quantization.KINDS
  assert kinds <= ({config.frozen_dtype, "int8"} if few_bits else set())
  assert bool(kinds) == few_bits
  assert model.metadata == {"preprocessing": "hf"}


@pytest.mark.parametrize("format", ["npz", "huggingface", "orbax"])
@pytest.mark.parametrize("name", RUNS)
def test_converted_it_is_what_is_evaluated(run_of, name, format, tmp_path):
  config, folder, expected = run_of(name)
  path = tmp_path / ("a.npz" if format == "npz" else "a")
  convert.convert(folder, path, format=format)
  model, params = paligemma.load(path)
  assert lora.lora_of(model) is None
  if config.model.dtype == "bfloat16" and "lora" in name:
    # Matrices with the adapters in them are rounded to bfloat16 again.
    expected = logits(*paligemma.merge_lora(*paligemma.load(folder)))
  np.testing.assert_allclose(logits(model, params), expected, atol=1e-4)
  assert model.metadata["preprocessing"] == "hf"


def test_the_check_of_a_conversion(run_of, tmp_path):
  _, folder, _ = run_of("qlora_int4")
  convert.convert(folder, tmp_path / "a.npz")
  report, exact = convert.check(folder, tmp_path / "a.npz")
  assert exact, report


def test_the_last_file_of_a_run_is_the_run(tiny, tmp_path):
  config = tiny.config({"train.resize": "hf"}, tune="attention", epochs=0.7)
  with config.unlocked():
    config.evals = {}
  train.train(config, tmp_path)
  model, params = paligemma.load(tmp_path)
  found_model, found = paligemma.load(tmp_path / "final.npz")
  assert found_model == model
  assert found_model.metadata == model.metadata == {"preprocessing": "hf"}
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_another_preprocessing_is_noted(run_of, caplog):
  config, folder, _ = run_of("attention")
  with caplog.at_level("WARNING"):
    evaluation.load(config, folder)
  assert not caplog.text
  config = config.copy_and_resolve_references()
  config.train.resize = "bilinear"
  with caplog.at_level("WARNING"):
    evaluation.load(config, folder)
  assert 'prepared as "hf" by what made the files and as "bil' in caplog.text


def test_the_base_is_said(run_of):
  config, folder, _ = run_of("qlora_nf4")
  said = formats.open(folder).describe()
  assert f"training run on {config.init} in nf4" in said


def test_another_base_is_refused(run_of):
  _, folder, _ = run_of("qlora_int4")
  with pytest.raises(ValueError, match=r"is int4 in the files, expected int8"):
    paligemma.load(folder, quantize="int8")
  config, *_ = run_of("lora")
  with pytest.raises(ValueError, match=r"is int\d in the files, expected full"):
    evaluation.load(config, folder)
