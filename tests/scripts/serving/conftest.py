"""Servers in threads of the test's own process, and pictures to ask about."""

import base64
import contextlib
import io
import pathlib
import threading
import time

import numpy as np
import pytest
from PIL import Image

from paligemma.data import tokenizer as tokenizer_lib
from scripts.serving import served as served_lib
from scripts.serving import server as server_lib
from tests.scripts.serving import plain_engine

ASSETS = pathlib.Path(__file__).parents[3] / "paligemma/assets"
SECONDS = 60  # after which a server hangs


@contextlib.contextmanager
def running(served, host="127.0.0.1", **options):
  """A server on a free port, and its address."""
  server = server_lib.make(served, host=host, **options)
  address = server_lib.bind(host, 0)
  thread = threading.Thread(target=server.run, args=([address],))
  thread.start()
  until = time.monotonic() + SECONDS
  while not server.started and thread.is_alive():
    assert time.monotonic() < until
    time.sleep(0.01)
  try:
    yield server
  finally:
    server.should_exit = True
    thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny_tokenizer():
  return tokenizer_lib.Tokenizer(ASSETS / "tiny_tokenizer.model")


@pytest.fixture(scope="session")
def make_served(tiny_tokenizer):
  """Makes what is served; options of the engine and of Served."""

  def make(engine=None, **options):
    engine = engine or plain_engine.PlainEngine(tiny_tokenizer)
    options = {"sees": True, "max_tokens": 64, **options}
    return served_lib.Served("tiny", engine, tiny_tokenizer, **options)

  return make


@pytest.fixture(scope="module")
def address(make_served):
  """Of a server that answers with its prompts."""
  with running(make_served()) as server:
    yield server.address


@pytest.fixture(scope="session")
def png():
  """A picture of 31x17 pixels (width x height)."""
  pixels = np.random.default_rng(0).integers(0, 256, (17, 31, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="session")
def data_uri(png):
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"
