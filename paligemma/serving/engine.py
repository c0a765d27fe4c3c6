"""Answers many requests at a time: one thread, one device, one batch.

    from paligemma.serving import engine, request

    answers = engine.Engine(model, params, tok, adapters={"cats": adapted})
    cancel = answers.submit(
      request.Request("detect cat", (pixels,), adapter="cats"),
      on_token=..., on_end=...,
    )

A round of the thread reads a few prompts into places that are free, and then
decodes one token of every active request. So between two of its tokens an
answer waits for these few prompts at most. What requests ask for, adapter,
sampler and grammar, are arguments of the same few programs.
"""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from paligemma import messages, registry, tree
from paligemma.data import chat, sequence, spelling
from paligemma.data.tokenizer import Tokenizer
from paligemma.decoding.grammar import automaton
from paligemma.lora import apply as lora
from paligemma.lora import gather
from paligemma.models import paligemma as paligemma_model
from paligemma.serving import sizes
from paligemma.serving.answers import Answer, Prompt
from paligemma.serving.images import Images
from paligemma.serving.places import MOST_TOLD, Places, Reading, Row
from paligemma.serving.request import Closed, End, Full, Request, Token

_log = logging.getLogger(__name__)

# Lengths that the text of a prompt is padded to, so that programs are few.
_TEXT_LENGTHS = (32, 256, 2048)
_TEXT = 256  # positions of the longest text, by default


