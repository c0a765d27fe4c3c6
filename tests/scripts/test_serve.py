"""The command: it starts, answers, is killed, starts again and ends in time."""

import base64
import contextlib
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from scripts import serve
from scripts.serving import server
from tests.scripts import conftest

WAIT = 300  # seconds; ends a hang


@contextlib.contextmanager
def started(tiny, *options):
  """The process of a server, and its address."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "scripts.serve", "--port", "0"),
      *("--ckpt", str(tiny.weights), "--tokenizer", str(tiny.tokenizer)),
      *("--places", "2", "--max_tokens", "512", *options),
    ],
    cwd=conftest.ROOT,
    env=tiny.environment(devices=1),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:"), process.stderr.read()
    yield process, address
  finally:
    process.kill()
    process.communicate()


def ask(address, data_uri, **options):
  content = [{"type": "image_url", "image_url": {"url": data_uri}}]
  asked = {
    "model": "weights",
    "messages": [{"role": "user", "content": content}],
    # Long, as no answer ends before its last token.
    "structured_outputs": {"regex": "a{500}"},
    **options,
  }
  return httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=WAIT)


def test_killed_and_told_to_end(tiny):
  """Whoever asks is told; the next start serves; what runs is answered."""
  data_uri = picture(tiny)
  errors = []

  def lost(address):
    with pytest.raises(httpx.TransportError) as caught:
      ask(address, data_uri)
    errors.append(caught.value)

  with started(tiny) as (process, address):
    threads = [threading.Thread(target=lost, args=(address,)) for _ in range(3)]
    for thread in threads:
      thread.start()
    wait_for(address, "paligemma_engine_active 2.0")
    process.kill()
    for thread in threads:
      thread.join(WAIT)
  assert len(errors) == 3
  with started(tiny) as (process, address):
    answers = []
    thread = threading.Thread(
      target=lambda: answers.append(ask(address, data_uri))
    )
    thread.start()
    wait_for(address, "paligemma_engine_active 1.0")
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT) == -signal.SIGTERM
    thread.join(WAIT)
    _, said = process.communicate()
  assert answers[0].json()["choices"][0]["message"]["content"] == "a" * 500
  assert "Traceback" not in said


def picture(tiny):
  data = (tiny.folder / "0.png").read_bytes()
  return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def wait_for(address, line):
  for _ in range(10_000):
    if line in httpx.get(f"{address}/metrics").text.splitlines():
      return
  pytest.fail(f"never: {line}")


@pytest.mark.parametrize(
  ("options", "problem"),
  [
    ({"host": "0.0.0.0"}, "--host 0.0.0.0: other machines can reach it, expec"),
    ({"adapter": ["x"]}, "--adapter x: expected name=path, each name once"),
    ({"adapter": ["weights=a"]}, "--adapter weights: is the name of the model"),
    ({"port": 99999}, "--host 127.0.0.1 --port 99999: cannot listen there: "),
    ({"port": 0, "places": 0}, "places is 0, expected 1 or more"),
  ],
)
def test_mistakes(tiny, options, problem):
  with pytest.raises(ValueError) as caught:
    serve.serve(tiny.weights, tiny.tokenizer, **options)
  assert str(caught.value).startswith(problem)


def test_an_address_in_use():
  with server.bind("127.0.0.1", 0) as one:
    one.listen()
    port = one.getsockname()[1]
    with pytest.raises(ValueError, match=r"cannot listen there: .*in use"):
      server.bind("127.0.0.1", port)
