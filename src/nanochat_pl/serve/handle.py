"""The handle of a request that is being generated, through which the worker reports to the request's owner."""

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum

from nanochat_pl.requests import Event, Request

__all__ = ["EndReason", "GenerationHandle", "QueueFull", "WorkerClosed", "deliver"]


class QueueFull(RuntimeError):
    """The queue has no room for more requests.

    Attributes:
        retry_after_s: whole seconds until there is probably room.
    """

    def __init__(self, message: str, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerClosed(RuntimeError):
    """The worker takes no more requests because it is shutting down."""


class EndReason(StrEnum):
    """Why a request ended."""

    stop = "stop"
    """The model wrote a stop token."""
    length = "length"
    """It reached `max_new_tokens` or the end of the context."""
    cancelled = "cancelled"
    """Its owner cancelled it."""
    expired = "expired"
    """It reached its time limit."""
    shutdown = "shutdown"
    """The worker shut down."""
    refused = "refused"
    """The engine refused it as invalid."""
    fault = "fault"
    """The engine failed; the message is for the operator of the server."""


class GenerationHandle:
    """One request while it is generated: iterate over its events with `async for`, or cancel it.

    The iteration stops when the request has ended; `end` then tells why.

    Attributes:
        request: the engine's request.
        client: the client that submitted it.
        deadline: `time.monotonic()` at which it is ended at the latest.
        submitted, entered, first_token, ended: `time.monotonic()` of these moments; None = not yet.
        end: why it ended; None = it has not. It may be set before the last events are read.
        message: what went wrong, if something did.
        events: the unread events; None follows the last one.
    """

    def __init__(self, request: Request, client: str, deadline: float, cancel: Callable[["GenerationHandle"], None]):
        self.request, self.client, self.deadline = request, client, deadline
        self.submitted = time.monotonic()
        self.entered: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.end: EndReason | None = None
        self.message = ""
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._cancel = cancel
        self._arrived = asyncio.Event()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def cancel(self) -> None:
        """End the request now, from any thread; its row is free before the engine's next step."""
        if self.end is None:
            self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            try:
                event = self.events.get_nowait()
            except queue.Empty:
                # The loop's own thread sets the event after the news was put into the queue, so none is missed.
                self._arrived.clear()
                await self._arrived.wait()
                continue
            if event is None:
                return
            yield event


def deliver(news: Sequence[tuple[GenerationHandle, Event | None]]) -> None:
    """Put events into their handles and wake the readers, each event loop only once."""
    loops: dict[asyncio.AbstractEventLoop, list[GenerationHandle]] = {}
    for handle, event in news:
        handle.events.put(event)
        if handle._loop is not None:
            loops.setdefault(handle._loop, []).append(handle)
    for loop, handles in loops.items():
        with contextlib.suppress(RuntimeError):  # a closed loop has no readers
            loop.call_soon_threadsafe(_wake, handles)


def _wake(handles: Sequence[GenerationHandle]) -> None:
    for handle in handles:
        handle._arrived.set()
