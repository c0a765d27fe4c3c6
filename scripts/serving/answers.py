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
  """Submits requests to the engine.

  Args:
    served: whose engine and workers are used.
    make: makes the requests, in a worker, as pictures take a while.
    cancels: of `cancelling`.

  Raises:
    Refused: as `make`, or the engine does not take them.
  """
  loop, events = asyncio.get_running_loop(), asyncio.Queue()
  running, stopped = [], threading.Event()

  def stop():
    stopped.set()
    for cancel in tuple(running):
      cancel()

  def put(index, event):
    loop.call_soon_threadsafe(events.put_nowait, (index, event))

  def submit():
    for i, request in enumerate(() if stopped.is_set() else make()):
      on_event = functools.partial(put, i)
      running.append(served.engine.submit(request, on_event, on_event))
    if stopped.is_set():
      stop()

  cancels.callback(stop)
  try:
    await served.run(submit)
  except (Full, Closed, ValueError) as error:
    raise errors.of(error) from None
  return events


async def whole(events: Events, count: int) -> list[Answer]:
  """Waits for the ends of so many answers.

  Raises:
    Refused: as `check`.
  """
  tokens, ends = [[] for _ in range(count)], {}
  while len(ends) < count:
    index, event = await events.get()
    if isinstance(event, End):
      check(event)
      ends[index] = event
    else:
      tokens[index].append(event)
  return [Answer(tokens[i], ends[i]) for i in range(count)]


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
