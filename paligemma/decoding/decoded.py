"""Decoded answers, as arrays."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Decoded(NamedTuple):
  """Answers to a batch of prompts; after eos there is padding.

  With eos = 1, pad = 0 and L = 5, an answer that ends early, one that does not,
  and an example that only fills up the batch:

    tokens      7 9 1 0 0     7 9 7 9 7     0 0 0 0 0
    log_probs   x x x 0 0     x x x x x     0 0 0 0 0
    num_tokens  3             5             0

  Axes: B prompts, and a second one if several answers are asked for; L most
  tokens of an answer.

  Attributes:
    tokens: token ids.
    log_probs: log-probability of each token under the model's own softmax, at
      temperature 1 over the whole vocabulary, whatever sampler and grammar did.
    num_tokens: tokens up to and including eos.
    score: what the answers to a prompt are ranked by: the sum of log_probs,
      divided by the sampler's length penalty if it has one, see samplers.score;
      -inf where there is no answer.
  """

  tokens: Int[Array, "*B L"]
  log_probs: Float[Array, "*B L"]
  num_tokens: Int[Array, "*B"]
  score: Float[Array, "*B"]
