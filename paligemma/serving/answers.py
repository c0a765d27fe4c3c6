"""One answer as it grows: token by token, from ids to text, until it ends."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from paligemma.data.tokenizer import Tokenizer
from paligemma.decoding.grammar import automaton
from paligemma.serving import places
from paligemma.serving.images import Picture
from paligemma.serving.request import End, Reason, Request, Token

_INCOMPLETE = "\ufffd"  # what stands for the first bytes of a character


class Prompt(NamedTuple):
  """What a model reads of a request.

  Attributes:
    pictures: Resized.
    text: As of sequence.prompt.
    adapter: Index into the argument of lora.gather.stack.
    num_tokens: Positions of pictures and text.
    ends: Ids that end the answer.
    tokenizer: Of the model.
  """

  pictures: tuple[Picture, ...]
  text: Mapping[str, np.ndarray]
  adapter: int
  num_tokens: int
  ends: Collection[int]
  tokenizer: Tokenizer

  @property
  def shape(self) -> tuple[int, int]:
    """Number of pictures and length of the text; those alike read together."""
    return len(self.pictures), len(self.text["text"])


class Answer:
  """A request under way; used by one thread, but for `cancel`.

  Attributes:
    request, prompt: What is asked, and what is read of it.
  """

  def __init__(
    self,
    request: Request,
    on_token: Callable[[Token], None],
    on_end: Callable[[End], None],
    prompt: Prompt,
  ):
    self.request, self.prompt = request, prompt
    self._on_token, self._on_end = on_token, on_end
    self._due = time.monotonic() + request.deadline
    self._cancelled = False
    self._ids, self._text, self._told = [], "", ""
    grammar = request.grammar
    self._follower = None if grammar is None else Follower(grammar)

  def cancel(self) -> None:
    """Says that nobody waits for the answer; from any thread."""
    self._cancelled = True

  def why_over(self) -> Reason | None:
    """Whether nobody waits for the answer any more."""
    if self._cancelled:
      return "cancelled"
    return "deadline" if time.monotonic() > self._due else None

  def row(self) -> places.Row:
    """How the next token is to be chosen."""
    request, position = self.request, len(self._ids)
    row = places.Row(
      position,
      request.temperature,
      request.top_p,
      request.seed % 2**32,
      request.top_log_probs > 0,
    )
    if self._follower is None:
      return row
    allowed, floor = self._follower.allowed(request.max_tokens - position)
    return row._replace(allowed=allowed, floor=floor)

  def add(
    self,
    id: int,
    log_prob: float,
    told: Sequence[int],
    told_log_probs: Sequence[float],
  ) -> Reason | None:
    """Takes the next token of places.Chosen and tells it.

    Returns:
      Why the answer is over, or None.
    """
    if self._follower is not None:
      self._follower.advance(id)
    self._ids.append(id)
    reason = None
    is_end = id in self.prompt.ends
    if is_end:
      reason = "stop"
    elif len(self._ids) == self.request.max_tokens:
      reason = "length"
    written = self._ids[:-1] if is_end else self._ids
    text = self.prompt.tokenizer.decode(written)
    found = [text.find(stop, len(self._told)) for stop in self.request.stop]
    if found := [i for i in found if i >= 0]:
      text, reason = text[: min(found)], "stop"
    self._text = text
    stable = text if reason else self._stable(text)
    new, self._told = stable[len(self._told) :], stable
    top = list(zip(told, told_log_probs, strict=True))
    top = tuple(top[: self.request.top_log_probs])
    self._on_token(Token(new, id, log_prob, top))
    return reason

  def end(self, reason: Reason, message: str = "") -> None:
    """Tells the end."""
    read, written = self.prompt.num_tokens, len(self._ids)
    self._on_end(End(reason, self._text, read, written, message))

  def _stable(self, text):
    """The text without what the next tokens may change or take off."""
    text = text.rstrip(_INCOMPLETE)
    longest = max(map(len, self.request.stop), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
      if any(stop.startswith(text[-length:]) for stop in self.request.stop):
        text = text[:-length]
        break
    return text if len(text) > len(self._told) else self._told


class Follower:
  """The state of a grammar after some tokens, on the host.

  What automaton.restrict and automaton.advance do in a compiled loop.
  """

  def __init__(self, grammar: automaton.Grammar):
    self._grammar = automaton.Grammar(*map(np.asarray, grammar))
    self._node, self._before = automaton.START, (-1, -1)

  def allowed(self, left: int) -> tuple[np.ndarray, int]:
    """Returns which classes are allowed, and which id is too low.

    Args:
      left: Number of tokens left, the next one and eos included.
    """
    target = self._grammar.target[self._node]
    allowed = (target >= 0) & (self._grammar.distance[target] < left)
    rising = self._grammar.rising[self._node]
    return allowed, self._before[0] if rising else -1

  def advance(self, id: int) -> None:
    """Takes the next token."""
    kind = self._grammar.class_of_token[id]
    self._node = max(int(self._grammar.target[self._node, kind]), automaton.END)
    self._before = self._before[1], id
