"""Each place chooses its next token as its request asks."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.decoding import samplers
from paligemma.serving import places

LOGITS = np.float32([1.0, 2.5, -1.0, 2.5, 0.5, 2.0, 0.0])
DRAWS = 4000


def choose(logits, **fields):
  """Returns what places of these logits choose, and all that is told."""
  logits = jnp.asarray(logits)
  count, vocabulary = logits.shape
  allowed = fields.pop("allowed", np.ones((1, 1), bool))
  row = places.Row(allowed=allowed)._replace(**fields)
  shapes = places.Row(*[(count,)] * 7)._replace(
    allowed=(count, allowed.shape[-1])
  )
  dtypes = np.int32, np.float32, np.float32, np.uint32, bool, bool, np.int32
  row = places.Row(
    *(
      np.array(np.broadcast_to(x, shape), dtype)
      for x, shape, dtype in zip(row, shapes, dtypes, strict=True)
    )
  )
  classes = jnp.broadcast_to(jnp.arange(vocabulary) % 2, logits.shape)
  return jax.device_get(places._choose(logits, classes, row))


def test_of_equal_logits_the_lower_id_is_chosen():
  found = choose(LOGITS[None])
  assert found.token == [1]
  log_probs = np.asarray(jax.nn.log_softmax(LOGITS))
  np.testing.assert_allclose(found.log_prob, log_probs[1:2], rtol=1e-6)
  assert not found.told.any()


def test_draws_follow_the_temperature():
  logits = np.tile(LOGITS, (DRAWS, 1))
  found = choose(logits, temperature=1.7, seed=np.arange(DRAWS)).token
  rates = np.bincount(found, minlength=len(LOGITS)) / DRAWS
  np.testing.assert_allclose(rates, jax.nn.softmax(LOGITS / 1.7), atol=0.03)
  later = choose(logits, temperature=1.7, seed=np.arange(DRAWS), position=1)
  assert np.mean(found == later.token) < 0.5


def test_only_the_nucleus_is_drawn_from():
  logits = np.tile(LOGITS, (DRAWS, 1))
  top_p = np.where(np.arange(DRAWS) % 2, 0.6, 1.0).astype(np.float32)
  drawn = {"temperature": 2.0, "seed": np.arange(DRAWS)}
  found = choose(logits, top_p=top_p, **drawn).token
  ranked, ids = samplers.rank_nucleus(jnp.asarray(LOGITS[None]), 0.6, 2.0)
  kept = set(np.asarray(ids[np.isfinite(ranked)]).tolist())
  assert set(found[1::2].tolist()) == kept == {1, 3, 5}
  assert len(set(found[::2].tolist())) == len(LOGITS)
  # What others ask for does not matter.
  alone = choose(logits, **drawn).token
  np.testing.assert_array_equal(found[::2], alone[::2])


@pytest.mark.parametrize(
  "fields",
  [dict(temperature=1e-38), dict(temperature=5.0, top_p=1e-38)],
)
def test_what_is_nearly_greedy_is_greedy(fields):
  logits = np.tile(LOGITS + np.eye(1, 7, 3, dtype=np.float32), (9, 1))
  fields |= {"seed": np.arange(9)}
  assert set(choose(logits, **fields).token.tolist()) == {3}


def test_a_grammar_allows_classes_and_ids():
  even = np.array([[True, False]])
  assert choose(LOGITS[None], allowed=even).token == [0]
  assert choose(LOGITS[None], floor=3).token == [5]
  both = np.array([[True, True], [True, False]])
  found = choose(np.tile(LOGITS, (2, 1)), allowed=both)
  assert found.token.tolist() == [1, 0]
  # The model's own, whatever the grammar allows.
  log_probs = np.asarray(jax.nn.log_softmax(LOGITS))
  np.testing.assert_allclose(found.log_prob, log_probs[[1, 0]], rtol=1e-6)


def test_the_most_probable_tokens_are_told_to_who_asks():
  found = choose(LOGITS[None], told=True)
  assert found.told[0].tolist() == [1, 3, 5, 0, 4, 6, 2]
  log_probs = np.asarray(jax.nn.log_softmax(LOGITS))[found.told]
  np.testing.assert_allclose(found.told_log_probs, log_probs, rtol=1e-5)


def test_memory_that_is_left():
  stats = {"bytes_limit": 7, "bytes_in_use": 3}
  device = types.SimpleNamespace(id=0, memory_stats=lambda: stats)
  params = {"a": types.SimpleNamespace(devices=lambda: [device])}
  assert places.free_memory(params) == 4
  stats.clear()
  assert places.free_memory(params) == np.inf
