"""Connections that nobody uses are closed.

uvicorn closes one that is idle after an answer. Here it also closes one that
sends no whole request in time, and one that does not read its answer.
"""

import asyncio

from uvicorn.protocols.http import h11_impl

MOST = 512  # at a time; beyond, the one that has been idle longest is closed
IDLE_SECONDS = 10
UNREAD_SECONDS = 30


class Connection(h11_impl.H11Protocol):
  """HTTP/1.1 over one socket, with deadlines for both directions."""

  _unread: asyncio.TimerHandle | None = None

  def connection_made(self, transport: asyncio.Transport) -> None:
    """Waits for a request, as after each answer."""
    super().connection_made(transport)
    self.timeout_keep_alive_task = self.loop.call_later(
      self.timeout_keep_alive, self.timeout_keep_alive_handler
    )
    if len(self.connections) > MOST:
      waiting = [x for x in self.connections if x.timeout_keep_alive_task]
      oldest = min(waiting, key=lambda x: x.timeout_keep_alive_task.when())
      oldest.transport.abort()

  def data_received(self, data: bytes) -> None:
    """A whole request ends the wait, not, as in uvicorn, any byte of it."""
    self.conn.receive_data(data)
    self.handle_events()

  def pause_writing(self) -> None:
    """Gives the client some time to read."""
    super().pause_writing()
    self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

  def resume_writing(self) -> None:
    """The client reads."""
    super().resume_writing()
    if self._unread:
      self._unread.cancel()

  def connection_lost(self, exc: Exception | None) -> None:
    """Ends both waits."""
    super().connection_lost(exc)
    self._unset_keepalive_if_required()
    if self._unread:
      self._unread.cancel()
