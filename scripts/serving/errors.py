"""Errors as OpenAI writes them, which its clients read.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from paligemma import messages
from paligemma.serving.request import Closed, Full

_SHOWN = 3  # mistakes of one request


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    message: one line.
    param: the field of the request that is wrong.
    code: for programs, "model_not_found".
    retry_after: seconds after which it may be tried again.
  """

  def __init__(
    self,
    status: int,
    message: object,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after: int | None = None,
  ):
    super().__init__(messages.one_line(message))
    self.status, self.param, self.code = status, param, code
    self.retry_after = retry_after

  def body(self) -> dict[str, Any]:
    """What is sent, as JSON."""
    if self.status == 429:
      kind = "rate_limit_error"
    else:
      kind = "server_error" if self.status >= 500 else "invalid_request_error"
    return {
      "error": {
        "message": str(self),
        "type": kind,
        "param": self.param,
        "code": self.code,
      }
    }

  def response(self, **headers: str) -> JSONResponse:
    """Status, headers and body."""
    if self.status == 401:
      headers["www-authenticate"] = "Bearer"
    if self.retry_after is not None:
      headers["retry-after"] = str(self.retry_after)
    return JSONResponse(self.body(), self.status, headers)


def of(error: Full | Closed | ValueError) -> Refused:
  """What a client is told of an error of the engine, or of a grammar."""
  if isinstance(error, Full):
    return Refused(
      429, "as many requests wait as may; try again", retry_after=1
    )
  if isinstance(error, Closed):
    return Refused(503, "the server is ending", retry_after=5)
  return Refused(400, error)


def add_handlers(app: FastAPI) -> None:
  """Answers every error of an app in this form."""

  async def refused(request: Request, error: Refused) -> JSONResponse:
    return error.response()

  async def malformed(
    request: Request, error: RequestValidationError
  ) -> JSONResponse:
    return _malformed(error.errors()).response()

  async def http(request: Request, error: HTTPException) -> JSONResponse:
    told = Refused(error.status_code, error.detail)
    return told.response(**(error.headers or {}))

  async def unknown(request: Request, error: Exception) -> JSONResponse:
    return Refused(500, "internal error, see the server's log").response()

  app.add_exception_handler(Refused, refused)
  app.add_exception_handler(RequestValidationError, malformed)
  app.add_exception_handler(HTTPException, http)
  app.add_exception_handler(Exception, unknown)


def _malformed(found: Sequence[dict[str, Any]]) -> Refused:
  """Names the fields that are wrong, not what they hold."""
  lines = [f"{_path(x)}: {_problem(x)}" for x in found]
  return Refused(
    400, messages.listed(lines, most=_SHOWN), param=_path(found[0])
  )


def _path(mistake):
  path = [str(x) for x in mistake["loc"] if x != "body"]
  return messages.shown(".".join(path)) or "body"


def _problem(mistake):
  if mistake["type"] == "extra_forbidden":
    return "is not supported here"
  if mistake["type"] == "json_invalid":
    return f"no JSON: {mistake['ctx']['error']}"
  if mistake["type"] == "model_attributes_type":
    return 'expected an object, sent as "Content-Type: application/json"'
  return mistake["msg"]
