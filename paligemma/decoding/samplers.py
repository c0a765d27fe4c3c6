"""How answers are chosen: token by token, or among several complete answers.

`Greedy`, `Temperature`, `TopK` and `Nucleus` choose tokens. Equal logits are
ranked by token id, the lower first, so top-k and nucleus keep the same set on
every backend.

`Beam` and `BestOf` choose among answers; decode.generate runs them. All are
frozen (hashable) dataclasses that can be written as strings, see `make`.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from paligemma import registry

Logits = Float[Array, "B V"]
Ids = Int[Array, " B"]


@runtime_checkable
class Sampler(Protocol):
  """Chooses one token id per example from the logits of the next token."""

  stochastic: ClassVar[bool]  # whether it needs a key; if not, rng may be None

  def __call__(self, logits: Logits, rng: jax.Array | None) -> Ids: ...


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The most probable token."""

  stochastic: ClassVar[bool] = False

  def __call__(self, logits: Logits, rng: jax.Array | None = None) -> Ids:
    # jnp.argmax takes three times as long on CPUs, a tenth of a small model.
    is_less = logits < jnp.max(logits, axis=-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    return jnp.min(jnp.where(is_less, logits.shape[-1], ids), axis=-1)


@dataclasses.dataclass(frozen=True)
class Temperature:
  """A draw from softmax(logits / temperature) over the whole vocabulary.

  Attributes:
    temperature: positive; below 1 sharpens the distribution, above 1 flattens.
  """

  stochastic: ClassVar[bool] = True
  temperature: float = 1.0

  def __post_init__(self):
    _check_temperature(self)

  def __call__(self, logits: Logits, rng: jax.Array) -> Ids:
    token = jax.random.categorical(rng, logits / self.temperature)
    return token.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class TopK:
  """A draw from the k most probable tokens, renormalised.

  Exactly k tokens are kept, whatever the temperature. With k at or above the
  vocabulary size this is `Temperature`.

  Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1.
  """

  stochastic: ClassVar[bool] = True
  k: int = 40
  temperature: float = 1.0

  def __post_init__(self):
    _check_temperature(self)
    _check_count(self, "k")

  def __call__(self, logits: Logits, rng: jax.Array) -> Ids:
    kept, ids = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))
    return _draw(rng, kept / self.temperature, ids)


@dataclasses.dataclass(frozen=True)
class Nucleus:
  """A draw from the smallest set of most probable tokens of total mass p.

  A token is kept if the mass of all more probable ones is below p. So at least
  one token is kept, the token that reaches p is the last, and p = 1 keeps all
  up to float32 rounding of the running sum.

  Attributes:
    p: mass of softmax(logits / temperature) to keep, 0 < p <= 1.
    temperature: as in `Temperature`; applied before the set is chosen.

  Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
  section 3.1, equations 2 and 3.
  """

  stochastic: ClassVar[bool] = True
  p: float = 0.9
  temperature: float = 1.0

  def __post_init__(self):
    _check_temperature(self)
    _check(self, "p", 0 < self.p <= 1, "a mass in (0, 1]")

  def __call__(self, logits: Logits, rng: jax.Array) -> Ids:
    ranked, ids = rank_nucleus(logits, self.p, self.temperature)
    return _draw(rng, ranked, ids)


@dataclasses.dataclass(frozen=True)
class Beam:
  """Beam search for the answer with the highest score, see decoding/beam.py.

  Attributes:
    beam_size: answers followed at a time. 1 without length penalty is
      `Greedy`.
    length_penalty: alpha of `score`, 0 or more.
  """

  stochastic: ClassVar[bool] = False
  beam_size: int = 4
  length_penalty: float = 0.0

  def __post_init__(self):
    _check_count(self, "beam_size")
    _check_length_penalty(self)


@dataclasses.dataclass(frozen=True)
class BestOf:
  """The best of n independently drawn answers, by the model's own score.

  Without length penalty the most probable of the n answers wins, as with
  best_of_n of big_vision, and as in beam search. That favours short answers.
  The mean log-probability per token, which others take, favours long and
  repetitive ones; a length penalty of 1 comes close to it.

  Attributes:
    n: answers drawn per prompt.
    sampler: draws the tokens; a stochastic one.
    length_penalty: alpha of `score`, 0 or more.
  """

  stochastic: ClassVar[bool] = True
  n: int = 8
  sampler: Sampler = dataclasses.field(default_factory=Temperature)
  length_penalty: float = 0.0

  def __post_init__(self):
    _check_count(self, "n")
    _check_length_penalty(self)
    draws = callable(self.sampler) and self.sampler.stochastic
    expected = "one that draws tokens at random, such as Temperature()"
    _check(self, "sampler", draws, f"{expected} or Nucleus()")


