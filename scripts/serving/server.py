"""The server: listens, says where, and ends in time."""

import socket
from collections.abc import Sequence

import uvicorn

from scripts.serving import app, connections, limits
from scripts.serving.served import Served


class Server(uvicorn.Server):
  """Prints the address once it listens there."""

  async def startup(
    self, sockets: Sequence[socket.socket] | None = None
  ) -> None:
    """Begins to listen."""
    await super().startup(sockets)
    print(self.address, flush=True)

  @property
  def address(self) -> str:
    """Where it listens, "http://127.0.0.1:8000"."""
    host, port = self.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
  """Returns a socket with an address, where nobody listens yet.

  Args:
    host: a name or an address of this machine.
    port: 0 is any free one.

  Raises:
    ValueError: the address is in use, or none of this machine.
  """
  is_v6 = ":" in host
  found = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((host, port))
  except (OSError, OverflowError) as error:
    found.close()
    raise ValueError(
      f"--host {host} --port {port}: cannot listen there: {error}"
    ) from None
  return found


def make(
  served: Served,
  *,
  host: str,
  token: str | None = None,
  frames: str | None = None,
) -> Server:
  """Returns a server; `run([bind(...)])` serves until SIGTERM or Ctrl-C.

  Args:
    served: what it serves.
    host: where it listens. On the own machine other names for it are refused.
    token: what clients must give; None lets all in.
    frames: as of app.make.
  """
  hosts = limits.LOOPBACK if host in limits.LOOPBACK else None
  return Server(
    uvicorn.Config(
      app.make(served, hosts=hosts, token=token, frames=frames),
      http=connections.Connection,
      ws="none",
      log_level="error",
      access_log=False,
      proxy_headers=False,
      server_header=False,
      timeout_keep_alive=connections.IDLE_SECONDS,
      timeout_graceful_shutdown=app.GRACE,
    )
  )
