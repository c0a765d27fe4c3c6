import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.decoding import decode, samplers

EOS, PAD = 1, 0
CODES = 1009
PROMPTS = [[4, 2, 8], [6, 0, 0], [3, 7, 0], [9, 5, 2]]  # 0 is padding


CALLS = []  # the number of rows, at each call of the model


class Chaotic(nn.Module):
  """A model whose next token depends on all tokens before it, in their order.

  Prompt and answer make a number, which picks the logits from a random table,
  its parameters. Half of it comes from tokens that the cache keeps, positions
  first, and half from a digest without positions: beams must take both along.
  """

  img: None = None

  def apply(self, variables, *args, method, mutable=(), **kwargs):
    return getattr(self, method)(variables, *args, **kwargs)

  def embed_image_and_text(self, _, image, text, *, input_mask, mask_ar):
    return (text[:, :, None], input_mask, mask_ar), {}

  def embed_text(self, _, tokens):
    return tokens[:, :, None], {}

  def prefill_cache(self, variables, x, input_mask, mask_ar, *, cache_size):
    jax.debug.callback(lambda x: CALLS.append(len(x)), x)
    cache = {
      "kept": jnp.zeros((cache_size, len(x)), jnp.int32),
      "digest": jnp.zeros((2, len(x)), jnp.int32),
      "next": jnp.int32(0),
    }
    for position in range(x.shape[1]):
      cache = self._append(cache, x[:, position, 0])
    return self._logits(variables, cache), {"cache": cache}

  def extend_cache(self, variables, x):
    jax.debug.callback(lambda x: CALLS.append(len(x)), x)
    cache = self._append(variables["cache"], x[:, 0, 0])
    return self._logits(variables, cache), {"cache": cache}

  def _append(self, cache, token):
    return {
      "kept": cache["kept"].at[cache["next"]].set(token),
      "digest": (cache["digest"] * 31 + token[None]) % CODES,
      "next": cache["next"] + 1,
    }

  def _logits(self, variables, cache):
    weights = 1 + jnp.arange(len(cache["kept"]))[:, None]
    kept = jnp.sum(weights * cache["kept"], axis=0)
    table = variables["params"]["table"]
    return table[(cache["digest"][1] + kept) % CODES][:, None]


def make_table(*, vocabulary=11, eos_logit=0.0):
  """Logits f32[codes, V]; `eos_logit` makes answers shorter or longer."""
  table = np.random.default_rng(0).normal(0, 1.5, (CODES, vocabulary))
  table[:, EOS] += eos_logit
  return table.astype(np.float32)


def next_log_probs(table, tokens):
  """NumPy, float64: of the token that follows prompt and answer."""
  digest, kept = 0, 0
  for position, token in enumerate(tokens):
    digest = (digest * 31 + token) % CODES
    kept += (position + 1) * token
  logits = table[(digest + kept) % CODES].astype(np.float64)
  return logits - np.log(np.exp(logits).sum())


def make_batch(**extra):
  text = np.array(PROMPTS, np.int32)
  masks = {"mask_ar": 0 * text, "mask_input": text > 0}
  return {"text": text} | masks | extra


def generate(sampler, table=None, *, batch=None, max_decode_len=7, **arguments):
  CALLS.clear()
  decoded = decode.generate(
    Chaotic(),
    {"table": make_table() if table is None else table},
    batch or make_batch(),
    sampler=sampler,
    max_decode_len=max_decode_len,
    prompt_buckets=(),
    **arguments,
  )
  jax.effects_barrier()
  return jax.device_get(decoded)


def assert_answers(decoded, row, expected, alpha):
  """Compares a row with [(answer, its log-probability)], best first."""
  assert decoded.tokens.shape[1] == len(expected)
  for place, (answer, log_prob) in enumerate(expected):
    length = len(answer)
    assert decoded.num_tokens[row, place] == length
    tokens = decoded.tokens[row, place]
    assert tokens.tolist() == [*answer, *[PAD] * (len(tokens) - length)]
    log_probs = decoded.log_probs[row, place]
    assert log_probs.sum() == pytest.approx(log_prob, abs=1e-4)
    assert np.all(log_probs[length:] == 0)
    penalty = ((5 + length) / 6) ** alpha
    score = decoded.score[row, place]
    assert score == pytest.approx(log_prob / penalty, abs=1e-4)


def ranked(answers, alpha):
  """Pairs of (answer, log-probability), the best first."""

  def key(pair):
    answer, log_prob = pair
    return -log_prob / ((5 + len(answer)) / 6) ** alpha

  return sorted(answers, key=key)


