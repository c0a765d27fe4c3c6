"""Addresses are asked only where the owner of the server allows it."""

import http.client
import socket
import ssl

import pytest

from scripts.serving import fetching


def resolving(monkeypatch, *addresses):
  """Every name resolves to these addresses."""

  def resolve(host, port, *kind):
    return [(*kind, 0, "", (address, port)) for address in addresses]

  monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize(
  ("url", "problem"),
  [
    ("http://a.com/x.png", "expected an address such as"),
    ("https://a.com:8080/x.png", "expected an address such as"),
    ("https://me@a.com/x.png", "expected an address such as"),
    ("https://b.com/x.png", "fetched from a.com, not from b.com"),
    ("https://a.com.b.com/x.png", "fetched from a.com, not from a.com.b.com"),
    ("https://b.com#@a.com/x.png", "fetched from a.com, not from b.com"),
  ],
)
def test_other_addresses(url, problem):
  with pytest.raises(ValueError, match=problem):
    fetching.fetch(url, ("a.com",), 99)


def test_nothing_is_fetched_by_default():
  with pytest.raises(ValueError, match="fetches no pictures"):
    fetching.fetch("https://a.com/x.png", (), 99)


@pytest.mark.parametrize(
  "address",
  [
    *("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254"),
    *("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255"),
  ],
)
def test_private_addresses(monkeypatch, address):
  resolving(monkeypatch, "8.8.8.8", address)
  with pytest.raises(ValueError, match=f"a.com is {address}, which is no"):
    fetching.fetch("https://a.com/x.png", ("a.com",), 99)


class Response:
  """An answer of a host, in pieces."""

  def __init__(self, status, *pieces):
    self.status, self._pieces = status, [*pieces, b""]

  def read1(self, count):
    return self._pieces.pop(0)


@pytest.fixture
def asked(monkeypatch):
  """What is connected to and asked for; the host answers as `answers` says."""
  found = {}
  resolving(monkeypatch, "8.8.8.8")

  class Socket:
    def __enter__(self):
      return self

    def __exit__(self, *error):
      pass

  class Context:
    def wrap_socket(self, raw, server_hostname):
      found["name"] = server_hostname
      return Socket()

  monkeypatch.setattr(ssl, "create_default_context", Context)
  monkeypatch.setattr(
    socket, "create_connection", lambda to, seconds: found.update(to=to)
  )
  connection = http.client.HTTPSConnection
  monkeypatch.setattr(
    connection,
    "request",
    lambda self, method, path, headers: found.update(path=path),
  )
  monkeypatch.setattr(connection, "getresponse", lambda self: found["answers"])
  return found


def test_fetch(asked):
  asked["answers"] = Response(200, b"ab", b"c")
  found = fetching.fetch("https://a.com/x.png?b=1#c", ("b.com", "a.com"), 3)
  assert found == b"abc"
  assert asked["to"] == ("8.8.8.8", 443)
  assert (asked["name"], asked["path"]) == ("a.com", "/x.png?b=1")


@pytest.mark.parametrize(
  ("answer", "problem"),
  [
    (Response(302, b"a"), "a.com answers 302, expected 200"),
    (Response(200, b"ab", b"cd"), "a.com sends more than 3 bytes"),
  ],
)
def test_what_a_host_may_not_answer(asked, answer, problem):
  asked["answers"] = answer
  with pytest.raises(ValueError, match=problem):
    fetching.fetch("https://a.com/x.png", ("a.com",), 3)


def test_a_slow_host(asked, monkeypatch):
  asked["answers"] = Response(200, b"a", b"b")
  monkeypatch.setattr(fetching, "SECONDS", -1)
  with pytest.raises(ValueError, match="sends too slowly"):
    fetching.fetch("https://a.com/x.png", ("a.com",), 3)
