import logging
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache

from trainers import compilation_cache

FOLDER = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def without_a_folder(monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update(FOLDER, None)
  yield
  jax.config.update(FOLDER, before)


def test_a_folder_is_made(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  compilation_cache.configure(compilation_cache.FOLDER)
  folder = tmp_path / ".cache" / "paligemma" / "compiled"
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert folder.is_dir()


def test_none_is_made_without_a_name():
  compilation_cache.configure("")
  assert jax.config.jax_compilation_cache_dir is None


def test_the_environment_comes_first(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
  compilation_cache.configure(str(tmp_path / "here"))
  assert jax.config.jax_compilation_cache_dir is None
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
  (tmp_path / "file").write_text("")
  folder = f"{tmp_path}/file/compiled"
  with caplog.at_level(logging.WARNING):
    compilation_cache.configure(folder)
  assert jax.config.jax_compilation_cache_dir is None
  said = f"--compilation_cache {folder}: Not a directory; nothing compiled is"
  assert said in caplog.text


def test_what_comes_from_the_cache_is_known(tmp_path):
  x = jnp.zeros(7)

  def from_cache(*functions):
    with compilation_cache.watching() as compiled:
      for function in functions:
        jax.jit(function).lower(x).compile()
    assert (compiled.seconds > 0) == bool(functions)
    return compiled.from_cache

  def increment(x):
    return x + 1

  def double(x):
    return x * 2

  at_least = "jax_persistent_cache_min_compile_time_secs"
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update(at_least, 0)
  cache.reset_cache()  # or it stays where it was first used
  jax.config.update(FOLDER, str(tmp_path))
  try:
    assert not from_cache(increment)
    jax.clear_caches()
    assert from_cache(increment)
    jax.clear_caches()
    assert not from_cache(double, increment)
    jax.clear_caches()
    assert from_cache(double, increment)
    assert not from_cache()
    # What is too short to be kept does not count.
    jax.config.update(at_least, 1e9)
    jax.clear_caches()
    assert from_cache(double, lambda x: x - 1)
  finally:
    jax.config.update(at_least, before)
    cache.reset_cache()


def test_a_second_start_compiles_nothing_again(tiny, processes, tmp_path):
  config = f"tests/trainers/tiny_config.py:{tiny.argument()}"
  command = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
  # Two devices of a CPU do without the cache: see processes.start.
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
  said = [
    processes.run(*command, devices=1, environment=cache) for _ in range(2)
  ]
  for begins in (r"compiling the step.*: ", "val: compiled in "):
    lines = [
      line
      for text in said
      for line in text.splitlines()
      if re.match(begins, line)
    ]
    assert ["from the cache" in line for line in lines] == [False, True], lines
