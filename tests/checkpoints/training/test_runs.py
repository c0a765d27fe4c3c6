"""A step of a run is its trained weights over the frozen ones."""

import dataclasses
import os

import jax.numpy as jnp
import numpy as np
import pytest

from configs.transfers import forkme
from paligemma.checkpoints import npz, resample
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.training import fingerprint, runs, steps
from trainers import workdir
from trainers.start import frozen_source

RNG = np.random.default_rng(0)
FROZEN = {
  "img/head/bias": (3,),
  "img/Transformer/encoderblock/LayerNorm_0/bias": (2, 5),
  "llm/final_norm/scale": (7,),
  "llm/layers/attn/q_einsum/w": (2, 3, 5),
  "llm/layers/mlp/linear": (2, 11),
}
FROZEN = {n: RNG.normal(size=s).astype(np.float32) for n, s in FROZEN.items()}
TRAINED = {
  "llm/layers/attn/q_einsum/w": RNG.normal(size=(2, 3, 5)).astype(np.float32)
}


def open_source(path):
  opened = npz.open(path)
  return dataclasses.replace(
    opened, metadata={"image_token_id": 5}, ignored=("buffer",)
  )


def make_run(
  folder,
  trained=TRAINED,
  *,
  init,
  ema=None,
  at=(3, 20),
  tune="attention",
  dtype="float32",
  **model,
):
  """Saves steps as trainers/loop.py does."""
  config = forkme.get_config(f"variant=paligemma2_3b,tune={tune},dtype={dtype}")
  config.init = str(init)
  config.model.update(model)
  with steps.StepCheckpoints(folder / "checkpoints") as checkpoints:
    for step in at:
      checkpoints.save(
        step,
        {n: jnp.asarray(x * step) for n, x in trained.items()},
        {"momentum": jnp.ones(3)},
        ema=ema and {n: jnp.asarray(x * step) for n, x in ema.items()},
        metadata={
          "config": workdir.as_json(config),
          "init": frozen_source(config),
          "counts": {},
        },
      )
  return folder


@pytest.fixture
def source(tmp_path):
  npz.save(tmp_path / "source.npz", FROZEN)
  return tmp_path / "source.npz"


def assert_same(checkpoint, expected):
  assert checkpoint.leaves.keys() == expected.keys()
  for name, leaf in checkpoint.leaves.items():
    np.testing.assert_array_equal(leaf.read(), expected[name], err_msg=name)
    assert leaf.shape == expected[name].shape


def times(step, flat=TRAINED):
  return {name: x * step for name, x in flat.items()}


