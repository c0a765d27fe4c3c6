"""What an engine is asked, and what it answers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np

from paligemma.decoding.grammar import automaton

Reason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt, about pictures or alone, and how it is to be answered.

  Attributes:
    prompt: e.g. "detect cat".
    images: decoded pictures, uint8[H, W, 3] each; none for a decoder alone.
    adapter: name of one of the engine's adapters; None asks the base.
    max_tokens: most tokens of the answer, eos included.
    temperature: of the draw; 0 takes the most probable token.
    top_p: mass of probability that is drawn from, in (0, 1].
    seed: of the draw; the same request is answered alike whatever is decoded
      beside it.
    stop: texts before which the answer ends; they are left out.
    grammar: what the answer may be, from grammar.make; None allows all.
    top_log_probs: how many of the most probable tokens are told with each.
    deadline: seconds from now until an answer is of no use, waiting included.
  """

  prompt: str
  images: tuple[np.ndarray, ...] = ()
  adapter: str | None = None
  max_tokens: int = 64
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0
  stop: tuple[str, ...] = ()
  grammar: automaton.Grammar | None = None
  top_log_probs: int = 0
  deadline: float = 60.0


class Token(NamedTuple):
  """One token of an answer.

  Attributes:
    text: what it adds to the answer; "" while bytes of a character are missing
      or what was written may become a stop text.
    id: of the vocabulary.
    log_prob: under the model's softmax at temperature 1, whatever sampler and
      grammar did.
    top: (id, log_prob) of the most probable tokens, best first.
  """

  text: str
  id: int
  log_prob: float
  top: tuple[tuple[int, float], ...] = ()


class End(NamedTuple):
  """The end of an answer.

  Attributes:
    reason: "stop" at eos or a stop text, "length" at max_tokens.
    text: the whole answer.
    prompt_tokens: positions of image and prompt together.
    tokens: how many were decoded, eos included.
    message: what went wrong, with reason "error".
  """

  reason: Reason
  text: str
  prompt_tokens: int
  tokens: int
  message: str = ""


class Full(Exception):
  """As many requests wait as may."""


class Closed(Exception):
  """The engine ends and takes no request any more."""


class Engine(Protocol):
  """Answers requests in a thread of its own, many at a time."""

  adapters: tuple[str, ...]

  def submit(
    self,
    request: Request,
    on_token: Callable[[Token], None],
    on_end: Callable[[End], None],
  ) -> Callable[[], None]:
    """Queues a request.

    The functions are called in the engine's thread and must return at once;
    on_end is called exactly once, last.

    Returns:
      A function that cancels the request and frees its place.

    Raises:
      ValueError: prompt, pictures, adapter or grammar do not fit the model.
      Full, Closed: try later; never.
    """

  def counts(self) -> Mapping[str, int]:
    """Requests waiting and active, places, tokens and requests so far, hits and
    misses of the cache of image embeddings."""

  def close(self, seconds: float) -> None:
    """Takes no more requests, answers the active ones within the time."""
