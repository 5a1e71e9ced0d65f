"""Connections that are opened and never become a request: uvicorn waits for the end of a request's head for ever."""

import asyncio
from typing import Any

from nanochat_pl.serve.errors import ApiError, error_response

__all__ = ["timed_protocol"]


def _answer(status: str, error: ApiError) -> bytes:
    """Write a whole answer for where no application is asked."""
    body = error_response(error).body
    head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + bytes(body)


_TOO_LATE = _answer("408 Request Timeout", ApiError(408, "the head of a request did not come in time"))
_NO_REQUEST = _answer("400 Bad Request", ApiError(400, "this is no request of HTTP/1.1 or HTTP/1.0"))


def timed_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Make uvicorn's HTTP protocol with a limit on the time that a request's head may take.

    The time runs from the connection, and after an answer from the first byte of the next request; it is not prolonged
    by what trickles in. How long a connection may be idle after an answer is uvicorn's `timeout_keep_alive`, how long a
    body may take `Limits.stalled_client_s`.

    Args:
        seconds: until a connection without a whole head is answered with status 408 and closed.

    Returns:
        A class for `uvicorn.Config(http=...)`.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen when uvicorn is imported
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await_head()

        def connection_lost(self, error: Exception | None) -> None:
            self._forget()
            super().connection_lost(error)

        def send_400_response(self, msg: str) -> None:
            """Answer what is no HTTP request, in the form of all errors."""
            self.transport.write(_NO_REQUEST)
            self.transport.close()

        def _await_head(self) -> None:
            """Let time run while no request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._waiting is None:
                self._waiting = self.loop.call_later(seconds, self._close)

        def _forget(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _close(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(_TOO_LATE)
                self.transport.close()

    return TimedProtocol