def all_answers(table, prompt, limit):
  """All there are, with their log-probabilities."""
  tokens = range(table.shape[1])
  others = [token for token in tokens if token != EOS]
  for length in range(1, limit + 1):
    for start in itertools.product(others, repeat=length - 1):
      for last in [EOS] if length < limit else tokens:
        answer = (*start, last)
        log_probs = [
          next_log_probs(table, [*prompt, *answer[:n]])[token]
          for n, token in enumerate(answer)
        ]
        yield answer, sum(log_probs)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_wide_beam_ranks_all_answers(alpha):
  table, limit = make_table(vocabulary=3), 5
  # As many beams as continuations of the longest answers: none is left out.
  sampler = samplers.Beam(3 * 2**4, alpha)
  decoded = generate(sampler, table, max_decode_len=limit, num_answers=48)
  for row, prompt in enumerate(PROMPTS):
    every = list(all_answers(table, prompt, limit))
    ended = ranked([pair for pair in every if pair[0][-1] == EOS], alpha)
    cut = ranked([pair for pair in every if pair[0][-1] != EOS], alpha)
    assert (len(ended), len(cut)) == (31, 32)
    assert_answers(decoded, row, [*ended, *cut][:48], alpha)


def search_by_hand(table, prompt, limit, beams, alpha):
  """The same search over Python lists; it never stops early."""
  live, answers, made_to_end = [((), 0.0)], [], []
  for _ in range(limit):
    continued = [
      ((*start, token), total + log_prob)
      for start, total in live
      for token, log_prob in enumerate(next_log_probs(table, [*prompt, *start]))
    ]
    continued = sorted(continued, key=lambda pair: -pair[1])
    ended = [pair for pair in continued if pair[0][-1] == EOS]
    new = [pair for pair in continued[:beams] if pair[0][-1] == EOS]
    answers += new
    made_to_end += [pair for pair in ended if pair not in new]
    live = [pair for pair in continued if pair[0][-1] != EOS][:beams]
  parts = answers, made_to_end, live
  return [pair for part in parts for pair in ranked(part, alpha)]


def beam_decode(table, prompt, limit, beams):
  """That of big_vision: every beam ends at every step; (answer, log-prob)."""
  live, best = [((), 0.0)], ((), -np.inf)
  for _ in range(limit):
    following = []
    for start, total in live:
      log_probs = next_log_probs(table, [*prompt, *start])
      best = max(
        best, ((*start, EOS), total + log_probs[EOS]), key=lambda p: p[1]
      )
      top = np.argsort(-log_probs)[: beams + 1]
      following += [
        ((*start, int(token)), total + log_probs[token])
        for token in top
        if token != EOS
      ]
    live = sorted(following, key=lambda pair: -pair[1])[:beams]
    if live[0][1] < best[1]:
      break
  return best


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_if_nothing_ended_the_answer_is_that_of_big_vision(beams, limit):
  table = make_table(eos_logit=-4.0)
  decoded = generate(samplers.Beam(beams), table, max_decode_len=limit)
  lengths = set()
  for row, prompt in enumerate(PROMPTS):
    answer, log_prob = beam_decode(table, prompt, limit, beams)
    tokens = decoded.tokens[row, : decoded.num_tokens[row]]
    assert tuple(tokens.tolist()) == answer
    assert decoded.score[row] == pytest.approx(log_prob, abs=1e-4)
    lengths.add(len(answer))
  assert limit < 7 or min(lengths) < 7  # not only where the limit is


@pytest.mark.parametrize(
  ("beams", "alpha", "num_answers"),
  [(1, 2.0, 1), (2, 5.0, 1), (3, 0.6, 3), (5, 5.0, 3)],
)
def test_search_is_that_by_hand(beams, alpha, num_answers):
  sampler = samplers.Beam(beams, alpha)
  for eos_logit in (-3.0, 0.0, 1.0, 3.0):
    table = make_table(eos_logit=eos_logit)
    decoded = generate(sampler, table, num_answers=num_answers)
    for row, prompt in enumerate(PROMPTS):
      expected = search_by_hand(table, prompt, 7, beams, alpha)
      assert_answers(decoded, row, expected[:num_answers], alpha)


