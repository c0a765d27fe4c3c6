"""What one server serves: the model, the names it goes by, its workers."""

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

from paligemma.data import chat, objects, tokenizer
from paligemma.decoding import grammar
from paligemma.decoding.grammar import automaton, pieces
from paligemma.serving.request import Engine
from scripts.serving.errors import Refused
from scripts.serving.limits import Limits

WORKERS = 2  # threads that decode pictures

_MOST_BYTES = 2**24  # of a grammar, as several are kept


@dataclasses.dataclass(frozen=True)
class Served:
  """What the endpoints need.

  Attributes:
    name: of the base model.
    engine: answers.
    tokenizer: of the checkpoint.
    sees: whether the model has an image tower.
    max_tokens: most tokens of an answer.
    deadline: seconds for an answer, waiting included.
    decode_masks: decodes the codes of masks; None without a codec.
    hosts: from which pictures may be fetched.
    limits: of requests.
    created: when the server was started, in seconds since 1970.
  """

  name: str
  engine: Engine
  tokenizer: tokenizer.Tokenizer
  sees: bool
  max_tokens: int
  deadline: float = 60.0
  decode_masks: objects.DecodeMasks | None = None
  hosts: tuple[str, ...] = ()
  limits: Limits = dataclasses.field(default_factory=Limits)
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))
  workers: futures.ThreadPoolExecutor = dataclasses.field(
    default_factory=lambda: futures.ThreadPoolExecutor(WORKERS)
  )
  compiler: futures.ThreadPoolExecutor = dataclasses.field(
    default_factory=lambda: futures.ThreadPoolExecutor(1)
  )

  def adapter(self, model: str) -> str | None:
    """The adapter that a model's name means; None for the base.

    Raises:
      Refused: there is no such model.
    """
    if model == self.name:
      return None
    if model in self.engine.adapters:
      return model
    known = ", ".join([self.name, *self.engine.adapters])
    raise Refused(
      404,
      f'there is no model "{model:.100}", expected one of: {known}',
      param="model",
      code="model_not_found",
    )

  def tokens(self, wanted: int | None) -> int:
    """Most tokens of an answer.

    Raises:
      Refused: more are wanted than the server gives.
    """
    if wanted is not None and wanted > self.max_tokens:
      raise Refused(
        400,
        f"{wanted} tokens, this server answers with at most {self.max_tokens}",
        param="max_tokens",
      )
    return wanted or self.max_tokens

  async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a worker, where it may take a while."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self.workers, function, *arguments)

  async def compile(self, name: str, *arguments: Any) -> automaton.Grammar:
    """Compiles a grammar, as `grammar`, where pictures do not wait for it."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(
      self.compiler, self.grammar, name, *arguments
    )

  @functools.cached_property
  def has_turns(self) -> bool:
    """Whether the tokenizer knows the template of conversations."""
    return len(self.tokenizer.encode(chat.END)) == 1

  def written(self, token: int) -> bytes:
    """What a token of the vocabulary writes."""
    found = self._pieces
    return found[token] if token < len(found) else b""

  @functools.cached_property
  def _pieces(self):
    return pieces.of(self.tokenizer)

  @functools.cached_property
  def grammar(self) -> Callable[..., automaton.Grammar]:
    """Compiles a grammar by its name in grammar.GRAMMARS and its arguments.

    "make" compiles a text such as 'boxes(["cat"])'.
    """

    @functools.lru_cache(maxsize=16)
    def compiled(name: str, *arguments: Any) -> automaton.Grammar:
      if name == "make":
        found = grammar.make(*arguments, self.tokenizer)
      else:
        found = grammar.GRAMMARS[name](self.tokenizer, *arguments)
      if found.target.nbytes > _MOST_BYTES:
        states, classes = found.target.shape
        raise ValueError(
          f"grammar has {states} states x {classes} classes of tokens, "
          f"expected at most {_MOST_BYTES // 4} in all"
        )
      return found

    return compiled
