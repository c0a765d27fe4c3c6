import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.decoding import samplers
from tests import typecheck

RNG = jax.random.key(0)
# Probabilities .5 .25 .15 .07 .03 in scrambled order: ids 3, 0, 4, 1, 2.
PROBS = np.array([0.25, 0.07, 0.03, 0.5, 0.15])
DRAWS = 20_011


def draw(sampler, logits, *, draws=DRAWS, rng=RNG):
  """Frequencies f64[V] of many draws from one row of logits."""
  rows = jnp.tile(jnp.asarray(logits, jnp.float32), (draws, 1))
  tokens = sampler(rows, rng)
  assert tokens.shape == (draws,) and tokens.dtype == jnp.int32
  return np.bincount(tokens, minlength=len(logits)) / draws


def assert_drawn_from(frequencies, probs):
  """Chi-square test; 25 is passed by chance once in 20,000 (4 degrees)."""
  probs = np.asarray(probs) / np.sum(probs)
  np.testing.assert_array_equal(frequencies[probs == 0], 0)
  kept = probs > 0
  difference = frequencies[kept] - probs[kept]
  assert DRAWS * np.sum(difference**2 / probs[kept]) < 25


def kept_ids(sampler, logits):
  """Ids that are ever drawn."""
  return set(np.flatnonzero(draw(sampler, logits)))


