"""A request on its way: what its owner holds, and what the worker tells them through it."""

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nanochat_pl.engine import Event, Request

__all__ = ["Closed", "End", "Full", "Ticket", "Update", "announce"]


class Full(RuntimeError):
    """No more requests may wait.

    Attributes:
        retry_after_s: whole seconds until there is likely room.
    """

    def __init__(self, message: str, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Closed(RuntimeError):
    """The worker takes no more requests, since it is being shut down."""


class End(StrEnum):
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
    """The engine failed; the message is for people who run the server."""


@dataclass(frozen=True, slots=True)
class Update:
    """News of a request: a step of the engine, its end, or both at once."""

    event: Event | None = None
    end: End | None = None
    """With the last update only."""
    message: str = ""
    """What went wrong, where something did."""


class Ticket:
    """One request on its way: iterate over its updates, in asyncio (`async for`) or in another thread (`for`).

    Attributes:
        request: what is generated.
        client: whose it is.
        deadline: `time.monotonic()` at which it is ended at the latest.
        submitted, entered, first_token, ended: `time.monotonic()` of these moments; None = not yet.
        end: why it ended; None = it has not. May be ahead of the updates that were read.
    """

    def __init__(self, request: Request, client: str, deadline: float, cancel: Callable[["Ticket"], None]):
        self.request, self.client, self.deadline = request, client, deadline
        self.submitted = time.monotonic()
        self.entered: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.end: End | None = None
        self._cancel = cancel
        self._updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._arrived = asyncio.Event()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def cancel(self) -> None:
        """End it now, from any thread; its row is free before the engine's next step."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Update]:
        while True:
            update = self._updates.get()
            yield update
            if update.end is not None:
                return

    async def __aiter__(self) -> AsyncIterator[Update]:
        while True:
            try:
                update = self._updates.get_nowait()
            except queue.Empty:
                # The loop's own thread sets the event, after what it announces was put: nothing is missed.
                self._arrived.clear()
                await self._arrived.wait()
                continue
            yield update
            if update.end is not None:
                return


def announce(news: Sequence[tuple[Ticket, Update]]) -> None:
    """Put updates into their tickets and wake the readers: each event loop once, not once a ticket."""
    loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket, update in news:
        ticket._updates.put(update)
        if ticket._loop is not None:
            loops.setdefault(ticket._loop, []).append(ticket)
    for loop, tickets in loops.items():
        with contextlib.suppress(RuntimeError):  # a loop that was closed has no readers
            loop.call_soon_threadsafe(_wake, tickets)


def _wake(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket._arrived.set()
