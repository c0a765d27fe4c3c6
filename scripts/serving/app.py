"""The application: its endpoints, its page, and what stands before them."""

import contextlib
import importlib.resources
import mimetypes
from collections.abc import AsyncIterator, Collection
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.types import ASGIApp

import paligemma
from paligemma.serving.request import Engine
from scripts.serving import embeddings, errors, openai_chat, tasks
from scripts.serving.errors import Refused
from scripts.serving.limits import Gate
from scripts.serving.metrics import Measured, Metrics
from scripts.serving.served import Served

# After SIGTERM, seconds for the answers that are being written.
GRACE = 20

_ALONE = {
  # Nothing from elsewhere, and in no frame of another page but those allowed.
  "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; "
  "base-uri 'none'; form-action 'none'; frame-ancestors ",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
}


def make(
  served: Served,
  *,
  hosts: Collection[str] | None = None,
  token: str | None = None,
  frames: str | None = None,
) -> ASGIApp:
  """Returns the application of a server.

  Args:
    served: what it serves.
    hosts, token: as of limits.Gate.
    frames: sites that may show the page in a frame, "https://huggingface.co".
  """
  metrics = Metrics(served.engine)
  app = FastAPI(
    title="paligemma",
    version=paligemma.__version__,
    docs_url=None,  # they load scripts from elsewhere
    redoc_url=None,
    lifespan=_closing(served.engine),
  )
  app.state.served = served
  errors.add_handlers(app)
  for room in (openai_chat, tasks, embeddings):
    app.include_router(room.router)
  _add_models(app, served)
  _add_health(app, served.engine, metrics)
  free = {"/healthz", "/readyz", *_add_page(app, frames)}
  paths = frozenset([*app.openapi()["paths"], *free, "/metrics"])
  gate = Gate(app, limits=served.limits, hosts=hosts, token=token, free=free)
  return Measured(gate, metrics, paths)


def _closing(engine: Engine):
  @contextlib.asynccontextmanager
  async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    engine.close(GRACE)

  return lifespan


def _add_models(app, served):
  def described(name: str, **more: Any) -> dict[str, Any]:
    return {
      "id": name,
      "object": "model",
      "created": served.created,
      "owned_by": "paligemma",
      **more,
    }

  @app.get("/v1/models")
  async def models() -> dict[str, Any]:
    """The base model, and its adapters."""
    found = [described(served.name)]
    found += [
      described(name, parent=served.name) for name in served.engine.adapters
    ]
    return {"object": "list", "data": found}

  @app.get("/v1/models/{model:path}")
  async def model(model: str) -> dict[str, Any]:
    """One of them."""
    adapter = served.adapter(model)
    return described(model, **({"parent": served.name} if adapter else {}))


def _add_health(app, engine, metrics):
  @app.get("/healthz")
  async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}

  @app.get("/readyz")
  async def ready() -> dict[str, str]:
    """The server takes requests."""
    if not engine.ready:
      raise Refused(503, "the engine is not ready", retry_after=5)
    return {"status": "ok"}

  @app.get("/metrics", include_in_schema=False)
  async def measured() -> Response:
    """Counts and times, for Prometheus."""
    return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app, frames):
  """Serves the files of the page, which are few and small; returns paths."""
  headers = dict(_ALONE)
  headers["content-security-policy"] += frames or "'none'"
  folder = importlib.resources.files("scripts.serving") / "page"
  found = []
  for file in folder.iterdir() if folder.is_dir() else ():
    kind, _ = mimetypes.guess_type(file.name)
    if kind is None or file.name.endswith(".py"):
      continue
    path = "/" if file.name == "index.html" else f"/{file.name}"
    found.append(path)
    app.add_api_route(
      path, _sender(file.read_bytes(), kind, headers), include_in_schema=False
    )
  return found


def _sender(data, kind, headers):
  async def send() -> Response:
    return Response(data, media_type=kind, headers=headers)

  return send
