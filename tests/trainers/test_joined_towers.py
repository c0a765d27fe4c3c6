"""Runs that start from the towers of two files."""

import shutil

import numpy as np
import pytest

import paligemma
from paligemma.checkpoints import npz
from tests.same_trees import assert_same
from trainers import bundle, start, train, workdir


@pytest.fixture(scope="module")
def towers(tiny, tmp_path_factory):
  """A SigLIP of larger pictures, and a decoder; paths relative to none."""
  folder = tmp_path_factory.mktemp("joined")
  flat = npz.load(tiny.folder / "paligemma_tiny.npz")
  siglip = {n: x for n, x in flat.items() if n.startswith("img/")}
  siglip.pop("img/head/kernel"), siglip.pop("img/head/bias")
  siglip["img/pos_embedding"] = np.resize(
    siglip["img/pos_embedding"], (1, 9, 12)
  )
  siglip["img/MAPHead_0/probe"] = np.zeros((1, 1, 12), np.float32)
  siglip["img/MAPHead_0/LayerNorm_0/scale"] = np.ones(12, np.float32)
  siglip["txt/head/bias"] = np.zeros(12, np.float32)
  siglip["t"] = siglip["b"] = np.zeros(1, np.float32)
  npz.save(folder / "siglip.npz", siglip)
  decoder = {n: x for n, x in flat.items() if n.startswith("llm/")}
  npz.save(folder / "gemma.npz", decoder)
  return {"img": f"{folder}/siglip.npz", "llm": f"{folder}/gemma.npz"}


def config_of(tiny, towers, tune="head", **values):
  config = tiny.config({"evals": {}, "init": towers, **values}, tune=tune)
  del config.total_epochs
  config.total_steps = 2
  return config


@pytest.fixture(scope="module")
def run(tiny, towers, tmp_path_factory):
  """The workdir of a run of two steps that trained the projector alone."""
  folder = tmp_path_factory.mktemp("run")
  train.train(config_of(tiny, towers), folder)
  return folder


def test_towers_are_those_of_the_files_and_the_projector_is_new(run, towers):
  flat = npz.load(run / "final.npz")
  siglip, gemma = npz.load(towers["img"]), npz.load(towers["llm"])
  for name, array in flat.items():
    if name == "img/pos_embedding":  # of 9 positions, the corners
      expected = siglip[name][:, [0, 2, 6, 8]]
    elif name.startswith("img/head/"):
      assert array.any()  # trained
      continue
    else:
      expected = (siglip | gemma)[name]
    np.testing.assert_array_equal(array, expected, err_msg=name)


def test_what_is_new_and_what_is_left_out_is_said(tiny, towers, main, tmp_path):
  said = start.describe_source(
    config_of(tiny, towers), paligemma.load(towers)[0]
  )
  assert said == (
    f"initial weights: {towers['img']} and {towers['llm']}: big_vision npz and "
    "big_vision npz, 32 parameters; left out: img/MAPHead_0/... (2), "
    "txt/head/bias, t, b; in no file: img/head/kernel, img/head/bias"
  )


def test_files_and_hashes_are_those_of_both(run, towers):
  (first,) = workdir.read(run / bundle.NAME)["starts"]
  for tower, path in towers.items():
    assert first["files"][f"init/{tower}"] == workdir.of_file(path)


def test_resumed_is_uninterrupted(tiny, towers, run, tmp_path, main):
  config = config_of(tiny, towers, checkpoint_steps=1, keep_checkpoints=None)
  del config.checkpoint_percent
  train.train(config, tmp_path / "run")
  shutil.rmtree(tmp_path / "run/checkpoints/2")
  train.train(config, tmp_path / "run")
  assert_same(npz.load(tmp_path / "run/final.npz"), npz.load(run / "final.npz"))
  # The same files elsewhere are no other weights; other weights are.
  shutil.rmtree(tmp_path / "run/checkpoints/2")
  moved = {tower: shutil.copy(x, tmp_path) for tower, x in towers.items()}
  config.init = moved
  assert main(config, tmp_path / "run") is None
  shutil.rmtree(tmp_path / "run/checkpoints/2")
  decoder = npz.load(moved["llm"])
  decoder["llm/final_norm/scale"] = decoder["llm/final_norm/scale"] + 1
  npz.save(moved["llm"], decoder)
  said = main(config, tmp_path / "run")
  assert said.startswith("error: checkpoint of step 1 was trained on top of {")
  config.init = {"img": moved["llm"], "llm": moved["llm"]}
  said = main(config, tmp_path / "run")
  assert "belongs to another config (init/img: found " in said


def test_a_run_is_loaded_with_its_frozen_towers(run, towers, tmp_path):
  shutil.copytree(run / "checkpoints", tmp_path / "run/checkpoints")
  _, params = paligemma.load(tmp_path / "run")
  assert_same(params, paligemma.load(run / "final.npz")[1])


def test_a_run_whose_towers_changed_is_not_loaded(tiny, towers, tmp_path):
  copies = {tower: shutil.copy(x, tmp_path) for tower, x in towers.items()}
  train.train(config_of(tiny, copies), tmp_path / "run")
  siglip = npz.load(copies["img"])
  npz.save(copies["img"], siglip | {"t": np.ones(1, np.float32)})
  with pytest.raises(ValueError, match=r"was trained on top of \{'img'"):
    paligemma.load(tmp_path / "run")


@pytest.mark.parametrize(
  ("init", "said"),
  [
    (3.0, "checkpoint is 3.0, expected a path, or {"),
    ({"img": "llm", "llm": "llm"}, "gemma.npz: holds no image tower, "),
    ({"img": "img", "llm": "img"}, "siglip.npz: holds no decoder, "),
    ({"img": "img"}, "towers of a checkpoint are ['img'], expected"),
    (
      {"img": "img", "llm": "img", "txt": "img"},
      "towers of a checkpoint are ['img', 'llm', 'txt'], expected",
    ),
  ],
)
def test_a_tower_that_is_missing_and_what_is_no_path(
  tiny, towers, main, tmp_path, init, said
):
  if isinstance(init, dict):
    init = {tower: towers[name] for tower, name in init.items()}
  assert said in main(config_of(tiny, init), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_towers_of_other_sizes(tiny, towers, main, tmp_path):
  config = config_of(tiny, towers)
  config.model.llm.mlp_dim = 26
  said = main(config, tmp_path / "run")
  assert "gemma.npz: does not fit the model, 2 leaves differ: " in said
  assert said.count("\n") == 0