@dataclasses.dataclass(frozen=True)
class OfFunction:
  """What a function of logits f32[B, V] and a key chooses: ids i32[B]."""

  stochastic: ClassVar[bool] = True
  function: Callable[[jax.Array, jax.Array], jax.Array]

  def __call__(self, logits: jax.Array, rng: jax.Array) -> jax.Array:
    return self.function(logits, rng)


SAMPLERS = {
  "greedy": Greedy,
  "temperature": Temperature,
  "top_k": TopK,
  "nucleus": Nucleus,
  "beam": Beam,
  "best_of": BestOf,
}

AnySampler = Sampler | Beam | BestOf


def make(sampler: str | Callable | AnySampler) -> AnySampler:
  """Builds a sampler from a string or a function, see OfFunction.

  A sampler is returned unchanged. A string has a name in SAMPLERS:

      greedy
      nucleus(0.9)
      beam(beam_size=4, length_penalty=0.6)
      best_of(n=16, sampler=top_k(k=40, temperature=0.7))

  Raises:
    ValueError: unknown name or argument, or a value out of range.
  """
  if hasattr(sampler, "stochastic"):
    return sampler
  if callable(sampler):
    return OfFunction(sampler)
  if not isinstance(sampler, str):
    raise ValueError(
      f"sampler is {sampler!r:.60}, expected a name or a function of logits "
      "and an rng"
    )
  return registry.make(sampler, SAMPLERS, "sampler", nested=True)


def score(
  log_prob: Float[Array, "..."],
  num_tokens: Int[Array, "..."] | int,
  length_penalty: float,
) -> Float[Array, "..."]:
  """Returns what answers are ranked by: log-probability over a length penalty.

      score(Y) = log P(Y | X) / lp(Y),   lp(Y) = ((5 + |Y|) / (5 + 1)) ** alpha

  |Y| includes eos. A length_penalty, alpha, of 0 ranks by probability. The
  larger alpha, the longer the answers, because a log-probability is negative
  and lp grows with the length.

  Source: Wu et al. 2016, "Google's Neural Machine Translation System",
  arXiv:1609.08144, equation 14 without coverage. Its best alpha was 0.2.
  transformers divides by |Y| ** length_penalty.
  """
  return log_prob / ((5.0 + num_tokens) / 6.0) ** length_penalty


def rank_nucleus(
  logits: Logits,
  p: float | Float[Array, "B 1"],
  temperature: float | Float[Array, "B 1"],
) -> tuple[Logits, Int[Array, "B V"]]:
  """Returns logits over temperature, the highest first, and their ids.

  Those that Nucleus does not keep are -inf. p and temperature are those of all
  examples, or of each.
  """
  ids = jnp.argsort(logits, axis=-1, descending=True, stable=True)
  ranked = jnp.take_along_axis(logits, ids, axis=-1) / temperature
  mass = jax.nn.softmax(ranked.astype(jnp.float32), axis=-1)
  # The sum is shifted by one instead of subtracting each token's own mass,
  # because the first entry must be exactly 0.
  before = jnp.pad(jnp.cumsum(mass, axis=-1)[:, :-1], ((0, 0), (1, 0)))
  return jnp.where(before < p, ranked, -jnp.inf), ids


def _draw(rng, logits, ids):
  """Draws one of ids i32[B, K] for each example, by logits f32[B, K]."""
  rank = jax.random.categorical(rng, logits)[:, None]
  return jnp.take_along_axis(ids, rank, axis=-1)[:, 0].astype(jnp.int32)


def _check(sampler, field, is_right, expected):
  if not is_right:
    raise ValueError(
      f"{type(sampler).__name__}: {field}={getattr(sampler, field)!r},"
      f" expected {expected}."
    )


def _check_temperature(sampler):
  expected = 'a positive number; for the most probable token use "greedy"'
  _check(sampler, "temperature", sampler.temperature > 0, expected)


def _check_count(sampler, field):
  value = getattr(sampler, field)
  is_count = isinstance(value, int) and value >= 1
  _check(sampler, field, is_count, "a whole number of at least 1")


def _check_length_penalty(sampler):
  is_right = sampler.length_penalty >= 0
  _check(sampler, "length_penalty", is_right, "0 or more")
