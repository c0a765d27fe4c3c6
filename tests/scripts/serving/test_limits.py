"""Who may ask, how much, and how long; connections that nobody uses."""

import asyncio
import contextlib
import socket
import time

import httpx
import pytest

from scripts import serve
from scripts.serving import connections, limits
from tests.scripts.serving import conftest, plain_engine

WAIT = 30  # seconds; ends a hang


def ask(address, **options):
  asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
  return httpx.post(
    f"{address}/v1/chat/completions", json=asked, timeout=WAIT, **options
  )


def port_of(server):
  return int(server.address.rpartition(":")[2])


def connect(server):
  return socket.create_connection(("127.0.0.1", port_of(server)), WAIT)


@pytest.mark.parametrize(
  ("given", "status"),
  [
    ("Bearer a-secret", 200),
    ("bearer  a-secret", 200),
    ("Bearer a-secre", 401),
    ("Bearer a-secret2", 401),
    ("Basic a-secret", 401),
    ("Bearer", 401),
    (None, 401),
  ],
)
def test_token(make_served, given, status):
  with conftest.running(make_served(), token="a-secret") as server:
    headers = {} if given is None else {"authorization": given}
    answer = ask(server.address, headers=headers)
    assert answer.status_code == status
    if status == 401:
      assert answer.headers["www-authenticate"] == "Bearer"
      assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("v1/models", "metrics", "openapi.json", "nothing"):
      assert httpx.get(f"{server.address}/{path}").status_code == 401
    for path in ("healthz", "readyz"):
      assert httpx.get(f"{server.address}/{path}").status_code == 200


@pytest.mark.parametrize(
  ("host", "options", "token"),
  [
    ("127.0.0.1", {}, None),
    ("0.0.0.0", {"token": "12345678"}, "12345678"),
    ("0.0.0.0", {"insecure": True}, None),
    ("::1", {"token_file": "in the file"}, "in the file"),
  ],
)
def test_read_token(host, options, token, tmp_path):
  assert serve.read_token(host, **token_options(options, tmp_path)) == token


@pytest.mark.parametrize(
  ("host", "options", "problem"),
  [
    ("0.0.0.0", {}, "--host 0.0.0.0: other machines can reach it, expected"),
    ("::", {}, "--host ::: other machines can reach it, expected --token, "),
    ("::1", {"token": "short"}, "--token: expected 8 or more letters"),
    (
      "::1",
      {"token": "12345678", "token_file": "12345678"},
      "--token and --token_file are given, expected one of them",
    ),
  ],
)
def test_wrong_token(host, options, problem, tmp_path):
  with pytest.raises(ValueError) as caught:
    serve.read_token(host, **token_options(options, tmp_path))
  assert str(caught.value).startswith(problem)


def token_options(options, folder):
  """All options of read_token; a file that holds what is given."""
  options = {"token": None, "token_file": None, "insecure": False, **options}
  if options["token_file"]:
    (folder / "token").write_text(f"{options['token_file']}\n")
    options["token_file"] = folder / "token"
  return options


def test_token_of_the_environment(monkeypatch):
  monkeypatch.setenv(serve.TOKEN, "0123456789")
  assert serve.read_token("::", None, None, False) == "0123456789"


def test_read_adapters():
  assert serve.read_adapters(["a=b=c", "d=e"]) == {"a": "b=c", "d": "e"}
  for texts in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
    with pytest.raises(ValueError, match="expected name=path, each name once"):
      serve.read_adapters(texts)


def test_other_hosts_where_everybody_may_ask(make_served):
  headers = {"host": "a.server.com"}
  with conftest.running(make_served()) as server:
    assert ask(server.address, headers=headers).status_code == 421
  with conftest.running(make_served(), host="0.0.0.0") as server:
    address = f"http://127.0.0.1:{port_of(server)}"
    assert ask(address, headers=headers).status_code == 200
    own = {**headers, "origin": "http://a.server.com"}
    assert ask(address, headers=own).status_code == 200
    other = {**headers, "origin": "http://b.server.com"}
    assert ask(address, headers=other).status_code == 403


