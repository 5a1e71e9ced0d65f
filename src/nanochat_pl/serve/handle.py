"""A request that is being generated: what its owner holds, and how the worker reports to them through it."""

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum

from nanochat_pl.requests import Event, Request

__all__ = ["EndReason", "GenerationHandle", "QueueFull", "WorkerClosed", "deliver"]


class QueueFull(RuntimeError):
    """No more requests may wait.

    Attributes:
        retry_after_s: whole seconds until there is likely room.
    """

    def __init__(self, message: str, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerClosed(RuntimeError):
    """The worker takes no more requests, since it is being shut down."""


class EndReason(StrEnum):
    """Why a request ended."""

    stop = "stop"
    """The model wrote a stop token."""
    length = "length"
    """`max_new_tokens`, or the end of the context."""
    cancelled = "cancelled"
    """Nobody wants the rest."""
    expired = "expired"
    """Its time was up."""
    shutdown = "shutdown"
    """The worker's time was up."""
    refused = "refused"
    """It asked for what cannot be generated."""
    fault = "fault"
    """The engine failed; the message is for whoever runs the server."""


class GenerationHandle:
    """One request while it is generated: iterate over its events with `async for`, or cancel it.

    The iteration stops when the request has ended, however it did; `end` then says why.

    Attributes:
        request: what is generated.
        client: whose it is.
        deadline: `time.monotonic()` at which it is ended at the latest.
        submitted, entered, first_token, ended: `time.monotonic()` of these moments; None = not yet.
        end: why it ended; None = it has not. It may be set before the last events were read.
        message: what went wrong, where something did.
        events: the events that were not read yet; None stands behind the last one.
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
                # The loop's own thread sets the event, after what it announces was put: nothing is missed.
                self._arrived.clear()
                await self._arrived.wait()
                continue
            if event is None:
                return
            yield event


def deliver(news: Sequence[tuple[GenerationHandle, Event | None]]) -> None:
    """Put events into their handles and wake the readers: each event loop once, not once for each handle."""
    loops: dict[asyncio.AbstractEventLoop, list[GenerationHandle]] = {}
    for handle, event in news:
        handle.events.put(event)
        if handle._loop is not None:
            loops.setdefault(handle._loop, []).append(handle)
    for loop, handles in loops.items():
        with contextlib.suppress(RuntimeError):  # a loop that was closed has no readers
            loop.call_soon_threadsafe(_wake, handles)


def _wake(handles: Sequence[GenerationHandle]) -> None:
    for handle in handles:
        handle._arrived.set()
