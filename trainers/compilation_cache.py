"""Compiled programs are kept on disk, so that a second start need not wait."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring

FOLDER = "~/.cache/paligemma/compiled"

_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"


def add_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --compilation_cache."""
  parser.add_argument(
    "--compilation_cache",
    default=FOLDER,
    metavar="DIR",
    help='keeps compiled programs; "" for none; JAX_COMPILATION_CACHE_DIR, '
    f"where it is set, comes first (default: {FOLDER})",
  )


def configure(folder: str) -> None:
  """Keeps compiled programs in a folder; without one, "", nowhere.

  A folder that cannot be written to is a warning: the program runs without it.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ or not folder:
    return
  folder = os.path.expanduser(folder)
  try:
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError(13, "Permission denied")
  except OSError as error:
    logging.warning(
      "--compilation_cache %s: %s; nothing compiled is kept",
      folder,
      error.strerror,
    )
    return
  jax.config.update("jax_compilation_cache_dir", folder)


@contextlib.contextmanager
def noting(details: list[str]) -> Iterator[None]:
  """Notes "from the cache" if the last program compiled inside was there."""
  events = []

  def listen(event: str, **_: Any) -> None:
    if event in (_REQUEST, _HIT):
      events.append(event)

  jax.monitoring.register_event_listener(listen)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_listener(listen)
  if events and events[-1] == _HIT:
    details.append("from the cache")
