"""Texts in a row: the loss and gradients of the texts one by one."""

import functools

import jax
import numpy as np
import pytest

from paligemma import init, tree
from paligemma.data import packing
from paligemma.models import paligemma
from paligemma.models.attention import reference as attention
from trainers.tasks import next_token

VOCABULARY = 31
SIZES = {
  "width": 14,
  "depth": 3,
  "mlp_dim": 17,
  "num_heads": 6,
  "num_kv_heads": 3,
  "head_dim": 10,
}
# A window of 5 is shorter than the texts.
GEMMA2 = {"sliding_window": 5, "final_logits_softcap": 3.0}
# Lengths of the texts of each row, of 37 tokens; the second ends in padding.
ROWS = [[13, 11, 7, 5], [17, 2, 11]]
SIZE = 37


@functools.cache
def make_model(variant, how):
  style = GEMMA2 if variant == "gemma2_nano" else {}
  model = paligemma.make(
    variant, vocab_size=VOCABULARY, llm={**SIZES, **style, "attention": how}
  )
  rng = np.random.default_rng(0)
  params = {
    name: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
    for name, leaf in init.shapes(model, None).items()
  }
  return model, tree.unflatten(params)


def make_text(length, size, rng):
  """The arrays of a text; the first third of it is a prompt."""
  used = np.arange(size) < length
  learned = used & (np.arange(size) >= max(length // 3, 1))
  return {
    "text": np.where(used, rng.integers(3, VOCABULARY, size), 0).astype("i4"),
    "mask_ar": np.ones(size, np.int32),
    "mask_input": used,
    "mask_loss": learned.astype(np.int32),
  }


def stack(rows):
  batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  return {**batch, "_mask": np.ones(len(rows), bool)}


def make_batches():
  """A packed batch, and the same texts one to a row."""
  rng = np.random.default_rng(1)
  rows = [[make_text(n, SIZE, rng) for n in lengths] for lengths in ROWS]
  packed = stack([packing.join(row, SIZE) for row in rows])
  return packed, stack([text for row in rows for text in row])


@functools.cache
def loss_and_grads(variant, how, smoothing=0.0):
  model, params = make_model(variant, how)
  loss = next_token.make_loss(model, label_smoothing=smoothing)
  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  return lambda batch: grad(params, batch, jax.random.key(0))


@pytest.mark.parametrize("how", ["reference", "chunked"])
@pytest.mark.parametrize("variant", ["gemma_nano", "gemma2_nano"])
def test_loss_and_gradients_are_those_of_the_texts(variant, how, monkeypatch):
  monkeypatch.setattr(attention, "_LOGITS_IN_CACHE", 1000)  # several chunks
  packed, apart = make_batches()
  run = loss_and_grads(variant, how, 0.1)
  (found, measured), grads = run(packed)
  (expected, alone), of_texts = run(apart)
  count = len(apart["text"])
  assert measured["num_examples"] == count
  assert measured["num_tokens"] == alone["num_tokens"]
  np.testing.assert_allclose(found / count, expected / count, rtol=0, atol=1e-6)
  of_texts = tree.flatten(of_texts)
  for name, grad in tree.flatten(grads).items():
    np.testing.assert_allclose(
      grad / count, of_texts[name] / count, rtol=1e-5, atol=1e-6, err_msg=name
    )


def test_a_step_takes_the_mean_over_texts_not_over_rows():
  """The loss is not what the mean over the tokens of a row would be."""
  packed, apart = make_batches()
  run = loss_and_grads("gemma_nano", "reference")
  as_rows = {k: v for k, v in packed.items() if k != "segment_ids"}
  (expected, _), _ = run(apart)
  (of_rows, _), _ = run(as_rows)
  assert abs(of_rows / len(ROWS) - expected / len(apart["text"])) > 1e-3


@pytest.mark.parametrize("how", ["reference", "chunked"])
@pytest.mark.parametrize("variant", ["gemma_nano", "gemma2_nano"])
def test_a_change_in_a_text_changes_nothing_in_another(variant, how):
  model, params = make_model(variant, how)
  packed, _ = make_batches()

  @jax.jit
  def features(text):
    found, _ = model.apply(
      {"params": params},
      None,
      text,
      packed["mask_ar"],
      input_mask=packed["mask_input"],
      segment_ids=packed["segment_ids"],
      method="compute_features",
    )
    return found

  before = np.asarray(features(packed["text"]))
  for row, lengths in enumerate(ROWS):
    for segment in range(1, len(lengths) + 1):
      own = packed["segment_ids"][row] == segment
      text = packed["text"].copy()
      text[row, own] = (text[row, own] + 7) % VOCABULARY
      after = np.array(features(text))
      assert (after[row, own] != before[row, own]).any(axis=1).all()
      after[row, own] = before[row, own]
      np.testing.assert_array_equal(
        after[packed["mask_input"]], before[packed["mask_input"]]
      )


def test_images_belong_to_one_text():
  model = paligemma.make("paligemma_tiny")
  packed, _ = make_batches()
  with pytest.raises(ValueError, match=r"^images with segment_ids, expected"):
    model.apply(
      {},
      np.zeros((2, 14, 14, 3), np.float32),
      packed["text"],
      packed["mask_ar"],
      segment_ids=packed["segment_ids"],
    )