class Engine:
  """Implements request.Engine.

  Args:
    model, params: As `load` returns them, on one device. The decoder's layers
      are copied out of their stack.
    tokenizer: Of the checkpoint.
    adapters: Name -> what `load_adapter` returned for that model.
    places: Most requests that decode together.
    max_prompt: Most positions of a prompt, those of its pictures included.
      Default: one picture and 256 tokens.
    max_tokens: Most tokens of an answer.
    max_waiting: Most requests that wait for a place.
    image_cache_bytes: Memory for the embeddings of pictures that may be asked
      about again; one of 224 pixels takes 2.25 MiB in PaliGemma 2 3B.

  Attributes:
    adapters: Their names.

  Raises:
    ValueError: An argument is out of range, the device has no room for the
      cache, or an adapter differs from the model in more than low-rank
      matrices.
  """

  def __init__(
    self,
    model: paligemma_model.Model,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    adapters: Mapping[str, gather.Adapted] | None = None,
    places: int = 8,
    max_prompt: int | None = None,
    max_tokens: int = 256,
    max_waiting: int = 64,
    image_cache_bytes: int = 2**28,
  ):
    adapters = dict(adapters or {})
    for name, (_, adapted) in adapters.items():
      _check_adapter(name, params, adapted)
    all_adapted = [(model, params), *adapters.values()]
    self.adapters = tuple(adapters)
    self._index = {name: i for i, name in enumerate(adapters, 1)}
    self._tokenizer, self._rows = tokenizer, model.llm.vocab_size
    self._images = None
    if model.img is not None:
      self._images = Images(all_adapted, image_cache_bytes)
    of_picture = self._images.tokens if self._images else 0
    max_prompt = max_prompt or of_picture + _TEXT
    for name, value, least in (
      ("places", places, 1),
      ("max_prompt", max_prompt, of_picture + 1),
      ("max_tokens", max_tokens, 1),
      ("max_waiting", max_waiting, 1),
    ):
      if value < least:
        raise ValueError(f"{name} is {value}, expected {least} or more")
    self._max_prompt, self._max_tokens = max_prompt, max_tokens
    self._max_waiting = max_waiting
    decoders = [(m.clone(img=None), {"llm": p["llm"]}) for m, p in all_adapted]
    stacked = _apart(*gather.stack(decoders))
    self._places = Places(*stacked, places, max_prompt, max_tokens)
    self._active: list[Answer | None] = [None] * places
    self._waiting: list[Answer] = []
    self._changed = threading.Condition()
    self._embedding = threading.Lock()
    self._ready, self._closes_at, self._failure = False, None, ""
    self._tokens = self._requests = 0
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  @property
  def ready(self) -> bool:
    """Whether programs are compiled, and requests are taken."""
    return self._ready and self._closes_at is None and not self._failure

  def submit(
    self,
    request: Request,
    on_token: Callable[[Token], None],
    on_end: Callable[[End], None],
  ) -> Callable[[], None]:
    """See request.Engine; from any thread. The pictures are resized in it."""
    with self._changed:
      self._check_open()
    prompt = self._read(request)
    # What waits keeps no pictures in their own size: 75 MB for 25 megapixels.
    request = dataclasses.replace(request, images=())
    answer = Answer(request, on_token, on_end, prompt)
    with self._changed:
      self._check_open()
      self._waiting.append(answer)
      self._requests += 1
      self._changed.notify()
    return answer.cancel

  def counts(self) -> dict[str, int]:
    """See request.Engine."""
    return {
      "waiting": len(self._waiting),
      "active": sum(x is not None for x in self._active),
      "places": len(self._active),
      "tokens": self._tokens,
      "requests": self._requests,
      "image_hits": self._images.hits if self._images else 0,
      "image_misses": self._images.misses if self._images else 0,
    }

  def embed_images(
    self, images: Sequence[np.ndarray]
  ) -> Float32[np.ndarray, "N D"]:
    """Returns the mean of the tokens of each picture, of the base.

    It runs in the caller's thread, a picture at a time, so that answers under
    way wait for one picture at most.

    Args:
      images: uint8[H, W, 3] each, at least one.

    Raises:
      ValueError: A picture cannot be read, or the model has no image tower.
    """
    if self._images is None:
      raise ValueError("the model has no image tower, it embeds no pictures")
    means = []
    for i, image in enumerate(images):
      picture = self._images.read(image, f"images[{i}]")
      with self._embedding:
        (tokens,) = self._images.embed([(picture, 0)])
        means.append(np.asarray(tokens).mean(axis=0))
    return np.stack(means)

  def close(self, seconds: float = 10.0) -> None:
    """See request.Engine; returns when all requests have ended."""
    with self._changed:
      due = time.monotonic() + seconds
      self._closes_at = min(self._closes_at or math.inf, due)
      self._changed.notify()
    if threading.current_thread() is not self._thread:
      self._thread.join()

  def _check_open(self):
    if self._failure:
      raise Closed(f"the device failed: {self._failure}")
    if self._closes_at is not None:
      raise Closed("the engine is closed")
    if len(self._waiting) >= self._max_waiting:
      raise Full(f"{len(self._waiting)} requests wait already")

  def _read(self, request) -> Prompt:
    """Checks a request and returns what a place reads."""
    _check_ranges(request, self._max_tokens)
    adapter = 0
    if request.adapter is not None:
      adapter = registry.lookup(self._index, request.adapter, "adapter")
    tok, count = self._tokenizer, len(request.images)
    if (self._images is None) != (count == 0):
      expected = "none, as it has no image tower" if count else "at least one"
      raise ValueError(f"{count} pictures for the model, expected {expected}")
    if request.grammar is not None:
      _check_grammar(request, tok)
    text, _ = spelling.read_prompt(request.prompt, count)
    causal = self._images is None
    ids = sequence.encode_prompt(tok, text, causal=causal)
    sequence.check_rows(ids, self._rows)
    before = count * self._images.tokens if self._images else 0
    if before + len(ids) > self._max_prompt:
      raise ValueError(
        f"prompt has {len(ids)} tokens behind {before} of its pictures, "
        f"expected at most {self._max_prompt} together"
      )
    length = next(x for x in self._text_lengths(before) if x >= len(ids))
    return Prompt(
      tuple(
        self._images.read(image, f"images[{i}]")
        for i, image in enumerate(request.images)
      ),
      sequence.prompt(tok, text, length, causal=causal),
      adapter,
      before + len(ids),
      ends={tok.eos_id, chat.end_of_answer(tok, text)},
      tokenizer=tok,
    )

  def _text_lengths(self, before):
    """What texts are padded to, behind so many positions of pictures."""
    room = self._max_prompt - before
    return [*(x for x in _TEXT_LENGTHS if x < room), room]

  def _run(self):
    """The thread."""
    try:
      self._warm_up()
      self._ready = True
      while self._round():
        pass
    except Exception as error:  # of the device: requests cannot cause any
      _log.exception("the device failed, the engine ends")
      with self._changed:
        self._failure = messages.one_line(f"{type(error).__name__}: {error}")
        over = [*self._waiting, *filter(None, self._active)]
        self._waiting.clear()
        self._active = [None] * len(self._active)
      for answer in over:
        self._end(answer, "error", self._failure)

  def _warm_up(self):
    """Compiles what requests with one picture need, so that none waits."""
    images, causal = (), self._images is None
    if self._images:
      images = (self._images.warm_up(),)
    before = sum(map(len, images))
    for length in self._text_lengths(before):
      text = sequence.prompt(self._tokenizer, "", length, causal=causal)
      reading = Reading(images, text, adapter=0)
      for count in {1, min(sizes.TOGETHER, len(self._active))}:
        self._places.prefill(dict.fromkeys(range(count), reading))
    self._decode()

  def _round(self) -> bool:
    """Lets a few requests in, and decodes a token of each active one.

    Returns:
      Whether there may be another round.
    """
    for place, answer in enumerate(self._active):
      if answer is not None and (reason := self._why_over(answer)):
        self._leave(place, reason)
    with self._changed:
      self._changed.wait_for(
        lambda: self._waiting or self._is_busy() or self._closes_at is not None
      )
      closing = self._closes_at is not None
      waiting = [(x, x.why_over()) for x in self._waiting]
      if closing:
        waiting = [(x, reason or "cancelled") for x, reason in waiting]
      stay = [x for x, reason in waiting if not reason]
      free = [i for i, x in enumerate(self._active) if x is None]
      alike = [x for x in stay if x.prompt.shape == stay[0].prompt.shape]
      enter = dict(zip(free, alike[: sizes.TOGETHER], strict=False))
      for place, answer in enter.items():
        self._active[place] = answer
        stay.remove(answer)
      self._waiting = stay
    for answer, reason in waiting:
      if reason:
        self._end(answer, reason)
    if enter:
      self._prefill(enter)
    if self._is_busy():
      self._decode()
    return self._is_busy() or not closing

  def _is_busy(self):
    return any(x is not None for x in self._active)

  def _why_over(self, answer):
    is_late = self._closes_at is not None and time.monotonic() > self._closes_at
    return answer.why_over() or ("cancelled" if is_late else None)

  def _prefill(self, enter):
    """Reads the prompts of answers into their places."""
    prompts = [x.prompt for x in enter.values()]
    images = iter(())
    if self._images:
      wanted = [
        (x, prompt.adapter) for prompt in prompts for x in prompt.pictures
      ]
      images = iter(self._images.embed(wanted))
    readings = (
      Reading(tuple(next(images) for _ in x.pictures), x.text, x.adapter)
      for x in prompts
    )
    self._places.prefill(dict(zip(enter, readings, strict=True)))
    for place, answer in enter.items():
      if (grammar := answer.request.grammar) is not None:
        self._places.restrict(place, grammar.class_of_token)

  def _decode(self):
    free = Row(), 0
    rows, adapters = zip(
      *(
        free if x is None else (x.row(), x.prompt.adapter) for x in self._active
      ),
      strict=True,
    )
    chosen = self._places.choose(rows)
    self._places.extend(chosen.token, adapters)  # runs while the host reads
    chosen = zip(*(x.tolist() for x in jax.device_get(chosen)), strict=True)
    for place, (token, log_prob, *told) in enumerate(chosen):
      answer = self._active[place]
      if answer is None:
        continue
      self._tokens += 1
      try:
        reason, message = answer.add(token, log_prob, *told), ""
      except Exception as error:  # of on_token
        _log.exception("a request failed")
        reason, message = "error", messages.one_line(str(error))
      if reason:
        self._leave(place, reason, message)

  def _leave(self, place, reason, message=""):
    answer, self._active[place] = self._active[place], None
    self._end(answer, reason, message)

  def _end(self, answer, reason, message=""):
    try:
      answer.end(reason, message)
    except Exception:  # of on_end
      _log.exception("on_end of a request failed")


