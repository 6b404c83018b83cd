"""A connection whose request does not come: its line and headers have a time limit, as its body has.

The server's own limits begin behind the headers. Who sends them a byte at a time holds a connection, and a
file of the process, for as long as they like; a few hundred of those and nobody else gets in.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0
"""From the connection, or the answer before, to the end of a request's headers."""
_TEXT: Final = b"the headers came too slowly\n"
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_TEXT), _TEXT)
)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol; one connection that waits for headers for too long is answered 408 and closed."""

    header_seconds: float = HEADER_SECONDS
    _too_slow_at: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a first request from now on."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Whenever something came, and when an answer is complete."""
        super().handle_events()
        self._look()

    def on_response_complete(self) -> None:
        """Waits for the next request from now on."""
        super().on_response_complete()
        self._look()

    def _look(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop()
        elif self._too_slow_at is None:
            self._too_slow_at = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop(self) -> None:
        if self._too_slow_at is not None:
            self._too_slow_at.cancel()
            self._too_slow_at = None

    def _too_slow(self) -> None:
        self._too_slow_at = None
        if not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
            self.transport.close()
