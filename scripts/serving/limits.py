"""Who may ask, how much a request may hold, and how long it may take.

All of it is checked before the application sees a request, and before its body
is read where that is possible.
"""

import asyncio
import dataclasses
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts.serving.errors import Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one server allows.

  Attributes:
    body_bytes: of one request.
    all_bytes: of the bodies of all requests that are being answered.
    values: commas and brackets of a body, about the number of JSON's values.
    body_seconds: until a body must have been sent.
    request_seconds: until a request must have been answered, after its body.
    pixels: of a picture.
    pictures: of one request.
  """

  body_bytes: int = 20_000_000
  all_bytes: int = 256_000_000
  values: int = 100_000
  body_seconds: float = 15.0
  request_seconds: float = 75.0
  pixels: int = 25_000_000
  pictures: int = 16


class Gate:
  """Lets an application see only requests within the limits.

  Args:
    app: what answers.
    limits: as above.
    hosts: names under which the server may be addressed; others are those of a
      foreign page that a browser was made to send here (DNS rebinding). None
      allows all.
    token: what "Authorization: Bearer" must give; None allows all.
    free: paths that need no token.
  """

  def __init__(
    self,
    app: ASGIApp,
    *,
    limits: Limits,
    hosts: Collection[str] | None,
    token: str | None,
    free: Collection[str],
  ):
    self._app, self._limits, self._hosts = app, limits, hosts
    self._token = token and token.encode()
    self._free = free
    self._bytes = 0  # of all bodies

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers one request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    body = bytearray()
    try:
      self._check(scope)
      async with asyncio.timeout(self._limits.body_seconds):
        await self._read(receive, body)
    except TimeoutError:
      await _refuse(scope, receive, send, Refused(408, "the body is too slow"))
    except Refused as error:
      await _refuse(scope, receive, send, error)
    except ConnectionError:
      pass
    else:
      await self._answer(scope, bytes(body), receive, send)
    finally:
      self._bytes -= len(body)

  def _check(self, scope):
    headers = Headers(scope=scope)
    host = _name(headers.get("host", ""))
    if self._hosts is not None and host not in self._hosts:
      raise Refused(
        421,
        f'Host is "{host}", expected one of: {", ".join(sorted(self._hosts))}',
      )
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
      raise Refused(403, "the request comes from a page of another server")
    if self._token and scope["path"] not in self._free:
      kind, _, given = headers.get("authorization", "").partition(" ")
      same = hmac.compare_digest(given.strip().encode(), self._token)
      if kind.lower() != "bearer" or not same:
        raise Refused(
          401,
          'expected the server\'s token as "Authorization: Bearer ..."',
          code="invalid_api_key",
        )
    stated = headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > self._limits.body_bytes:
      raise self._too_large()

  async def _read(self, receive, body):
    more = True
    while more:
      message = await receive()
      if message["type"] == "http.disconnect":
        raise ConnectionError
      piece, more = message.get("body", b""), message.get("more_body", False)
      body += piece
      self._bytes += len(piece)
      if len(body) > self._limits.body_bytes:
        raise self._too_large()
      if self._bytes > self._limits.all_bytes:
        raise Refused(
          503, "the requests in hand hold too much; try again", retry_after=1
        )
    if sum(map(body.count, b",[{")) > self._limits.values:
      raise Refused(
        413, f"the body has more than {self._limits.values:,} values"
      )

  def _too_large(self):
    return Refused(
      413, f"the body has more than {self._limits.body_bytes:,} bytes"
    )

  async def _answer(self, scope, body, receive, send):
    """Runs the application until it ends, is too slow or nobody waits."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    started = False

    async def replay() -> Message:
      return messages.pop() if messages else await receive()

    async def note(message: Message) -> None:
      nonlocal started
      started = True
      await send(message)

    async def gone() -> None:
      while (await receive())["type"] != "http.disconnect":
        pass

    answering = asyncio.ensure_future(self._app(scope, replay, note))
    leaving = asyncio.ensure_future(gone())
    try:
      done, _ = await asyncio.wait(
        {answering, leaving},
        timeout=self._limits.request_seconds,
        return_when=asyncio.FIRST_COMPLETED,
      )
    finally:
      leaving.cancel()
      if not answering.done():
        answering.cancel()
        await asyncio.wait({answering})
    if not done and not started:
      await _refuse(scope, receive, send, Refused(504, "it takes too long"))
    elif not answering.cancelled():
      answering.result()
    elif not done:
      raise TimeoutError("an answer took too long, and was cut off")


async def _refuse(scope, receive, send, error):
  """Answers, and closes the connection: its body may not have been read."""
  await error.response(connection="close")(scope, receive, send)


def _name(host):
  """The name in a Host header, without its port."""
  try:
    return urlsplit(f"//{host}").hostname or ""
  except ValueError:
    return ""
