"""From requests to answers: out of the event loop, and back into it."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from paligemma.serving.request import Closed, End, Full, Request, Token
from scripts.serving import errors
from scripts.serving.errors import Refused
from scripts.serving.served import Served

# Of answers numbered from 0, in the order in which they come.
Events = asyncio.Queue[tuple[int, Token | End]]


class Answer(NamedTuple):
  """A whole answer: its tokens and its end."""

  tokens: list[Token]
  end: End


async def cancelling() -> AsyncIterator[contextlib.ExitStack]:
  """What is to be undone when a request has been answered or nobody waits."""
  with contextlib.ExitStack() as stack:
    yield stack


async def start(
  served: Served,
  make: Callable[[], Sequence[Request]],
  cancels: contextlib.ExitStack,
) -> Events:
  """Submits requests to the engine; each token wakes the event loop.

  Args:
    served: whose engine and workers are used.
    make: makes the requests, in a worker, as pictures take a while.
    cancels: of `cancelling`.

  Raises:
    Refused: as `make`, or the engine does not take them.
  """
  loop, events = asyncio.get_running_loop(), asyncio.Queue()

  def put(index, event):
    loop.call_soon_threadsafe(events.put_nowait, (index, event))

  def callbacks(index):
    on_event = functools.partial(put, index)
    return on_event, on_event

  await _submit(served, make, cancels, callbacks)
  return events


async def whole(
  served: Served,
  make: Callable[[], Sequence[Request]],
  cancels: contextlib.ExitStack,
) -> list[Answer]:
  """Submits requests and waits for their ends, which wake the event loop.

  Args:
    served, make, cancels: as of `start`.

  Raises:
    Refused: as `start` and `check`.
  """
  loop, futures = asyncio.get_running_loop(), []

  def settle(future, answer):
    if not future.done():  # as it is when nobody waits any more
      future.set_result(answer)

  def callbacks(index):
    tokens, future = [], loop.create_future()
    futures.append(future)

    def on_end(end):
      loop.call_soon_threadsafe(settle, future, Answer(tokens, end))

    return tokens.append, on_end

  await _submit(served, make, cancels, callbacks)
  found = [await future for future in futures]
  for answer in found:
    check(answer.end)
  return found


async def _submit(served, make, cancels, callbacks):
  """Submits requests; callbacks(index) are on_token and on_end of one."""
  running, stopped = [], threading.Event()

  def stop():
    stopped.set()
    for cancel in tuple(running):
      cancel()

  def submit():
    for i, request in enumerate(() if stopped.is_set() else make()):
      running.append(served.engine.submit(request, *callbacks(i)))
    if stopped.is_set():
      stop()

  cancels.callback(stop)
  try:
    await served.run(submit)
  except (Full, Closed, ValueError) as error:
    raise errors.of(error) from None


def check(end: End) -> None:
  """Raises if an answer has not come to an end of its own.

  Raises:
    Refused: 504 after the deadline, 503 when the server ends, 500 for an error.
  """
  if end.reason == "deadline":
    raise Refused(504, "the deadline passed before the answer was complete")
  if end.reason == "cancelled":
    raise Refused(503, "the server is ending", retry_after=5)
  if end.reason == "error":
    raise Refused(500, end.message or "the model failed")
