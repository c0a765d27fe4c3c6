import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import init, tree
from paligemma.models import paligemma as paligemma_model
from paligemma.models import siglip
from paligemma.planning import flops
from paligemma.training import optimizers
from trainers import state
from trainers import step as step_lib
from trainers.tasks import contrastive, next_token


def make_model(res, **overrides):
  """A model, and name -> shape of its parameters."""
  model = paligemma_model.make("paligemma_tiny", **overrides)
  image = np.zeros((1, res, res, 3), np.float32)
  text = np.zeros((1, 1), np.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  return model, tree.flatten(params["params"])


def names(shapes, pattern):
  return [
    name for name, hit in tree.match_any([pattern], shapes).items() if hit
  ]


# Matrix entries of the model below. The image tower sees 4 tokens, the decoder
# 4 + 5, the vocabulary (as the output layer) 5.
PATCH = 2 * 2 * 3 * 4
VIT_LAYER = 4 * (4 * 4) + 2 * (4 * 10)
HEAD = 4 * 6
ATTENTION = 6 * (3 * 8) + 2 * (6 * 8) + (3 * 8) * 6
MLP = 3 * (6 * 7)
VOCABULARY = 11 * 6
VIT = 4 * (PATCH + 2 * VIT_LAYER + HEAD)
GEMMA = 9 * 3 * (ATTENTION + MLP) + 5 * VOCABULARY
# Queries times keys and weights times values: layers x tokens^2 x width.
VIT_MIXING = 2 * 2 * 4**2 * 4
GEMMA_MIXING = 2 * 3 * 9**2 * 24


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
  ("pattern", "expected"),
  [
    # Forward, back through the decoder, and the weights that train.
    (
      "llm/.*attn/.*",
      VIT + VIT_MIXING + 2 * GEMMA + 3 * GEMMA_MIXING + 9 * 3 * ATTENTION,
    ),
    ("llm/.*", VIT + VIT_MIXING + 3 * (GEMMA + GEMMA_MIXING)),
    (
      "img/.*",
      3 * (VIT + VIT_MIXING) + 2 * GEMMA + 3 * GEMMA_MIXING,
    ),
    (".*", 3 * (VIT + VIT_MIXING + GEMMA + GEMMA_MIXING)),
  ],
)
def test_by_hand(pattern, expected, scan):
  model, shapes = make_model(
    4,
    vocab_size=11,
    img=dict(
      variant="mu/2", width=4, depth=2, mlp_dim=10, num_heads=2, scan=scan
    ),
    llm=dict(width=6, depth=3, mlp_dim=7, num_heads=3, head_dim=8, scan=scan),
  )
  found = flops.train_step(
    model,
    shapes,
    names(shapes, pattern),
    batch_size=13,
    res=4,
    text_len=5,
  )
  assert found == 13 * 2 * expected


def test_a_decoder_alone_by_hand():
  model = paligemma_model.make(
    "gemma_nano",
    vocab_size=11,
    llm=dict(width=6, depth=3, mlp_dim=7, num_heads=3, head_dim=8),
  )
  shapes = init.shapes(model, None)
  sizes = dict(batch_size=13, res=4, text_len=5)
  found = flops.train_step(model, shapes, names(shapes, ".*"), **sizes)
  gemma = 5 * 3 * (ATTENTION + MLP) + 5 * VOCABULARY
  assert found == 13 * 2 * 3 * (gemma + 2 * 3 * 5**2 * 24)
  found = flops.decode(model, shapes, **sizes, max_decode_len=3)
  gemma = (5 + 2) * 3 * (ATTENTION + MLP) + 3 * VOCABULARY
  assert found == 13 * 2 * (gemma + 2 * 3 * (5**2 + 6 + 7) * 24)


def test_frames_by_hand():
  model, shapes = make_model(
    4,
    vocab_size=11,
    img=dict(variant="mu/2", width=4, depth=2, mlp_dim=10, num_heads=2),
    llm=dict(width=6, depth=3, mlp_dim=7, num_heads=3, head_dim=8),
  )
  sizes = dict(batch_size=13, res=4, text_len=5, frames=7)
  found = flops.train_step(model, shapes, names(shapes, "llm/.*"), **sizes)
  length = 7 * 4 + 5
  gemma = length * 3 * (ATTENTION + MLP) + 5 * VOCABULARY
  mixing = 2 * 3 * length**2 * 24
  assert found == 13 * 2 * (7 * (VIT + VIT_MIXING) + 3 * (gemma + mixing))


def test_decoding_by_hand():
  model, shapes = make_model(
    4,
    vocab_size=11,
    img=dict(variant="mu/2", width=4, depth=2, mlp_dim=10, num_heads=2),
    llm=dict(width=6, depth=3, mlp_dim=7, num_heads=3, head_dim=8),
  )
  found = flops.decode(
    model, shapes, batch_size=13, res=4, text_len=5, max_decode_len=3
  )
  # A prompt of 4 + 5, and two more tokens to read after the first to write.
  gemma = (9 + 2) * 3 * (ATTENTION + MLP) + 3 * VOCABULARY
  mixing = 2 * 3 * (9**2 + 10 + 11) * 24
  assert found == 13 * 2 * (VIT + VIT_MIXING + gemma + mixing)