def test_all_bodies_together(make_served):
  """One request may wait with its body; two hold too much."""
  allowed = limits.Limits(all_bytes=1500)
  head = b"POST /v1/caption HTTP/1.1\r\nhost: localhost\r\n"
  with (
    conftest.running(make_served(limits=allowed)) as server,
    connect(server) as one,
  ):
    one.sendall(head + b"content-length: 2000\r\n\r\n" + b" " * 1000)
    until = time.monotonic() + WAIT
    while True:
      with connect(server) as two:
        two.sendall(head + b"content-length: 900\r\n\r\n" + b" " * 900)
        answer = two.recv(999)
      if b" 503 " in answer or time.monotonic() > until:
        break
    assert b"retry-after: 1" in answer and b"hold too much" in answer
    one.close()
    while b" 400 " not in answer and time.monotonic() < until:
      with connect(server) as two:
        two.sendall(head + b"content-length: 900\r\n\r\n" + b" " * 900)
        answer = two.recv(999)
    assert b" 400 " in answer


def test_an_answer_that_takes_too_long(make_served, tiny_tokenizer):
  engine = plain_engine.PlainEngine(tiny_tokenizer, seconds=0.1)
  allowed = limits.Limits(request_seconds=0.2)
  with conftest.running(make_served(engine, limits=allowed)) as server:
    answer = ask(server.address)
    assert answer.status_code == 504
    assert answer.json()["error"]["message"] == "it takes too long"
    for answer in list(engine.active):
      answer.join(WAIT)
  assert engine.ends == {"cancelled": 1}


def test_the_idle_are_closed(make_served, monkeypatch):
  """Also those that send a byte now and then."""
  monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
  with conftest.running(make_served()) as server:
    with connect(server) as one:
      assert one.recv(1) == b""
    with connect(server) as one, contextlib.suppress(ConnectionError):
      for _ in range(100):
        one.sendall(b"G")
        time.sleep(0.05)
      pytest.fail("it is still open")


def test_the_longest_idle_makes_room(make_served, monkeypatch):
  monkeypatch.setattr(connections, "MOST", 5)
  with conftest.running(make_served()) as server, contextlib.ExitStack() as all:
    first = all.enter_context(connect(server))
    while not server.server_state.connections:
      time.sleep(0.01)
    time.sleep(0.1)  # the loop's clock is coarse
    others = [all.enter_context(connect(server)) for _ in range(4)]
    assert ask(server.address).status_code == 200
    assert first.recv(1) == b""
    for other in others:
      other.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
      assert b" 200 " in other.recv(999)


def test_who_does_not_read_is_cut_off(make_served, monkeypatch):
  monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.2)

  async def app(scope, receive, send):
    if scope["type"] == "http":
      await send({"type": "http.response.start", "status": 200, "headers": []})
      await send({"type": "http.response.body", "body": bytes(2**25)})

  with conftest.running(make_served()) as server:
    server.config.loaded_app = app
    with connect(server) as one:
      one.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
      until = time.monotonic() + WAIT
      while server.server_state.connections and time.monotonic() < until:
        time.sleep(0.02)
      assert not server.server_state.connections


def test_ends_after_the_answers(make_served, tiny_tokenizer):
  """What is being answered when the server is told to end is answered."""
  engine = plain_engine.PlainEngine(tiny_tokenizer, seconds=0.05)

  async def ask_and_end(server):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    async with httpx.AsyncClient(timeout=WAIT) as client:
      answer = asyncio.ensure_future(
        client.post(f"{server.address}/v1/chat/completions", json=asked)
      )
      while not engine.active:
        await asyncio.sleep(0.01)
      server.should_exit = True
      return await answer

  with conftest.running(make_served(engine)) as server:
    answer = asyncio.run(ask_and_end(server))
  assert answer.json()["choices"][0]["message"]["content"] == "base: a, 0"
  assert engine.closed


def test_metrics(make_served):
  with conftest.running(make_served()) as server:
    ask(server.address)
    httpx.get(f"{server.address}/a/path")
    text = httpx.get(f"{server.address}/metrics").text
  lines = text.splitlines()
  path = "/v1/chat/completions"
  assert f'paligemma_http_requests_total{{path="{path}",status="200"}} 1.0' in (
    lines
  )
  assert 'paligemma_http_requests_total{path="other",status="404"} 1.0' in lines
  assert "paligemma_engine_tokens_total 3.0" in lines
  assert any(x.startswith("process_resident_memory_bytes ") for x in lines)
