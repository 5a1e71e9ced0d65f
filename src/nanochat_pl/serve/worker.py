"""One thread for each model, whose rows the requests of many clients share without delaying each other.

The thread runs a `DecodingSession` step by step; between two steps requests enter and leave. A free row goes to the
client that holds the fewest, and among these to the one that has waited longest, so that fifty requests of one client
do not hold up the only one of another. The events of a request stay in its own `GenerationHandle` until they are read,
and are at most `max_new_tokens` in number, so that a slow reader delays nobody.
"""

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_pl.engine import DecodingSession, Engine, Event, Request
from nanochat_pl.serve.handle import EndReason, GenerationHandle, QueueFull, WorkerClosed, deliver

__all__ = ["Worker", "WorkerState"]

log = logging.getLogger(__name__)

News = list[tuple[GenerationHandle, Event | None]]
"""Events of a step, each with its request's handle; None = the request has ended."""
IDLE_S = 30.0
"""After this many seconds without work the cache's memory is freed."""


@dataclass(frozen=True)
class WorkerState:
    """The state of a worker at one moment, with its counts since the start."""

    batch_size: int
    active: int
    """Requests that hold a row."""
    waiting: int
    steps: int
    prompt_tokens: int
    """Prompt tokens of all requests that got a row."""
    new_tokens: int
    faults: int
    """Failures of the engine, each of which ended all running requests."""
    ended: dict[str, int]
    """How many requests ended, by `EndReason`."""
    alive: bool
    """Whether the thread runs."""


