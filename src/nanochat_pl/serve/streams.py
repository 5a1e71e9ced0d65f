"""Answers that are generated while somebody reads them, or no longer does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat_pl.serve.errors import ApiError, ClientGone
from nanochat_pl.serve.gate import record_of

__all__ = ["EventStream", "event", "unless_gone"]

T = TypeVar("T")


_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""JSON lets them stand, but many readers end a line there."""


def event(data: Any) -> str:
    """Write one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text.translate(_LINE_ENDS)}\n\n"


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, or cancel it when the client goes away first.

    Args:
        receive: of a request whose body has been read.
        work: what is done for it.

    Raises:
        ClientGone: it did.
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


class EventStream(Response):
    """Server-sent events of a generator, which is closed when the last was sent, or nobody reads.

    Args:
        first: event that is ready.
        rest: yields the others; an `ApiError` it raises becomes the last one.
        stalled_s: seconds a reader may take nothing.
    """

    media_type = "text/event-stream"

    def __init__(self, first: str, rest: AsyncGenerator[str, None], stalled_s: float):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._stalled_s = first, rest, stalled_s

    @classmethod
    async def begin(cls, request: Request, events: AsyncGenerator[str, None], stalled_s: float) -> "EventStream":
        """Wait for the first event: what goes wrong before it has a status of its own.

        Raises:
            ApiError, ClientGone: it did go wrong.
        """
        try:
            first = await unless_gone(request.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        return cls(first, events, stalled_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._rest):
            try:
                await unless_gone(receive, self._send_all(scope, send))
            except ClientGone:
                record_of(scope).error = "client_gone"
            except TimeoutError:
                record_of(scope).error = "stalled_reader"

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async def give(body: str, more: bool = True) -> None:
            async with asyncio.timeout(self._stalled_s):
                await send({"type": "http.response.body", "body": body.encode(), "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await give(self._first)
        try:
            async for text in self._rest:
                await give(text)
        except ApiError as error:
            record_of(scope).error = error.code
            await give(event(error.body()) + event("[DONE]"))
        await give("", more=False)
