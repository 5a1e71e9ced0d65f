"""Server-sent events of an answer that is still being generated, which ends if the reader disconnects."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat_pl.serve.errors import ApiError, ClientGone
from nanochat_pl.serve.middleware import record_of
from nanochat_pl.serve.settings import Limits

__all__ = ["EventStream", "event", "unless_gone"]

T = TypeVar("T")

_write_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""JSON allows these characters, but many readers end a line there."""


def event(data: Any) -> str:
    """Format one server-sent event."""
    text = data if isinstance(data, str) else _write_json(data)
    return f"data: {text if text.isascii() else text.translate(_LINE_ENDS)}\n\n"


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, or cancel it if the client disconnects first; the request's body must have been read.

    Raises:
        ClientGone: the client disconnected.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


SILENCE = ": nothing new yet\n\n"
"""A comment; readers of server-sent events ignore it."""


class EventStream(Response):
    """Server-sent events of a generator, which is closed after the last event or when the client disconnects.

    An `ApiError` that the generator raises becomes the last event. `limits` bound how long a reader may stall, and how
    long a stream may be silent.
    """

    media_type = "text/event-stream"

    def __init__(self, first: asyncio.Future[str], rest: AsyncGenerator[str, None], limits: Limits):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._next, self._rest, self._limits = first, rest, limits

    @classmethod
    async def begin(cls, request: Request, events: AsyncGenerator[str, None], limits: Limits) -> "EventStream":
        """Wait for the first event, but no longer than a stream may be silent: until then an error can set the status.

        Raises:
            ApiError: `events` raised it.
            ClientGone: the client disconnected.
        """
        first = asyncio.ensure_future(anext(events))
        try:
            await unless_gone(request.receive, asyncio.wait((first,), timeout=limits.heartbeat_s))
            if first.done():
                first.result()
        except BaseException:
            await _stop(first, events)
            raise
        return cls(first, events, limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send_all(scope, send))
        except ClientGone:
            record_of(scope).error = "client_gone"
        except TimeoutError:
            record_of(scope).error = "stalled_reader"
        finally:
            await _stop(self._next, self._rest)

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async def send_body(body: str, more: bool = True) -> None:
            async with asyncio.timeout(self._limits.stalled_client_s):
                await send({"type": "http.response.body", "body": body.encode(), "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            while True:
                while not self._next.done():
                    await asyncio.wait((self._next,), timeout=self._limits.heartbeat_s)
                    if not self._next.done():
                        await send_body(SILENCE)
                await send_body(self._next.result())
                self._next = asyncio.ensure_future(anext(self._rest))
        except StopAsyncIteration:
            pass
        except ApiError as error:
            record_of(scope).refuse(error)
            await send_body(event(error.body()) + event("[DONE]"))
        await send_body("", more=False)


async def _stop(pending: asyncio.Future[str], events: AsyncGenerator[str, None]) -> None:
    """Close a generator that may be computing its next event."""
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await events.aclose()