class Worker:
    """Generate for many clients with one engine, in a thread of its own.

    Args:
        engine: for the worker's use only.
        batch_size: how many requests are generated at once.
        queue_limit: how many requests may wait for a row.
        client_limit: how many of these may be of one client; None = all.
        name: the model's name, for logs.

    Attributes:
        most_together: how many requests can be submitted at once to an idle worker.

    Raises:
        ValueError: a limit is below 1.
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
        self._engine = engine
        self._session: DecodingSession | None = None
        self._changed = threading.Condition()  # guards all that follows
        # The client that got a row last is last.
        self._queues: OrderedDict[str, deque[GenerationHandle]] = OrderedDict()
        self._num_waiting = 0
        self._active: dict[int, GenerationHandle] = {}  # by the session's number
        self._rows_of: Counter[str] = Counter()
        self._cancelled: set[GenerationHandle] = set()
        self._num_entering = 0  # no longer in a queue, not yet in the session
        self._closing = False
        self._closes = math.inf  # time at which all requests end
        self._ended: Counter[str] = Counter()
        self._steps = self._prompt_tokens = self._new_tokens = self._faults = 0
        self._mean_s = 1.0
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    # Called by clients' threads

    def submit(
        self, requests: Sequence[Request], client: str = "", time_limit_s: float = math.inf
    ) -> list[GenerationHandle]:
        """Queue all of these requests or none, and return a handle for each.

        Equal prompts that are submitted together are read once, if rows are free. Rows are shared out evenly between
        clients. The requests end `time_limit_s` seconds from now at the latest, including waiting.

        Raises:
            QueueFull: more requests would wait than the limits allow.
            WorkerClosed: the worker is shutting down.
        """
        with self._changed:
            if self._closing:
                raise WorkerClosed("the server is shutting down")
            if not self._thread.is_alive():  # without it, not even time limits would end a request
                raise WorkerClosed(f"the engine of {self.name} has died")
            more = len(requests) - (self.batch_size - len(self._active) - self._num_entering)  # that find no free row
            if self._num_waiting + more > self.queue_limit:
                raise QueueFull(f"{self.name} has {self._num_waiting} requests waiting, at its limit", self._retry_s())
            if len(self._queues.get(client, ())) + more > self.client_limit:
                raise QueueFull(f"{self.client_limit} requests of one client may wait, no more", self._retry_s())
            deadline = time.monotonic() + time_limit_s
            handles = [GenerationHandle(request, client, deadline, self._cancel) for request in requests]
            self._queues.setdefault(client, deque()).extend(handles)
            self._num_waiting += len(handles)
            self._changed.notify()
        return handles

    def state(self) -> WorkerState:
        """Return the current state."""
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
        """Refuse new requests; end those that are not done after `grace_s` seconds. Returns at once."""
        with self._changed:
            self._closing = True
            self._closes = min(self._closes, time.monotonic() + grace_s)
            self._changed.notify()

    def close(self, grace_s: float = 0.0) -> None:
        """Drain, and wait until the thread has ended."""
        self.drain(grace_s)
        self._thread.join()

    def _cancel(self, handle: GenerationHandle) -> None:
        with self._changed:
            if handle.end is None:
                self._cancelled.add(handle)
                self._changed.notify()

    def _retry_s(self) -> int:
        return min(60, max(1, math.ceil(self._mean_s * (self._num_waiting + 1) / self.batch_size)))

    # Called by the worker's own thread

    def _run(self) -> None:
        """Let requests leave and enter, decode one token for all rows, and report, until the worker is closed."""
        while True:
            news: News = []
            # 1) Wait for something to do. Clients submit and cancel under the same lock, and never wait for a step.
            with self._changed:
                while not (self._active or self._num_waiting or self._closing or self._cancelled):
                    if not self._changed.wait(IDLE_S):
                        self._session = None  # and with it the cache's memory
                # 2) Cancelled and late requests leave, and waiting ones take the free rows.
                self._leave(news)
                entering = self._enter()
                if self._closing and not self._active and not entering and not self._num_waiting:
                    deliver(news)
                    return
            # 3) The engine's step runs without the lock; then all readers are woken at once.
            self._step(entering, news)
            deliver(news)

    def _leave(self, news: News) -> None:
        """End cancelled and late requests."""
        now = time.monotonic()
        gone = {handle: EndReason.cancelled for handle in self._cancelled if handle.end is None}
        self._cancelled.clear()
        waiting = (handle for handles in self._queues.values() for handle in handles)
        for handle in (*self._active.values(), *waiting):
            if min(handle.deadline, self._closes) <= now:
                gone.setdefault(handle, EndReason.expired if handle.deadline <= now else EndReason.shutdown)
        if not gone:
            return
        for number, handle in list(self._active.items()):
            if handle in gone and self._session is not None:
                self._session.cancel(number)
                self._forget(number)
        for client, handles in list(self._queues.items()):
            stay = deque(handle for handle in handles if handle not in gone)
            self._num_waiting -= len(handles) - len(stay)
            self._queues[client] = stay
            if not stay:
                del self._queues[client]
        for handle, end in gone.items():
            self._finish(handle, end, news)

    def _enter(self) -> list[GenerationHandle]:
        """Choose requests for the free rows: from the waiting client with the fewest rows that has waited longest."""
        entering: list[GenerationHandle] = []
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

    def _step(self, entering: Sequence[GenerationHandle], news: News) -> None:
        """Submit the entering requests, decode one token for all rows, and record the events."""
        entered = list(entering)
        try:
            if self._session is None:
                self._session = self._engine.session(self.batch_size)
            for handle in entering:
                self._submit(self._session, handle, news)
                entered.remove(handle)
            events = self._session.step() if self._active else []
        except Exception as error:  # the waiting requests and the server go on after any failure
            log.exception("the engine of %s failed with %d rows", self.name, len(self._active))
            self._session = None  # its cache may be in any state
            with self._changed:
                self._faults += 1
                entered = [self._forget(number) for number in list(self._active)] + entered
                for handle in entered:
                    self._finish(handle, EndReason.fault, news, type(error).__name__)
                self._num_entering = 0
            return
        with self._changed:
            self._steps += bool(events)
            now = time.monotonic()
            for event in events:
                handle = self._active[event.id]
                if event.token is not None:
                    self._new_tokens += 1
                    handle.first_token = handle.first_token or now
                news.append((handle, event))
                if event.completion is not None:
                    self._forget(event.id)
                    self._finish(
                        handle, EndReason.length if event.completion.stop_token is None else EndReason.stop, news
                    )

    def _submit(self, session: DecodingSession, handle: GenerationHandle, news: News) -> None:
        try:
            number = session.submit(handle.request)
        except ValueError as error:
            with self._changed:
                self._num_entering -= 1
                self._finish(handle, EndReason.refused, news, str(error))
            return
        with self._changed:
            self._num_entering -= 1
            handle.entered = time.monotonic()
            self._active[number] = handle
            self._rows_of[handle.client] += 1
            self._prompt_tokens += len(handle.request.prompt)

    def _forget(self, number: int) -> GenerationHandle:
        handle = self._active.pop(number)
        self._rows_of[handle.client] -= 1
        if not self._rows_of[handle.client]:
            del self._rows_of[handle.client]
        return handle

    def _finish(self, handle: GenerationHandle, end: EndReason, news: News, message: str = "") -> None:
        handle.end, handle.message, handle.ended = end, message, time.monotonic()
        self._ended[end] += 1
        if handle.entered is not None:
            self._mean_s += 0.1 * (handle.ended - handle.entered - self._mean_s)
        news.append((handle, None))
