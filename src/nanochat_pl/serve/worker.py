"""One thread for each model: requests of many clients share its rows and never each other's fate.

The thread takes a `DecodingSession` further, step by step; between two steps it lets requests in and out. Who waits
longest for its share comes first: a free row goes to the client that holds the fewest, so that fifty requests of one
client do not hold up the one of another. What a request yields lies in its own `Ticket` until it is read, at most its
`max_new_tokens` long, so a slow reader delays nobody.
"""

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_pl.engine import DecodingSession, Engine, Request
from nanochat_pl.serve.tickets import Closed, End, Full, Ticket, Update, announce

__all__ = ["Worker", "WorkerState"]

log = logging.getLogger(__name__)

IDLE_S = 30.0
"""After so many seconds without work the cache's memory is given back."""


@dataclass(frozen=True)
class WorkerState:
    """A worker at one moment, with its sums since the start."""

    batch_size: int
    active: int
    """Requests that hold a row."""
    waiting: int
    steps: int
    prompt_tokens: int
    """Of requests that got a row."""
    new_tokens: int
    faults: int
    """Failures of the engine, each of which ended all that ran."""
    ended: dict[str, int]
    """Requests by `End`."""
    alive: bool
    """The thread runs."""


class Worker:
    """Generate for many clients with one engine, in a thread of its own.

    Args:
        engine: used by this worker only.
        batch_size: rows at once.
        queue_limit: requests that may wait for a row.
        client_limit: how many of these may be one client's; None = all.
        name: of the model, for logs.
    """

    def __init__(
        self,
        engine: Engine,
        batch_size: int = 16,
        queue_limit: int = 256,
        client_limit: int | None = None,
        name: str = "model",
    ):
        limits = {"batch_size": batch_size, "queue_limit": queue_limit, "client_limit": client_limit}
        for limit, value in limits.items():
            if value is not None and value < 1:
                raise ValueError(f"{limit}={value} must be at least 1")
        self.batch_size, self.queue_limit, self.name = batch_size, queue_limit, name
        self.client_limit = client_limit or queue_limit
        self.most_together = batch_size + min(queue_limit, self.client_limit)
        """Requests that can be submitted at once, where nothing else is being done."""
        self._engine = engine
        self._session: DecodingSession | None = None
        self._changed = threading.Condition()  # guards all that follows
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()  # whoever got a row last stands last
        self._num_waiting = 0
        self._active: dict[int, Ticket] = {}  # by the session's number
        self._rows_of: Counter[str] = Counter()
        self._cancelled: set[Ticket] = set()
        self._num_entering = 0  # no longer in a queue, not yet in the session
        self._closing = False
        self._closes = math.inf  # when everything ends
        self._ended: Counter[str] = Counter()
        self._steps = self._prompt_tokens = self._new_tokens = self._faults = 0
        self._mean_s = 1.0
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    # What clients' threads call

    def submit(self, requests: Sequence[Request], client: str = "", time_limit_s: float = math.inf) -> list[Ticket]:
        """Queue requests, all of them or none, and return a ticket for each.

        Args:
            requests: equal prompts submitted together are read once where rows are free.
            client: rows are shared out evenly between clients.
            time_limit_s: seconds from now until they are ended, waiting included.

        Raises:
            Full: more would wait than may.
            Closed: the worker is being shut down.
        """
        with self._changed:
            if self._closing:
                raise Closed("the server is shutting down")
            if not self._thread.is_alive():  # it also keeps the time limits, so that nobody would ever be answered
                raise Closed(f"the engine of {self.name} has died")
            more = len(requests) - (self.batch_size - len(self._active) - self._num_entering)  # but for the free rows
            if self._num_waiting + more > self.queue_limit:
                raise Full(f"{self.name} has {self._num_waiting} requests waiting, at its limit", self._retry_after())
            if len(self._queues.get(client, ())) + more > self.client_limit:
                raise Full(f"{self.client_limit} requests of one client may wait, no more", self._retry_after())
            tickets = [Ticket(request, client, time.monotonic() + time_limit_s, self._cancel) for request in requests]
            self._queues.setdefault(client, deque()).extend(tickets)
            self._num_waiting += len(tickets)
            self._changed.notify()
        return tickets

    def state(self) -> WorkerState:
        """Say how things stand."""
        with self._changed:
            return WorkerState(
                self.batch_size,
                len(self._active) + self._num_entering,
                self._num_waiting,
                self._steps,
                self._prompt_tokens,
                self._new_tokens,
                self._faults,
                dict(self._ended),
                self._thread.is_alive(),
            )

    def drain(self, grace_s: float) -> None:
        """Take no more requests; end those that are not done after `grace_s` seconds. Returns at once."""
        with self._changed:
            self._closing = True
            self._closes = min(self._closes, time.monotonic() + grace_s)
            self._changed.notify()

    def close(self, grace_s: float = 0.0) -> None:
        """Drain, and wait until the thread has ended."""
        self.drain(grace_s)
        self._thread.join()

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket.end is None:
                self._cancelled.add(ticket)
                self._changed.notify()

    def _retry_after(self) -> int:
        return min(60, max(1, math.ceil(self._mean_s * (self._num_waiting + 1) / self.batch_size)))

    # What the worker's own thread does

    def _run(self) -> None:
        while True:
            news: list[tuple[Ticket, Update]] = []
            with self._changed:
                while not (self._active or self._num_waiting or self._closing or self._cancelled):
                    if not self._changed.wait(IDLE_S):
                        self._session = None
                self._leave(news)
                entering = self._enter()
                if self._closing and not self._active and not entering and not self._num_waiting:
                    announce(news)
                    return
            self._step(entering, news)
            announce(news)

    def _leave(self, news: list[tuple[Ticket, Update]]) -> None:
        """Let go of what was cancelled and what is late."""
        now = time.monotonic()
        gone = {ticket: End.cancelled for ticket in self._cancelled if ticket.end is None}
        self._cancelled.clear()
        waiting = (ticket for tickets in self._queues.values() for ticket in tickets)
        for ticket in (*self._active.values(), *waiting):
            if min(ticket.deadline, self._closes) <= now:
                gone.setdefault(ticket, End.expired if ticket.deadline <= now else End.shutdown)
        if not gone:
            return
        for number, ticket in list(self._active.items()):
            if ticket in gone and self._session is not None:
                self._session.cancel(number)
                self._forget(number)
        for client, tickets in list(self._queues.items()):
            stay = deque(ticket for ticket in tickets if ticket not in gone)
            self._num_waiting -= len(tickets) - len(stay)
            self._queues[client] = stay
            if not stay:
                del self._queues[client]
        for ticket, end in gone.items():
            self._finish(ticket, Update(end=end), news)

    def _enter(self) -> list[Ticket]:
        """Choose who gets the free rows: of those who wait, the client with the fewest, then who waited longest."""
        entering: list[Ticket] = []
        rows = self._rows_of.copy()
        while self._num_waiting and len(self._active) + len(entering) < self.batch_size:
            client = min(self._queues, key=lambda client: rows[client])
            entering.append(self._queues[client].popleft())
            self._num_waiting -= 1
            rows[client] += 1
            self._queues.move_to_end(client)
            if not self._queues[client]:
                del self._queues[client]
        self._num_entering = len(entering)
        return entering

    def _step(self, entering: Sequence[Ticket], news: list[tuple[Ticket, Update]]) -> None:
        """Submit who enters, take all rows a token further, and note what happened."""
        entered = list(entering)
        try:
            if self._session is None:
                self._session = self._engine.session(self.batch_size)
            for ticket in entering:
                self._submit(self._session, ticket, news)
                entered.remove(ticket)
            events = self._session.step() if self._active else []
        except Exception as error:  # whatever it was, the others' requests and the server go on
            log.exception("the engine of %s failed with %d rows", self.name, len(self._active))
            self._session = None  # its cache may be in any state
            with self._changed:
                self._faults += 1
                for number in list(self._active):
                    entered.append(self._forget(number))
                for ticket in entered:
                    self._finish(ticket, Update(end=End.fault, message=type(error).__name__), news)
                self._num_entering = 0
            return
        with self._changed:
            self._steps += bool(events)
            now = time.monotonic()
            for event in events:
                ticket = self._active[event.id]
                if event.token is not None:
                    self._new_tokens += 1
                    if ticket.first_token is None:
                        ticket.first_token = now
                if event.completion is None:
                    news.append((ticket, Update(event)))
                else:
                    self._forget(event.id)
                    end = End.length if event.completion.stop_token is None else End.stop
                    self._finish(ticket, Update(event, end), news)

    def _submit(self, session: DecodingSession, ticket: Ticket, news: list[tuple[Ticket, Update]]) -> None:
        try:
            number = session.submit(ticket.request)
        except ValueError as error:
            with self._changed:
                self._num_entering -= 1
                self._finish(ticket, Update(end=End.refused, message=str(error)), news)
            return
        with self._changed:
            self._num_entering -= 1
            ticket.entered = time.monotonic()
            self._active[number] = ticket
            self._rows_of[ticket.client] += 1
            self._prompt_tokens += len(ticket.request.prompt)

    def _forget(self, number: int) -> Ticket:
        ticket = self._active.pop(number)
        self._rows_of[ticket.client] -= 1
        if not self._rows_of[ticket.client]:
            del self._rows_of[ticket.client]
        return ticket

    def _finish(self, ticket: Ticket, update: Update, news: list[tuple[Ticket, Update]]) -> None:
        assert update.end is not None
        ticket.end, ticket.ended = update.end, time.monotonic()
        self._ended[update.end] += 1
        if ticket.entered is not None:
            self._mean_s += 0.1 * (ticket.ended - ticket.entered - self._mean_s)
        news.append((ticket, update))
