"""Pictures at addresses: https, of hosts that the server's owner names.

The address that a name resolves to must be public and is the one connected to,
so a name cannot lead to another machine of the server's network. No redirect is
followed, no proxy is used.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

SECONDS = 10  # for a whole picture
_CHUNK = 65536


def fetch(url: str, hosts: Sequence[str], max_bytes: int) -> bytes:
  """Returns what is at an address.

  Args:
    url: "https://host/path".
    hosts: that may be asked.
    max_bytes: of an answer.

  Raises:
    ValueError: the host is not one of them, or does not send a file of at most
      so many bytes in time.
  """
  if not hosts:
    raise ValueError(
      "this server fetches no pictures (--fetch_images); send a data URI"
    )
  parts = urlsplit(url)
  host = parts.hostname or ""
  if parts.scheme != "https" or parts.port not in (None, 443) or parts.username:
    raise ValueError('expected an address such as "https://host/picture.jpg"')
  if host not in hosts:
    raise ValueError(
      f"pictures are fetched from {', '.join(hosts)}, not from {host:.100}"
    )
  until = time.monotonic() + SECONDS
  try:
    return _get(parts, host, max_bytes, until)
  except (OSError, http.client.HTTPException) as error:
    raise ValueError(f"{host}: cannot be fetched: {error}") from None


def _get(parts, host, max_bytes, until):
  target = parts.path or "/"
  target += f"?{parts.query}" if parts.query else ""
  connection = http.client.HTTPSConnection(host, timeout=SECONDS)
  raw = socket.create_connection((public_address(host), 443), SECONDS)
  context = ssl.create_default_context()
  with context.wrap_socket(raw, server_hostname=host) as connection.sock:
    connection.request("GET", target, headers={"Accept": "image/*"})
    response = connection.getresponse()
    if response.status != 200:
      raise ValueError(f"{host} answers {response.status}, expected 200")
    data = bytearray()
    while piece := response.read1(_CHUNK):
      data += piece
      if len(data) > max_bytes:
        raise ValueError(f"{host} sends more than {max_bytes:,} bytes")
      if time.monotonic() > until:
        raise ValueError(f"{host} sends too slowly")
    return bytes(data)


def public_address(host: str) -> str:
  """Returns an IPv4 address of a name.

  Raises:
    ValueError: one of them is private, or otherwise not of the internet.
  """
  found = socket.getaddrinfo(host, 443, socket.AF_INET, socket.SOCK_STREAM)
  addresses = [address for *_, (address, _) in found]
  for address in addresses:
    known = ipaddress.ip_address(address)
    if not known.is_global or known.is_multicast:
      raise ValueError(f"{host} is {address}, which is no public address")
  return addresses[0]