def test_greedy_takes_the_highest_and_the_first_of_equals():
  logits = jnp.array([[0.0, 3.0, 1.0], [2.0, 1.0, 2.0]])
  np.testing.assert_array_equal(samplers.Greedy()(logits), [1, 0])
  assert samplers.Greedy()(logits).dtype == jnp.int32


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_temperature_draws_from_the_tempered_softmax(temperature):
  frequencies = draw(samplers.Temperature(temperature), np.log(PROBS) + 7)
  assert_drawn_from(frequencies, PROBS ** (1 / temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_draws_from_the_k_most_probable(k, temperature):
  frequencies = draw(samplers.TopK(k, temperature), np.log(PROBS))
  border = np.sort(PROBS)[-k]
  kept = np.where(border <= PROBS, PROBS, 0)
  assert_drawn_from(frequencies, kept ** (1 / temperature))


@pytest.mark.parametrize("k", [5, 40])
def test_top_k_of_the_whole_vocabulary_is_temperature(k):
  assert_drawn_from(draw(samplers.TopK(k), np.log(PROBS)), PROBS)


def test_top_k_keeps_exactly_k_of_equals_the_lower_ids():
  assert kept_ids(samplers.TopK(2), [0.0, 1.0, 1.0, 1.0]) == {1, 2}


def nucleus(probs, p):
  """NumPy: probabilities of the smallest set with mass >= p, others 0."""
  kept, mass = np.zeros_like(probs), 0.0
  for token in np.argsort(-probs, kind="stable"):
    kept[token] = probs[token]
    mass += probs[token]
    if mass >= p:
      return kept
  return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("p", [1e-6, 0.6, 0.93, 1.0])
def test_nucleus_draws_from_the_smallest_set_with_the_mass(p, temperature):
  frequencies = draw(samplers.Nucleus(p, temperature), np.log(PROBS))
  tempered = PROBS ** (1 / temperature)
  assert_drawn_from(frequencies, nucleus(tempered / tempered.sum(), p))


def test_nucleus_stops_at_the_token_that_reaches_the_mass():
  # The masses 0.5, 0.75, 0.875, 1 are exact in float32.
  logits = np.log([0.125, 0.5, 0.125, 0.25])
  assert kept_ids(samplers.Nucleus(0.5), logits) == {1}
  assert kept_ids(samplers.Nucleus(0.51), logits) == {1, 3}
  assert kept_ids(samplers.Nucleus(0.75), logits) == {1, 3}


def test_nucleus_keeps_the_lower_ids_of_equals():
  assert kept_ids(samplers.Nucleus(0.5), [1.0, 1.0, 1.0, 1.0]) == {0, 1}


def test_nucleus_is_chosen_in_every_row_apart():
  probs = np.array([[0.9, 0.05, 0.05], [0.1, 0.3, 0.6]])
  rows = jnp.repeat(jnp.asarray(np.log(probs), jnp.float32), 997, axis=0)
  tokens = np.asarray(samplers.Nucleus(0.8)(rows, RNG)).reshape(2, 997)
  assert set(tokens[0]) == {0}
  assert set(tokens[1]) == {1, 2}


# Those that choose among answers are tested in test_beam.py.
AMONG_ANSWERS = {"beam", "best_of"}


@pytest.mark.parametrize("name", sorted(set(samplers.SAMPLERS) - AMONG_ANSWERS))
def test_same_rng_same_tokens(name):
  sampler = samplers.make(name)
  logits = jax.random.normal(jax.random.key(1), (31, 17))
  first, again = sampler(logits, RNG), sampler(logits, RNG)
  np.testing.assert_array_equal(first, again)
  other = sampler(logits, jax.random.key(2))
  assert sampler.stochastic == bool(np.any(first != other))


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
def test_samplers_are_values(name):
  assert samplers.make(name) == samplers.make(name)
  assert hash(samplers.make(name)) == hash(samplers.make(name))


@pytest.mark.parametrize(
  ("text", "sampler"),
  [
    ("greedy", samplers.Greedy()),
    ("greedy()", samplers.Greedy()),
    (" nucleus(0.3)", samplers.Nucleus(p=0.3)),
    ("top_k(temperature=0.7, k=3)", samplers.TopK(3, 0.7)),
    ("top_k(3, temperature=2)", samplers.TopK(3, 2)),
    ("beam(beam_size=3,length_penalty=.6)", samplers.Beam(3, 0.6)),
    ("best_of", samplers.BestOf(8, samplers.Temperature(1.0))),
    ("best_of(4, nucleus(0.5))", samplers.BestOf(4, samplers.Nucleus(0.5))),
    ("best_of(sampler=top_k)", samplers.BestOf(8, samplers.TopK())),
    (samplers.TopK(3), samplers.TopK(3)),
  ],
)
def test_make(text, sampler):
  assert samplers.make(text) == sampler
  assert samplers.make(samplers.make(text)) == sampler


def test_score_is_worked_out_by_hand():
  # (5 + 7) / 6 = 2 and (5 + 1) / 6 = 1.
  log_prob = jnp.array([-3.0, -3.0, -np.inf])
  num_tokens = jnp.array([7, 1, 0])
  for alpha, expected in (
    (0.0, [-3, -3]),
    (1.0, [-1.5, -3]),
    (2.0, [-0.75, -3]),
  ):
    score = samplers.score(log_prob, num_tokens, alpha)
    np.testing.assert_allclose(score, [*expected, -np.inf])


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: samplers.make(3), "sampler is 3, expected a name or a function"),
    (lambda: samplers.make("gredy"), 'Did you mean "greedy"'),
    (lambda: samplers.make("top_k(temprature=2)"), 'mean "temperature"'),
    (lambda: samplers.make("best_of(2, nuclus)"), 'Did you mean "nucleus"'),
    (lambda: samplers.make("top-k"), '"top-k": cannot read "top - k"'),
    (lambda: samplers.make("beam(4"), r'sampler "beam\(4": .*was never closed'),
    (lambda: samplers.make("greedy(3)"), r"greedy\(3\).* too many positional"),
    (lambda: samplers.make("nucleus('a')"), r"nucleus\('a'\).* not supported"),
    (lambda: samplers.make("a.b()"), 'unknown sampler "a.b"'),
    (lambda: samplers.make("3"), 'sampler "3": cannot read "3", expected a'),
    (lambda: samplers.make("top_k(**{})"), 'unknown argument of top_k "None"'),
    (lambda: samplers.TopK(0), "k=0, expected a whole number of at least 1"),
    (lambda: samplers.Beam(2.0), "Beam: beam_size=2.0, expected a whole"),
    (lambda: samplers.Beam(2, -1), "Beam: length_penalty=-1, expected 0 or"),
    (lambda: samplers.BestOf(0), "BestOf: n=0, expected a whole number"),
    (
      lambda: samplers.BestOf(2, samplers.Greedy()),
      "Greedy.*expected one that",
    ),
    (
      lambda: samplers.BestOf(2, samplers.Beam()),
      "Beam.*expected one that draw",
    ),
    (lambda: samplers.BestOf(2, 0.9), "sampler=0.9, expected one that draws"),
    (lambda: samplers.Nucleus(0.0), r"p=0.0, expected a mass in \(0, 1\]"),
    (lambda: samplers.Nucleus(1.5), r"p=1.5, expected a mass in \(0, 1\]"),
    (lambda: samplers.Temperature(0), 'temperature=0, .* use "greedy"'),
    (lambda: samplers.TopK(3, -1.0), "TopK: temperature=-1.0"),
    (lambda: samplers.Nucleus(0.5, 0.0), "Nucleus: temperature=0.0"),
  ],
)
@typecheck.off()
def test_errors(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def test_a_function_samples():
  def second(logits, rng):
    return jax.lax.top_k(logits, 2)[1][:, 1]

  sampler = samplers.make(second)
  assert sampler == samplers.make(second)  # or it would compile each time
  logits = jnp.array([[0.0, 3.0, 2.0], [5.0, 1.0, 4.0]])
  np.testing.assert_array_equal(sampler(logits, jax.random.key(0)), [2, 2])
  assert samplers.make(sampler) is sampler
