"""Presets written by keras-hub give its own numbers here.

keras-hub cuts a prefix that is longer than the sliding window, and we do not:
prompts are as short as the window, and answers reach beyond it.
"""

import functools
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma import variants
from paligemma.checkpoints import keras_hub, presets

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with warnings.catch_warnings():
  warnings.simplefilter("ignore")
  pytest.importorskip("keras_hub")
  import keras
  import keras_hub as theirs_hub

from tests.parity.keras_hub_models import (
  STYLES,
  WINDOW,
  random_gemma,
  random_paligemma,
)

# Keras on PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

BOUND = 1e-4
SEEDS = (0, 1)
CASES = [(style, seed) for style in STYLES for seed in SEEDS]


@pytest.fixture(autouse=True)
def theirs_may_promote_ranks():
  """For keras on JAX."""
  with jax.numpy_rank_promotion("allow"):
    yield


def load(folder, **llm):
  """The model of a preset and its parameters; of a Gemma the decoder."""
  model, params = paligemma.load(folder, llm=llm)
  return (model, params) if model.img else (model.llm, params["llm"])


def make_batch(backbone, seed):
  """Ragged prompts of at most WINDOW tokens, answers of at most as many."""
  rng = np.random.default_rng(seed)
  prefix = np.array([[WINDOW], [3]])
  length = prefix + np.array([[WINDOW], [4]])
  position = np.arange(length.max())
  batch = {
    "text": rng.integers(3, backbone.vocabulary_size, (2, len(position))),
    "input_mask": position < length,
    "mask_ar": (position >= prefix).astype(np.int32),
  }
  if hasattr(backbone, "image_size"):
    res = backbone.image_size
    batch["image"] = rng.uniform(-1, 1, (2, res, res, 3)).astype(np.float32)
  return batch


def theirs_logits(backbone, batch):
  inputs = {
    "token_ids": batch["text"],
    "padding_mask": batch["input_mask"].astype(np.int32),
  }
  if "image" in batch:
    response = batch["input_mask"] * batch["mask_ar"]
    inputs |= {"images": batch["image"], "response_mask": response}
  hidden = backbone(inputs)
  logits = backbone.token_embedding(hidden, reverse=True)
  logits = keras.ops.convert_to_numpy(logits)
  return logits[:, -batch["text"].shape[1] :]


def ours_logits(model, params, batch):
  text, mask = batch["text"], batch["input_mask"]
  if "image" in batch:
    return jax.jit(model.apply)(
      {"params": params},
      batch["image"],
      text,
      batch["mask_ar"],
      input_mask=mask,
    )[0]

  def run(model):
    x = model.embed_tokens(text)
    hidden, _ = model(x, mask, jnp.ones(text.shape, jnp.int32))
    return model.compute_logits(hidden)

  return jax.jit(functools.partial(model.apply, method=run))({"params": params})


def ours_steps(model, params, batch, prompt):
  """Logits after the prompt of each row, and after each further token."""
  text = batch["text"]
  mask, mask_ar = batch["input_mask"][:, :prompt], batch["mask_ar"][:, :prompt]
  size = {"cache_size": text.shape[1]}

  def prefill(model):
    if "image" in batch:
      x, _ = model.embed_image_and_text(
        batch["image"], text[:, :prompt], input_mask=mask, mask_ar=mask_ar
      )
      size["cache_size"] += x[0].shape[1] - prompt
      return model.prefill_cache(*x, **size)
    ones = jnp.ones((len(text), prompt), jnp.int32)
    return model.prefill_cache(
      model.embed_tokens(text[:, :prompt]), mask, ones, **size
    )

  def extend(model, tokens):
    if "image" in batch:
      return model.extend_cache(model.embed_text(tokens)[0])
    return model.extend_cache(model.embed_tokens(tokens))

  apply = functools.partial(model.apply, mutable=["cache"])
  step = jax.jit(functools.partial(apply, method=extend))
  params = {"params": params}
  logits, cache = jax.jit(functools.partial(apply, method=prefill))(params)
  steps = [logits]
  for t in range(prompt, text.shape[1]):
    logits, cache = step(params | cache, text[:, t : t + 1])
    steps.append(logits)
  return jnp.concatenate(steps, axis=1)