def test_the_last_step_or_a_given_one(tmp_path, source):
  run = make_run(tmp_path / "x", init=source)
  (run / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()
  for path, step in (
    (run, 20),
    (run / "checkpoints", 20),
    (str(run / "checkpoints" / "3"), 3),
  ):
    found = runs.open(path, open_source)
    assert found.path == str(run / "checkpoints" / str(step))
    assert_same(found, FROZEN | times(step))
    assert found.metadata == {"image_token_id": 5, "preprocessing": "bilinear"}
    assert found.compute_dtype == "float32"
    assert found.ignored == ("opt_state/momentum", "buffer")


def test_what_was_frozen_is_held_as_in_the_run(tmp_path, source):
  run = make_run(tmp_path / "x", init=source, dtype="bfloat16")
  found = runs.open(run, open_source)
  assert found.format == f"training run on {source} in bfloat16"
  name = "llm/layers/mlp/linear"
  assert found.leaves[name].dtype == jnp.bfloat16
  rounded = FROZEN[name].astype(jnp.bfloat16)
  np.testing.assert_array_equal(found.leaves[name].read(), rounded)
  np.testing.assert_array_equal(
    found.leaves[name].read("float32", (slice(1, 2), slice(3, 5))),
    rounded[1:2, 3:5].astype(np.float32),
  )
  kept = [n for n, leaf in found.leaves.items() if leaf.dtype == np.float32]
  assert set(kept) == {*TRAINED, *FROZEN} - {name}


def test_the_moving_average_counts(tmp_path, source):
  run = make_run(tmp_path / "x", init=source, ema=times(-1))
  found = runs.open(run, open_source)
  assert_same(found, FROZEN | times(-20))
  assert "trainable/llm/layers/attn/q_einsum/w" in found.ignored


def test_settings_are_those_of_the_config(tmp_path, source):
  run = make_run(
    tmp_path / "x",
    init=source,
    img={"posemb": "sincos2d", "dropout": 0.0},
    llm={"sliding_window": 17, "norm_eps": 1e-5, "remat_policy": "none"},
  )
  found = runs.open(run, open_source)
  assert found.img == {"posemb": "sincos2d"}
  assert found.llm == {
    "norm_eps": 1e-5,
    "query_scale": "head_dim",
    "post_norms": True,
    "attn_logits_softcap": 50.0,
    "final_logits_softcap": None,
    "sliding_window": 17,
  }
  other = make_run(tmp_path / "y", init=source, llm={"variant": "gemma2_27b"})
  found = runs.open(other, open_source)
  assert found.llm["query_scale"] == "width_per_head"
  assert found.llm["sliding_window"] is None
  bad = make_run(tmp_path / "z", init=source, variant="paligemma2_4b")
  message = r'info/metadata: unknown variant "paligemma2_4b".*Did you mean'
  with pytest.raises(ValueError, match=message):
    runs.open(bad, open_source)


def test_layers_apart(tmp_path, source):
  trained = {
    "llm/layers/1/attn/q_einsum/w": TRAINED["llm/layers/attn/q_einsum/w"][1]
  }
  run = make_run(tmp_path / "x", trained, init=source)
  expected = {n: x for n, x in FROZEN.items() if "llm/layers" not in n}
  for i in range(2):
    for rest in ("attn/q_einsum/w", "mlp/linear"):
      expected[f"llm/layers/{i}/{rest}"] = FROZEN[f"llm/layers/{rest}"][i]
  assert_same(runs.open(run, open_source), expected | times(20, trained))


def test_a_source_with_layers_apart(tmp_path):
  apart = {n: x for n, x in FROZEN.items() if "llm/layers" not in n}
  for i in range(2):
    for rest in ("attn/q_einsum/w", "mlp/linear"):
      apart[f"llm/layers/{i}/{rest}"] = FROZEN[f"llm/layers/{rest}"][i]
  npz.save(tmp_path / "apart.npz", apart)
  run = make_run(tmp_path / "x", init=tmp_path / "apart.npz")
  assert_same(runs.open(run, open_source), FROZEN | times(20))


def test_a_relative_source_is_looked_for_upwards(tmp_path, source, monkeypatch):
  (tmp_path / "runs").mkdir()
  monkeypatch.chdir(tmp_path)
  run = make_run(tmp_path / "runs" / "x", init="source.npz")
  assert_same(runs.open("runs/x", open_source), FROZEN | times(20))
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  assert_same(runs.open(run, open_source), FROZEN | times(20))
  relative = os.path.relpath(run)
  assert_same(runs.open(relative, open_source), FROZEN | times(20))
  source.unlink()
  with pytest.raises(ValueError, match=r"source\.npz: No such file"):
    runs.open(run, open_source)


def test_a_part_of_a_file_as_the_source(tmp_path, monkeypatch):
  whole = {f"old/{name}": x for name, x in FROZEN.items()}
  npz.save(tmp_path / "whole.npz", whole)
  monkeypatch.chdir(tmp_path)
  run = make_run(tmp_path / "x", init="whole.npz:old")
  assert_same(runs.open(run, open_source), FROZEN | times(20))
  monkeypatch.chdir(run)
  assert_same(runs.open(run, open_source), FROZEN | times(20))


def test_the_position_embedding_is_that_of_the_run(tmp_path):
  flat = FROZEN | {
    "img/embedding/kernel": np.zeros((14, 14, 3, 5), np.float32),
    "img/pos_embedding": RNG.normal(size=(1, 4, 5)).astype(np.float32),
  }
  npz.save(tmp_path / "a.npz", flat)
  run = make_run(tmp_path / "x", init=tmp_path / "a.npz")  # at 224 pixels
  found = runs.open(run, open_source).leaves["img/pos_embedding"]
  source = npz.open(tmp_path / "a.npz").leaves["img/pos_embedding"]
  wanted = resample.resample(source, 256).read()
  np.testing.assert_array_equal(found.read(), wanted)
  trained = TRAINED | {"img/pos_embedding": np.ones((1, 256, 5), np.float32)}
  run = make_run(tmp_path / "y", trained, init=tmp_path / "a.npz")
  found = runs.open(run, open_source).leaves["img/pos_embedding"]
  np.testing.assert_array_equal(found.read(), 20 * np.ones((1, 256, 5)))


def test_another_source_is_refused(tmp_path, source):
  run = make_run(tmp_path / "x", init=source)
  first = fingerprint.of(source)
  npz.save(source, times(2, FROZEN))
  message = (
    rf"20: was trained on top of .*source\.npz with {first}, but .*source\.npz "
    rf"has {fingerprint.of(source)}; put the former weights there"
  )
  with pytest.raises(ValueError, match=message):
    runs.open(run, open_source)


def test_a_source_without_what_was_trained_is_refused(tmp_path, source):
  run = make_run(tmp_path / "x", {"llm/layers/lora/w": np.ones(3)}, init=source)
  message = r"20: trained llm/layers/lora/w, which .*source\.npz lacks"
  with pytest.raises(ValueError, match=message):
    runs.open(run, open_source)


def test_random_weights(tmp_path):
  run = make_run(tmp_path / "x", init="")
  message = r"frozen weights of this run were random \(seed:0\).*stored nowhere"
  with pytest.raises(ValueError, match=message):
    runs.open(run, open_source)
  run = make_run(tmp_path / "y", FROZEN, init="", tune="full")
  assert_same(runs.open(run, open_source), times(20, FROZEN))


def test_a_run_that_trained_all_needs_no_source(tmp_path, source):
  run = make_run(tmp_path / "x", FROZEN, init=source, tune="full")
  source.unlink()
  assert_same(runs.open(run, open_source), times(20, FROZEN))


def test_a_run_on_top_of_a_run(tmp_path, source):
  first = make_run(tmp_path / "x", init=source)
  step = str(first / "checkpoints" / "20")

  def open_any(path):
    return runs.open(path, open_any) if runs.find(path) else open_source(path)

  second = tmp_path / "y"
  config = forkme.get_config(
    "variant=paligemma2_3b,tune=attention,dtype=float32"
  )
  with steps.StepCheckpoints(second / "checkpoints") as checkpoints:
    checkpoints.save(
      1,
      {n: jnp.asarray(x) for n, x in TRAINED.items()},
      (),
      metadata={
        "config": workdir.as_json(config),
        "init": {"path": str(first), "fingerprint": fingerprint.of(step)},
      },
    )
  assert_same(runs.open(second, open_any), FROZEN | TRAINED)


def test_saved_and_opened_again(tmp_path, source):
  found = runs.open(make_run(tmp_path / "x", init=source), open_source)
  orbax.save(
    tmp_path / "b",
    found.leaves,
    img=found.img,
    llm=found.llm,
    metadata=found.metadata,
  )
  again = orbax.open(tmp_path / "b")
  assert_same(again, FROZEN | times(20))
  assert (again.llm, again.metadata) == (found.llm, found.metadata)


def test_nothing_there(tmp_path, source):
  (tmp_path / "x" / "checkpoints").mkdir(parents=True)
  for path in (tmp_path, tmp_path / "x", tmp_path / "absent", source):
    assert runs.find(path) is None
    with pytest.raises(ValueError, match="holds no step of a training run"):
      runs.open(path, open_source)


@pytest.mark.parametrize(
  "content",
  ["", "{", "[]", "{}", '{"metadata": {}}', '{"metadata": {"config": 3}}'],
)
def test_corrupt_metadata(tmp_path, source, content):
  run = make_run(tmp_path / "x", init=source, at=(3,))
  (run / "checkpoints" / "3" / "info" / "metadata").write_text(content)
  with pytest.raises(ValueError, match=r"3/info/metadata: cannot be read"):
    runs.open(run, open_source)