def _apart(model, params):
  """The layers of the decoder apart, as the loop over tokens reads them."""
  if not model.llm.scan:
    return model, jax.device_put(params)
  apart = jax.jit(lambda params: model.unstack_decoder(params)[1])(params)
  return model.clone(llm=model.llm.clone(scan=False)), apart


def _check_adapter(name, params, adapted):
  """That an adapter shares all other parameters with the model."""
  ours, theirs = (
    {n: x for n, x in flat.items() if not is_adapter[n]}
    for flat in map(tree.flatten, (params, adapted))
    for is_adapter in (lora.is_adapter(flat),)
  )
  others = [
    n
    for n in sorted(ours.keys() | theirs.keys())
    if ours.get(n) is not theirs.get(n)
  ]
  if others:
    raise ValueError(
      f'adapter "{name}": {len(others)} parameters beside it are not those of '
      f"the model, such as {others[0]}; expected low-rank matrices alone, from "
      "load_adapter for the same params"
    )


def _check_ranges(request, max_tokens):
  most = f"1 to {max_tokens}"
  in_range = {
    "max_tokens": (1 <= request.max_tokens <= max_tokens, most),
    "temperature": (0 <= request.temperature < math.inf, "0 or more"),
    "top_p": (0 < request.top_p <= 1, "a mass in (0, 1]"),
    "top_log_probs": (
      0 <= request.top_log_probs <= MOST_TOLD,
      f"0 to {MOST_TOLD}",
    ),
    "deadline": (request.deadline > 0, "seconds above 0"),
    "stop": (all(request.stop), "texts of at least one character"),
  }
  for field, (is_right, expected) in in_range.items():
    if not is_right:
      found = messages.shown(repr(getattr(request, field)))
      raise ValueError(f"{field} is {found}, expected {expected}")


def _check_grammar(request, tokenizer):
  automaton.check(request.grammar, request.max_tokens, tokenizer.eos_id)
  known = len(request.grammar.class_of_token)
  if known != tokenizer.vocab_size:
    raise ValueError(
      f"grammar was made for {known} tokens, the tokenizer has "
      f"{tokenizer.vocab_size}: give grammar.make the tokenizer of the model"
    )
