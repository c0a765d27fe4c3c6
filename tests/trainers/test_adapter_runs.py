"""Runs that train adapters alone, beside weights in full or few bits."""

import json
import shutil

import numpy as np
import pytest
from etils import epath

import paligemma
from paligemma import quantization, tree
from paligemma.checkpoints import npz
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.lora import apply as lora
from scripts import convert
from trainers import evaluation, plan, start, train

METHODS = ("lora", "qlora_int8", "qlora_int4", "qlora_nf4")


def same(left, right):
  left, right = tree.flatten(left), tree.flatten(right)
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
  """The workdir of a run of two steps, by what it tunes."""
  made = {}

  def run(tune):
    if tune not in made:
      made[tune] = tmp_path_factory.mktemp(tune)
      train.train(config_of(tiny, tune), made[tune])
    return made[tune]

  return run


def config_of(tiny, tune, **values):
  values = {"evals": {}, "learning_rate": 0.1, "total_steps": 2, **values}
  config = tiny.config(tune=tune)
  del config.total_epochs
  with config.unlocked():
    config.update(values)
  return config


@pytest.mark.parametrize("tune", ["lora", "qlora_int4"])
def test_a_run_of_adapters_is_its_source_and_a_small_file(
  runs, tiny, tune, caplog
):
  folder = runs(tune)
  assert not (folder / "final.npz").exists()
  kind = "int4" if "int4" in tune else None
  base = paligemma.load(tiny.folder / "paligemma_tiny.npz", quantize=kind)
  with caplog.at_level("WARNING"):
    expected = paligemma.load_adapter(folder, *base)
  assert not caplog.text
  name = "llm/layers/attn/kv_einsum/w"
  other = tree.flatten(base[1])
  name = f"{name}/scale" if kind else name
  other[name] = 1.5 * other[name]
  with caplog.at_level("WARNING"):
    paligemma.load_adapter(folder, base[0], tree.unflatten(other))
  assert "was trained beside another base, " in caplog.text
  model, params = paligemma.load(folder)
  assert model.llm.lora == expected[0].llm.lora
  same(params, expected[1])
  trained = [x for n, x in tree.flatten(params).items() if n.endswith("/b")]
  assert trained
  assert all(np.asarray(x).any() for x in trained)


def test_the_best_adapters_are_kept(tiny, tmp_path):
  config = config_of(tiny, "lora", keep_best="pplx/perplexity", total_steps=3)
  config.keep_checkpoints, config.checkpoint_percent = None, None
  config.checkpoint_steps = 1
  config.evals = tiny.config(tune="lora").evals
  del config.evals.val
  config.evals.pplx.update(every_percent=None, every_steps=1)
  train.train(config, tmp_path)
  step = json.loads((tmp_path / "best.json").read_text())["step"]
  assert step > 0
  assert not (tmp_path / "best.npz").exists()
  base = paligemma.load(tiny.folder / "paligemma_tiny.npz")
  found = paligemma.load_adapter(tmp_path / "best.safetensors", *base)
  same(found[1], paligemma.load(tmp_path / f"checkpoints/{step}")[1])
  assert "best.safetensors" in evaluation.kept(tmp_path)
  # Of the folder, the adapter is still the last one.
  found = paligemma.load_adapter(tmp_path, *base)
  same(found[1], paligemma.load(tmp_path)[1])
  # By itself, a file is loaded with the base of the run.
  shutil.rmtree(tmp_path / f"checkpoints/{step}")
  same(paligemma.load(tmp_path / "best.safetensors")[1], found[1])


def test_what_a_file_of_adapters_does_not_hold_does_not_train(tiny):
  config = config_of(tiny, "lora")
  config.trainable = (*config.trainable, "llm/final_norm/scale")
  with pytest.raises(ValueError, match="lora, llm/final_norm/scale, which a"):
    plan.Plan(config)


@pytest.mark.parametrize("tune", METHODS)
def test_what_is_frozen_is_the_source_in_few_bits(tiny, tune):
  config = config_of(tiny, tune)
  made = plan.Plan(config)
  assert all(lora.is_adapter(made.trainable).values())
  frozen = start._initial_params(made, made.frozen)
  for name, x in npz.load(tiny.folder / "paligemma_tiny.npz").items():
    kind = None
    if config.frozen_dtype in quantization.KINDS:
      kind = quantization.kind_for(name, config.frozen_dtype)
    if kind is None:
      np.testing.assert_array_equal(frozen.pop(name), x)
      continue
    for part, array in quantization.quantize(name, x, kind).items():
      np.testing.assert_array_equal(frozen.pop(f"{name}/{part}"), array)
  assert not frozen