def test_only_supervised_tokens_have_logits_and_a_head_needs_no_tower():
  model, shapes = make_model(
    4,
    vocab_size=11,
    img=dict(variant="mu/2", width=4, depth=2, mlp_dim=10, num_heads=2),
    llm=dict(width=6, depth=3, mlp_dim=7, num_heads=3, head_dim=8),
  )
  sizes = dict(batch_size=13, res=4, text_len=5)
  trained = names(shapes, "llm/.*")
  all_text = flops.train_step(model, shapes, trained, **sizes)
  few = flops.train_step(model, shapes, trained, supervised=29, **sizes)
  assert all_text - few == 2 * 3 * (13 * 5 - 29) * VOCABULARY

  # Forward through the tower, the head and what its weights need.
  found = flops.train_step(model, shapes, names(shapes, "img/head/.*"), **sizes)
  tower = VIT + VIT_MIXING + 4 * HEAD
  assert found == 13 * 2 * (tower + 2 * GEMMA + 3 * GEMMA_MIXING)


@pytest.mark.parametrize("pattern", ["llm/.*attn/.*", ".*"])
def test_the_compiler_counts_alike(pattern):
  # Unrolled, as the compiler counts the body of a loop once; wide and deep
  # enough that elementwise operations and the first layer, whose input needs no
  # gradient, matter little.
  res, text_len, rows = 42, 23, 3
  apart = dict(scan=False, remat_policy="none")
  model, shapes = make_model(
    res,
    vocab_size=331,
    img=dict(width=96, depth=3, mlp_dim=200, num_heads=3, **apart),
    llm=dict(
      width=128, depth=7, mlp_dim=300, num_heads=3, head_dim=40, **apart
    ),
  )
  trainable, frozen = tree.partition(shapes, tree.match_any([pattern], shapes))
  optimizer, _ = optimizers.make(list(trainable), total_steps=5)
  start = jax.eval_shape(
    lambda trainable: state.TrainState(
      jnp.int32(0), trainable, optimizer.init(trainable), None
    ),
    trainable,
  )
  integers = jax.ShapeDtypeStruct((rows, text_len + 1), jnp.int32)
  batch = {
    "image": jax.ShapeDtypeStruct((rows, res, res, 3), jnp.float32),
    "text": integers,
    "mask_ar": integers,
    "mask_input": jax.ShapeDtypeStruct(integers.shape, bool),
    "mask_loss": integers,
    "_mask": jax.ShapeDtypeStruct((rows,), bool),
  }
  loss = next_token.make_loss(model)
  step = jax.jit(step_lib.make_step(loss, optimizer, seed=0))
  counted = step.lower(start, frozen, batch).cost_analysis()["flops"]
  found = flops.train_step(
    model, shapes, trainable, batch_size=rows, res=res, text_len=text_len
  )
  assert found == pytest.approx(counted, rel=0.1)


def test_peak_is_that_of_all_devices(monkeypatch):
  assert flops.peak_per_second() is None  # a CPU

  class Device:
    device_kind = "NVIDIA H200"

  monkeypatch.setattr(jax, "devices", lambda: [Device()] * 3)
  monkeypatch.setattr(jax, "device_count", lambda: 3)
  assert flops.peak_per_second() == 3 * 989e12


@pytest.mark.parametrize(
  ("rule", "has_decoder"),
  [
    *((x, False) for x in (".*", "txt/.*", "img/.*", "t|b", "txt/head/.*")),
    *((x, True) for x in (".*", "dec/.*")),
  ],
)
def test_contrastive_step_agrees_with_xla(rule, has_decoder):
  """Layers apart, as XLA counts the body of a scan once."""
  loop = {"scan": False, "remat_policy": "none"}
  dec = loop if has_decoder else None
  model = siglip.make("siglip_tiny", img=loop, txt=loop, dec=dec)
  batch_size, res = 8, 56
  shapes = init.shapes(model, res)
  trained, frozen = tree.partition(shapes, tree.match_any([rule], shapes))
  batch = {
    "image": jax.ShapeDtypeStruct((batch_size, res, res, 3), jnp.float32),
    "text": jax.ShapeDtypeStruct((batch_size, 16), jnp.int32),
    "_mask": jax.ShapeDtypeStruct((batch_size,), bool),
  }
  if has_decoder:
    regions = jax.ShapeDtypeStruct((batch_size, 2, 16), jnp.int32)
    batch |= {"regions": regions, "regions_loss": regions}
  loss = contrastive.make_loss(model, decoder_weight=1.0)

  def grads(trained, frozen, batch):
    return jax.grad(
      lambda x: loss(tree.unflatten({**frozen, **x}), batch, jax.random.key(0)),
      has_aux=True,
    )(trained)[0]

  lowered = jax.jit(grads).lower(trained, frozen, batch)
  counted = lowered.compile().cost_analysis()["flops"]
  found = flops.contrastive_step(
    model, shapes, trained, batch_size=batch_size, patches=16
  )
  assert found == pytest.approx(counted, rel=0.1)
