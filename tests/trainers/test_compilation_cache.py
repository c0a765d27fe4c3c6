import logging

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


def test_the_last_program_is_noted_if_it_comes_from_the_cache(tmp_path):
  def compiled(*functions):
    with compilation_cache.noting(details := []):
      for function in functions:
        jax.jit(function).lower(jnp.zeros(7)).compile()
    return details

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
    assert compiled(increment) == []
    jax.clear_caches()
    assert compiled(increment) == ["from the cache"]
    jax.clear_caches()
    assert compiled(increment, double) == []
    assert compiled() == []
  finally:
    jax.config.update(at_least, before)
    cache.reset_cache()