@pytest.mark.parametrize("tune", ["lora", "qlora_int8"])
def test_resumed_is_uninterrupted(runs, tiny, tune, tmp_path):
  config = config_of(tiny, tune, keep_checkpoints=2)
  del config.checkpoint_percent
  with config.unlocked():
    config.checkpoint_steps = 1
  train.train(config, tmp_path)
  final = tmp_path / "adapter.safetensors"
  whole = final.read_bytes()
  final.unlink()
  shutil.rmtree(tmp_path / "checkpoints/2")  # as if it had been killed before
  train.train(config, tmp_path)
  assert final.read_bytes() == whole
  saved = orbax.tensors(epath.Path(tmp_path) / "checkpoints/2/state")
  weights = [n for n in saved if n.startswith("trainable/")]
  assert weights
  assert all("lora_" in name for name in weights)


@pytest.mark.parametrize("tune", METHODS)
def test_random_weights_need_no_file(tiny, tune):
  config = config_of(tiny, tune, init="")
  made = plan.Plan(config)
  state = start._initial_params(made, {**made.trainable, **made.frozen})
  assert {n: (x.shape, x.dtype) for n, x in state.items()} == {
    n: (x.shape, x.dtype) for n, x in {**made.trainable, **made.frozen}.items()
  }
  zero = {name for name, x in state.items() if not np.asarray(x).any()}
  b = {name for name in made.trainable if name.endswith("/b")}
  norms = {n for n in state if n.endswith(("norm/scale", "/bias"))}
  assert b <= zero <= b | norms


def test_a_checkpoint_is_evaluated_as_the_run_held_it(runs, tiny):
  config = config_of(tiny, "qlora_int8")
  *_, params = evaluation.load(config, runs("qlora_int8"))
  loaded = paligemma.load(runs("qlora_int8"), quantize="int8")
  same(params, loaded[1])
  with pytest.raises(ValueError, match="holds no adapters, but config"):
    evaluation.load(config, tiny.folder / "paligemma_tiny.npz")


def test_adapters_of_a_run_go_on_in_another(runs, tiny):
  made = plan.Plan(config_of(tiny, "lora", init=str(runs("lora"))))
  found = start._initial_params(made, made.trainable)
  same(
    found,
    {n: x for n, x in flat_of(runs("lora")).items() if n in made.trainable},
  )


@pytest.mark.parametrize(
  ("tune", "model", "wanted"),
  [
    ("attention", {}, "no adapters"),
    ("lora", {"rank": 3}, "7 adapters of rank 3"),
    ("lora", {"targets": ("llm/attn/.",)}, "3 adapters of rank 8"),
  ],
)
def test_adapters_that_a_config_lacks_are_to_be_merged(
  runs, tiny, tune, model, wanted
):
  folder = runs("lora")
  config = config_of(tiny, tune, init=str(folder))
  if model:
    config.model.lora = model
  with pytest.raises(ValueError) as caught:
    start.check_weights(plan.Plan(config))
  ckpt = folder / "checkpoints" / "2"
  assert str(caught.value) == (
    f"{ckpt}: has 7 adapters of rank 8, the model of the config {wanted}; give "
    "config.model.lora what they were trained with, or merge them into the "
    f"weights: python -m scripts.convert {ckpt} merged.npz"
  )


def test_adapters_of_a_model_of_other_sizes_are_not_to_be_merged(runs, tiny):
  config = config_of(tiny, "lora", init=str(runs("lora")))
  config.model.llm.mlp_dim = 7
  with pytest.raises(ValueError, match="mlp/lora_gate/b") as caught:
    start.check_weights(plan.Plan(config))
  assert "merge" not in str(caught.value)


def test_adapters_of_another_scale_are_a_note(runs, tiny):
  config = config_of(tiny, "lora", init=str(runs("lora")))
  config.model.lora = {"alpha": 3.0}
  said = start.describe_source(config, plan.Plan(config).model)
  assert " in this run; config.model.lora changes it" in said


def flat_of(folder):
  return tree.flatten(paligemma.load(folder)[1])


def test_a_run_of_adapters_is_converted_merged(runs, tmp_path):
  convert.convert(runs("lora"), tmp_path / "merged.npz")
  model, params = paligemma.merge_lora(*paligemma.load(runs("lora")))
  found = paligemma.load(tmp_path / "merged.npz")
  assert found[0].llm == model.llm
  same(found[1], params)


def test_a_quantization_that_there_is_not(tiny):
  with pytest.raises(ValueError, match=r'unknown frozen_dtype "int3", .*"int'):
    plan.Plan(config_of(tiny, "lora", frozen_dtype="int3"))
