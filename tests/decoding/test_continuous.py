"""Answers are those of batches that wait for their longest, in fewer steps."""

import jax
import numpy as np
import pytest

from paligemma.decoding import continuous, decode
from paligemma.decoding.grammar import automaton, language, patterns
from paligemma.models import paligemma as paligemma_model

ROWS, LENGTH, BATCHES = 7, 13, 12


@pytest.fixture(scope="module")
def tiny():
  """A model with random weights, which ends an answer every few tokens."""
  model = paligemma_model.make("paligemma_tiny", dtype="float32")
  image, text = np.zeros((1, 28, 28, 3), np.float32), np.zeros((1, 1), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
    shapes["params"],
  )
  params["llm"]["embedder"]["input_embedding"] *= 0.2
  params["llm"]["embedder"]["input_embedding"][1] *= 4  # eos
  return model, params


def batches(count):
  for seed in range(count):
    rng = np.random.default_rng(seed)
    is_prompt = np.arange(5) < rng.integers(2, 6, (ROWS, 1))
    yield {
      "image": rng.uniform(-1, 1, (ROWS, 28, 28, 3)).astype(np.float32),
      "text": (is_prompt * rng.integers(3, 500, (ROWS, 5))).astype(np.int32),
      "mask_ar": (~is_prompt).astype(np.int32),
      "mask_input": is_prompt,
      "_mask": np.arange(ROWS) < (ROWS if seed < count - 1 else 2),
    }


@pytest.fixture
def steps(monkeypatch):
  """Counts of steps, one for each program that has run."""
  counts = []
  for name in ("_advance", "_finish"):

    def count(*args, run=getattr(continuous, name), **options):
      found = run(*args, **options)
      counts.append(int(found[-1]))
      return found

    monkeypatch.setattr(continuous, name, count)
  return counts


def regex(vocabulary):
  """Answers of one to eleven of a hundred tokens, and the end."""
  pieces = [b""] * 3 + [b"a"] * 100 + [b"b"] * (vocabulary - 103)
  return automaton.lift(
    language.automaton(patterns.parse("a{1,11}")), pieces, eos_id=1
  )


@pytest.mark.parametrize(
  ("sampler", "restricts", "count"),
  [
    ("greedy", False, 144),  # 1,003 prompts
    ("nucleus(temperature=0.3)", False, BATCHES),
    ("top_k(k=7)", True, BATCHES),
  ],
)
def test_answers_are_those_of_one_batch_at_a_time(
  tiny, steps, sampler, restricts, count
):
  grammar = regex(tiny[0].llm.vocab_size) if restricts else None
  how = {"max_decode_len": LENGTH, "sampler": sampler, "grammar": grammar}
  rngs = list(jax.random.split(jax.random.key(7), count))
  found = continuous.generate(*tiny, batches(count), rngs=rngs, **how)
  longest = 0
  for batch, rng, ours in zip(batches(count), rngs, found, strict=True):
    expected = decode.generate(*tiny, batch, rng=rng, prompt_buckets=(), **how)
    if restricts:
      assert set(ours.tokens.flat) <= {0, 1, *range(3, 103)}
    np.testing.assert_array_equal(ours.tokens, expected.tokens)
    np.testing.assert_array_equal(ours.num_tokens, expected.num_tokens)
    for name in ("log_probs", "score"):
      np.testing.assert_allclose(
        getattr(ours, name), getattr(expected, name), atol=1e-4
      )
    longest += int(expected.num_tokens.max()) - 1
  print(f"{sum(steps)} steps in place of {longest}")
  assert sum(steps) <= 0.7 * longest


def test_a_draw_depends_on_no_other_prompt(tiny):
  (batch,) = batches(1)
  how = {"max_decode_len": LENGTH, "sampler": "temperature"}
  rng = jax.random.key(3)
  together = decode.generate(*tiny, batch, rng=rng, **how)
  first = {name: x[:2] for name, x in batch.items()}
  alone = decode.generate(*tiny, first, rng=rng, **how)
  np.testing.assert_array_equal(alone.tokens, together.tokens[:2])
  assert (together.tokens[0] != together.tokens[1]).any()


@pytest.mark.parametrize(
  ("sampler", "message"),
  [
    ("beam(4)", "follows several answers of a prompt: use decode.generate"),
    ("nucleus", r"Nucleus\(p=0.9.* draws at random: give generate an rng"),
  ],
)
def test_what_it_cannot_sample(tiny, sampler, message):
  found = continuous.generate(
    *tiny, batches(1), max_decode_len=3, sampler=sampler
  )
  with pytest.raises(ValueError, match=message):
    next(found)


def test_answers_of_one_token_need_no_step(tiny, steps):
  found = continuous.generate(*tiny, batches(3), max_decode_len=1)
  assert [x.num_tokens.sum() for x in found] == [ROWS, ROWS, 2]
  assert sum(steps) == 0


def test_without_a_batch_there_is_no_answer(tiny):
  assert not list(continuous.generate(*tiny, (), max_decode_len=3))


def test_a_batch_in_the_training_layout_is_refused(tiny):
  (batch,) = batches(1)
  batch["mask_loss"] = batch["mask_ar"]
  with pytest.raises(ValueError, match="has mask_loss: its text holds the"):
    list(continuous.generate(*tiny, [batch], max_decode_len=3))
