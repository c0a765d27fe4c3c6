"""How the next token is chosen from the logits of one decoding step.

A sampler is a frozen (hashable) dataclass called with

  logits: f32[B, V], unnormalised log-probabilities of the next token.
  rng: a JAX random key, or None where `stochastic` is False.

and returns i32[B], one token id per row. Equal logits are ranked by token id,
the lower first, so top-k and nucleus keep the same set on every backend.
"""

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from paligemma import tree


class Sampler(Protocol):
  """Chooses one token per row; `stochastic` says whether it needs an rng."""

  stochastic: ClassVar[bool]

  def __call__(self, logits: jax.Array, rng: jax.Array | None) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The most probable token."""

  stochastic: ClassVar[bool] = False

  def __call__(self, logits, rng=None):
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


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

  def __call__(self, logits, rng):
    token = jax.random.categorical(rng, logits / self.temperature)
    return token.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class TopK:
  """A draw from the k most probable tokens, renormalised.

  Exactly k tokens take part, ties at the border included: the lower id stays.
  With k at or above the vocabulary this is `Temperature`.

  Attributes:
    k: tokens kept, at least 1.
    temperature: as in `Temperature`; it does not change which tokens are kept.

  Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1.
  """

  stochastic: ClassVar[bool] = True
  k: int = 40
  temperature: float = 1.0

  def __post_init__(self):
    _check_temperature(self)
    if self.k < 1:
      raise ValueError(f"TopK: k={self.k}, expected at least 1 token.")

  def __call__(self, logits, rng):
    kept, ids = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))
    return _draw(rng, kept / self.temperature, ids)


@dataclasses.dataclass(frozen=True)
class Nucleus:
  """A draw from the smallest set of tokens that holds the mass p.

  Tokens are ranked by probability; one is kept while the mass before it is
  below p. So at least one token is kept, the token that reaches p is the last,
  and p = 1 keeps everything up to float32 rounding of the running sum.

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
    if not 0 < self.p <= 1:
      raise ValueError(f"Nucleus: p={self.p}, expected a mass in (0, 1].")

  def __call__(self, logits, rng):
    ids = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(logits, ids, axis=-1) / self.temperature
    mass = jax.nn.softmax(ranked.astype(jnp.float32), axis=-1)
    # The sum is shifted by one rather than reduced by each token's own mass:
    # a difference of sums would round, and the first entry must be exactly 0.
    before = jnp.pad(jnp.cumsum(mass, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    return _draw(rng, jnp.where(before < self.p, ranked, -jnp.inf), ids)


SAMPLERS = {
  "greedy": Greedy,
  "temperature": Temperature,
  "top_k": TopK,
  "nucleus": Nucleus,
}


def make(sampler: str | Sampler, **arguments) -> Sampler:
  """Builds a sampler from its name in SAMPLERS; a sampler is returned as is.

  Args:
    sampler: a name such as "nucleus", or a sampler.
    **arguments: the fields of the named sampler, e.g. p=0.9.

  Returns:
    The sampler.

  Raises:
    ValueError: unknown name or field, or a value out of range.
  """
  if not isinstance(sampler, str):
    if arguments:
      raise ValueError(
        f"{sampler} is built already, arguments {sorted(arguments)} cannot"
        " reach it: give its name instead."
      )
    return sampler
  cls = tree.lookup(SAMPLERS, sampler, "sampler")
  fields = [field.name for field in dataclasses.fields(cls)]
  for name in arguments:
    if name not in fields:
      raise ValueError(
        f'Sampler "{sampler}" has no argument "{name}", expected one of'
        f" {fields}.{tree.did_you_mean(name, fields)}"
      )
  return cls(**arguments)


def _draw(rng, logits, ids):
  """One id per row of ids i32[B, K], drawn by logits f32[B, K]."""
  rank = jax.random.categorical(rng, logits)
  return jnp.take_along_axis(ids, rank[:, None], axis=-1)[:, 0].astype(
    jnp.int32
  )


def _check_temperature(sampler):
  if not sampler.temperature > 0:
    raise ValueError(
      f"{type(sampler).__name__}: temperature={sampler.temperature}, expected"
      ' a positive number; for the most probable token use "greedy".'
    )
