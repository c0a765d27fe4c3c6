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


def make(
  served: Served,
  *,
  host: str = "127.0.0.1",
  port: int = 8000,
  token: str | None = None,
  frames: str | None = None,
) -> Server:
  """Returns a server; its `run()` serves until SIGTERM or Ctrl-C.

  Args:
    served: what it serves.
    host, port: where it listens; port 0 is any free one.
    token: what clients must give; None lets all in.
    frames: as of app.make.
  """
  hosts = limits.LOOPBACK if host in limits.LOOPBACK else None
  return Server(
    uvicorn.Config(
      app.make(served, hosts=hosts, token=token, frames=frames),
      host=host,
      port=port,
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