def test_one_beam_is_greedy_where_the_answer_ends():
  for eos_logit in (2.0, 3.0):
    table = make_table(eos_logit=eos_logit)
    beam, greedy = generate("beam(1)", table), generate("greedy", table)
    assert np.all(greedy.tokens[np.arange(4), greedy.num_tokens - 1] == EOS)
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_array_equal(beam.num_tokens, greedy.num_tokens)
    np.testing.assert_allclose(beam.log_probs, greedy.log_probs, atol=1e-5)
    np.testing.assert_allclose(beam.score, greedy.score, atol=1e-5)


def test_the_best_answer_does_not_depend_on_how_many_are_kept():
  best = generate("beam(3, 0.6)")
  kept = generate("beam(3, 0.6)", num_answers=3)
  for one, several in zip(best, kept, strict=True):
    np.testing.assert_array_equal(one, several[:, 0])
  assert np.all(np.diff(kept.score, axis=1) < 0)


def test_no_step_is_computed_that_can_change_nothing():
  calls = []
  for eos_logit in (-99.0, 1.0, 9.0):
    generate("beam(3, 0.6)", make_table(eos_logit=eos_logit))
    calls.append(len(CALLS))
  assert calls[0] == 7 and 1 < calls[1] < 7 and calls[2] == 1


def test_a_prompt_is_read_once():
  generate("beam(3, 0.6)")
  assert CALLS[0] == len(PROMPTS)
  assert set(CALLS[1:]) == {3 * len(PROMPTS)}


def test_rows_that_fill_up_the_batch_are_not_searched():
  batch = make_batch(_mask=np.zeros(len(PROMPTS), bool))
  decoded = generate("beam(3, 0.6)", batch=batch, num_answers=3)
  assert len(CALLS) == 1
  assert np.all(decoded.tokens == PAD) and np.all(decoded.log_probs == 0)
  assert np.all(decoded.num_tokens == 0) and np.all(np.isneginf(decoded.score))


def test_places_without_an_answer_are_empty():
  table = make_table(vocabulary=3)
  decoded = generate("beam(5)", table, max_decode_len=1, num_answers=5)
  np.testing.assert_array_equal(decoded.num_tokens, [[1, 1, 1, 0, 0]] * 4)
  np.testing.assert_array_equal(decoded.tokens[:, 0, 0], EOS)
  assert np.all(np.isfinite(decoded.score[:, :3]))
  assert np.all(np.isneginf(decoded.score[:, 3:]))
  assert np.all(decoded.log_probs[:, 3:] == 0)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_best_of_ranks_independent_draws(alpha):
  table, rng = make_table(eos_logit=1.0), jax.random.key(3)
  sampler = samplers.TopK(7, 2.0)
  each = {key: np.repeat(x, 5, axis=0) for key, x in make_batch().items()}
  drawn = generate(sampler, table, batch=each, rng=rng)
  best = samplers.BestOf(5, sampler, alpha)
  best = generate(best, table, rng=rng, num_answers=5)
  assert CALLS[:2] == [len(PROMPTS), 5 * len(PROMPTS)]
  for row in range(len(PROMPTS)):
    answers = []
    for n in range(5 * row, 5 * row + 5):
      answer = tuple(drawn.tokens[n, : drawn.num_tokens[n]].tolist())
      answers.append((answer, drawn.log_probs[n].sum(dtype=np.float64)))
    answers.sort(key=lambda pair: -pair[1] / ((5 + len(pair[0])) / 6) ** alpha)
    assert len(set(answers)) > 2
    assert_answers(best, row, answers, alpha)


def test_best_of_leaves_filling_rows_out():
  sampler = samplers.BestOf(5, samplers.TopK(7, 2.0))
  arguments = {"rng": jax.random.key(0), "num_answers": 5}
  mask = np.array([True, False, True, False])
  filled = generate(sampler, batch=make_batch(_mask=mask), **arguments)
  whole = generate(sampler, **arguments)
  np.testing.assert_array_equal(filled.num_tokens.min(axis=1) > 0, mask)
  np.testing.assert_array_equal(filled.score[mask], whole.score[mask])
  assert np.all(np.isneginf(filled.score[~mask]))


@pytest.mark.parametrize(
  ("sampler", "num_answers", "message"),
  [
    ("greedy", 2, r"num_answers=2, expected 1 to 1: what Greedy\(\) finds"),
    ("beam(3)", 4, r"num_answers=4, expected 1 to 3: what Beam\(beam_size=3"),
    ("beam(3)", 0, "num_answers=0, expected 1 to 3"),
    ("best_of(2)", None, r"BestOf\(n=2.* give generate an rng"),
  ],
)
def test_errors(sampler, num_answers, message):
  with pytest.raises(ValueError, match=message):
    generate(sampler, num_answers=num_answers)
