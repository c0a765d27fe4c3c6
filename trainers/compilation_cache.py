"""Compiled programs are kept on disk, so that a second start need not wait."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring

FOLDER = "~/.cache/paligemma/compiled"

_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"
_SECONDS = "/jax/core/compile/backend_compile_duration"


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


@dataclasses.dataclass
class Compiled:
  """Programs that were compiled, or found in the cache.

  Attributes:
    hits: found in the cache.
    misses: compiled, and kept there; a short program is not kept.
    seconds: all of this took.
  """

  hits: int = 0
  misses: int = 0
  seconds: float = 0.0

  @property
  def from_cache(self) -> bool:
    """Whether all were there but those too short to be kept."""
    return self.hits > 0 and not self.misses


@contextlib.contextmanager
def watching() -> Iterator[Compiled]:
  """Yields what is known, up to then, of the programs compiled inside."""
  found = Compiled()

  def count(event: str, **_: Any) -> None:
    found.hits += event == _HIT
    found.misses += event == _MISS

  def add(event: str, seconds: float, **_: Any) -> None:
    found.seconds += seconds * (event == _SECONDS)

  jax.monitoring.register_event_listener(count)
  jax.monitoring.register_event_duration_secs_listener(add)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_listener(count)
    jax.monitoring.unregister_event_duration_listener(add)
