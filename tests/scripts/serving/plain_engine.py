"""An engine without a model: it answers with the prompt, word for word."""

import collections
import threading
import time

from paligemma.serving import request


class PlainEngine:
  """Implements request.Engine.

  Args:
    tokenizer: of the answers.
    seconds: that a token takes.
    answer: in place of the prompt.
    max_waiting: most requests at a time.
  """

  adapters = ("cats", "dogs")
  ready = True

  def __init__(self, tokenizer, *, seconds=0.0, max_waiting=64, answer=None):
    self._tokenizer, self._seconds = tokenizer, seconds
    self._text = answer
    self._most = max_waiting
    self.active = set()
    self.ends = collections.Counter()
    self.closed = False
    self.asked = []

  def submit(self, asked, on_token, on_end):
    if self.closed:
      raise request.Closed
    if len(self.active) >= self._most:
      raise request.Full
    if "<image>" in asked.prompt:
      raise ValueError("prompt holds <image>")
    text = f"{asked.adapter or 'base'}: {asked.prompt}, {len(asked.images)}"
    ids = self._tokenizer.encode(self._text or text)
    self.asked.append(asked)
    cancelled = threading.Event()
    answer = threading.Thread(
      target=self._answer, args=(asked, ids, cancelled, on_token, on_end)
    )
    self.active.add(answer)
    answer.start()
    return cancelled.set

  def _answer(self, asked, ids, cancelled, on_token, on_end):
    ids = [*ids, self._tokenizer.eos_id]
    until = time.monotonic() + asked.deadline
    told, reason = [], "stop"
    for i in ids[: asked.max_tokens]:
      if cancelled.wait(self._seconds):
        reason = "cancelled"
        break
      if time.monotonic() > until:
        reason = "deadline"
        break
      piece = self._tokenizer.pieces([*told, i])[-1]
      told.append(i)
      top = tuple((k, -1.0 - k) for k in range(asked.top_log_probs))
      on_token(request.Token(piece, i, -0.5, top))
    else:
      reason = "stop" if len(told) == len(ids) else "length"
    self.active.discard(threading.current_thread())
    self.ends[reason] += 1
    text = self._tokenizer.decode(told)
    on_end(request.End(reason, text, 7, len(told)))

  def counts(self):
    return {"requests_active": len(self.active), "tokens": 3}

  def close(self, seconds):
    self.closed = True
    for answer in list(self.active):
      answer.join(seconds)