@pytest.mark.parametrize("random_preset", [random_paligemma, random_gemma])
@pytest.mark.parametrize(("style", "seed"), CASES)
def test_logits(random_preset, style, seed, tmp_path, agree):
  backbone = random_preset(tmp_path, style, seed)
  batch = make_batch(backbone, seed)
  valid = batch["input_mask"]
  theirs = theirs_logits(backbone, batch)[valid]
  assert theirs.std() > 0.3
  ours = ours_logits(*load(tmp_path), batch)[valid]
  agree(f"logits, {random_preset.__name__}", ours, theirs, BOUND)


@pytest.mark.parametrize("random_preset", [random_paligemma, random_gemma])
@pytest.mark.parametrize("style", STYLES)
def test_prefill_and_every_extension(random_preset, style, tmp_path, agree):
  backbone = random_preset(tmp_path, style, seed=2)
  batch = make_batch(backbone, seed=2)
  batch = {name: value[:1] for name, value in batch.items()}  # not ragged
  agree(
    f"logits, prefill and extensions, {random_preset.__name__}",
    ours_steps(*load(tmp_path), batch, prompt=WINDOW),
    theirs_logits(backbone, batch)[:, WINDOW - 1 :],
    BOUND,
  )


def test_shards_hold_the_same(tmp_path):
  random_paligemma(tmp_path / "one", "gemma2")
  random_paligemma(tmp_path / "many", "gemma2", max_shard_size=1.7e-5)
  assert len(list((tmp_path / "many").glob("*.h5"))) > 1
  one = keras_hub.open(tmp_path / "one").leaves
  many = keras_hub.open(tmp_path / "many").leaves
  assert one.keys() == many.keys()
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf.read(), many[name].read())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_bit_for_bit(dtype, tmp_path):
  backbone = random_gemma(tmp_path, "gemma1", dtype=dtype)
  leaves = keras_hub.open(tmp_path).leaves
  assert {str(leaf.dtype) for leaf in leaves.values()} == {dtype}
  theirs = backbone.token_embedding.embeddings
  np.testing.assert_array_equal(
    leaves["llm/embedder/input_embedding"].read("float32"),
    keras.ops.convert_to_numpy(keras.ops.cast(theirs, "float32")),
  )


def test_they_drop_the_query_scale_of_27b(tmp_path, agree):
  """Why load() differs from keras-hub for these presets; see keras_hub.py."""
  backbone = random_gemma(tmp_path, "gemma2", query_head_dim_normalize=False)
  assert backbone.hidden_dim // backbone.num_query_heads != backbone.head_dim
  batch = make_batch(backbone, seed=0)
  valid = batch["input_mask"]
  theirs = theirs_logits(backbone, batch)[valid]
  assert keras_hub.open(tmp_path).llm["query_scale"] == "width_per_head"
  ours = ours_logits(*load(tmp_path), batch)[valid]
  assert np.abs(ours - theirs).max() > 100 * BOUND
  as_theirs = load(tmp_path, query_scale="head_dim")
  agree("logits, 27B", ours_logits(*as_theirs, batch)[valid], theirs, BOUND)


def test_they_cut_a_prefix_longer_than_the_window(tmp_path, agree):
  """Likewise, and that it is the prefix alone that differs."""
  backbone = random_paligemma(tmp_path, "gemma2", sliding_window_size=WINDOW)
  batch = make_batch(backbone, seed=0)
  valid = batch["input_mask"]
  theirs = theirs_logits(backbone, batch)[valid]
  ours = ours_logits(*load(tmp_path), batch)[valid]
  assert np.abs(ours - theirs).max() > 100 * BOUND
  backbone = random_paligemma(
    tmp_path, "gemma2", use_sliding_window_attention=False
  )
  theirs = theirs_logits(backbone, batch)[valid]
  ours = ours_logits(*load(tmp_path), batch)[valid]
  agree("logits, no window", ours, theirs, BOUND)


def test_their_presets_are_ours():
  theirs = {
    **theirs_hub.models.PaliGemmaBackbone.presets,
    **theirs_hub.models.GemmaBackbone.presets,
  }
  assert set(theirs) <= set(presets.ALIASES)
  ours = {
    name
    for name, preset in presets.PRESETS.items()
    if preset.variant not in variants.SIGLIP
  }
  assert ours == {presets.ALIASES[name] for name in theirs}
  for name, preset in theirs.items():
    handles = [
      f"kaggle://{source.handle}"
      for source in presets.get(name).sources
      if source.hub == "Kaggle"
    ]
    assert preset["kaggle_handle"] == handles[-1]
