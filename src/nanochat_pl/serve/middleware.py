"""The middleware before all routes: time limits of connections, host, API key, size of bodies, log and metrics."""

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat_pl.serve.errors import CLIENT_GONE, ApiError, error_response
from nanochat_pl.serve.settings import Limits

if TYPE_CHECKING:
    from nanochat_pl.serve.worker import Worker

__all__ = [
    "PROTECTED",
    "Metrics",
    "RequestMiddleware",
    "RequestRecord",
    "host_name",
    "record_of",
    "timed_protocol",
]

log = logging.getLogger(__name__)
access = logging.getLogger("nanochat_pl.serve.access")
"""Logs one line of JSON for each request."""

PROTECTED = ("/v1/", "/chat/", "/stats", "/metrics", "/openapi.json")
"""Paths that need an API key if the server has one; the page and /health are open."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/?#@\s]+)(?::\d{0,5})?")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass
class RequestRecord:
    """A request's line in the log, which the routes fill in.

    Logs never hold the words of a conversation, only their number.
    """

    request_id: str
    client: str
    """The number of the client's key and its address, by which rows are shared out. Not logged."""
    route: str | None = None
    """A name for requests outside the API's routes; None = the route's pattern."""
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    error: str | None = None
    """The code of an error, also of one after the status was sent."""
    param: str | None = None
    reason: str | None = None
    """The field that is at fault, and what is wrong with it; names and numbers only, never a user's words."""

    def refuse(self, error: ApiError, logged: str | None = None) -> None:
        """Record why a request was refused; `logged` is the log's message if it must differ from the client's."""
        self.error, self.param, self.reason = error.code, error.param, (logged or error.message)[:300]


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of a request that passed `RequestMiddleware`."""
    record = scope["nanochat_pl.record"]
    assert isinstance(record, RequestRecord)
    return record


class Metrics:
    """Prometheus metrics of one server: it counts requests, and reads the workers' counts on each scrape.

    Each server has its own registry, so that two servers in a process do not mix.
    """

    def __init__(self, workers: Mapping[str, "Worker"]):
        self.registry = CollectorRegistry()
        self.requests = Counter("nanochat_requests", "Requests over HTTP", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "nanochat_request_seconds",
            "From a request's arrival to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "nanochat_time_to_first_token_seconds",
            "From a request's submission to its first token, waiting included",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Workers(workers))
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Workers(Collector):
    """The counts of the workers."""

    def __init__(self, workers: Mapping[str, "Worker"]):
        self._workers = workers

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        states = [(model, worker.state()) for model, worker in self._workers.items()]
        for kind, name, what, field in (
            (GaugeMetricFamily, "nanochat_active_rows", "Requests that are being generated", "active"),
            (GaugeMetricFamily, "nanochat_rows", "Requests that can be generated at once", "batch_size"),
            (GaugeMetricFamily, "nanochat_queue_length", "Requests that wait for a row", "waiting"),
            (CounterMetricFamily, "nanochat_prompt_tokens", "Tokens of prompts that were read", "prompt_tokens"),
            (CounterMetricFamily, "nanochat_completion_tokens", "New tokens, those of tools among them", "new_tokens"),
            (CounterMetricFamily, "nanochat_engine_steps", "Steps of the engine", "steps"),
            (CounterMetricFamily, "nanochat_engine_faults", "Failures of the engine", "faults"),
        ):
            family = kind(name, what, labels=["model"])
            for model, state in states:
                family.add_metric([model], getattr(state, field))
            yield family
        ended = CounterMetricFamily("nanochat_generations", "Generations that ended", labels=["model", "end"])
        for model, state in states:
            for end, count in state.ended.items():
                ended.add_metric([model, end], count)
        yield ended


class RequestMiddleware:
    """Check host, API key and body of every request, give it an id, and record it in the log and the metrics.

    It implements ASGI itself instead of wrapping a function of a request, so that streams pass through unbuffered and a
    client's disconnect reaches the generation. Only CORS is outside of it.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._keys = [key.encode() for key in limits.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, headers = time.monotonic(), Headers(scope=scope)
        key = self._key(headers)
        address = scope["client"][0] if scope.get("client") else ""
        # the client's id is used if it is harmless in a log
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _SANE_ID.fullmatch(client_id) else f"req_{uuid.uuid4().hex}"
        record = RequestRecord(request_id, f"{key}@{address}")
        method = scope["method"]
        # every GET route also answers HEAD
        scope = {**scope, "method": "GET" if method == "HEAD" else method, "nanochat_pl.record": record}
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = record.request_id
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            # browsers always send the header; health checks over HTTP/1.0 may not
            if self._limits.hosts and "host" in headers and host_name(headers["host"]) not in self._limits.hosts:
                raise ApiError(
                    421,
                    f"this server is called {' or '.join(self._limits.hosts)} and by no other name; whoever runs it "
                    "may add one with --allow-host NAME",
                    code="wrong_host",
                )
            if key is None and _is_protected(scope):
                raise _no_key("authorization" in headers)
            await self._app(scope, _limited(receive, headers, self._limits), sending)
        except ApiError as error:
            record.refuse(error)
            await error_response(error)(scope, receive, sending)
        except Exception:
            log.exception("request %s failed", record.request_id)
            record.error = "internal"
            if status is not None:
                raise  # the response has begun: only breaking it off shows that it is incomplete
            fault = ApiError(500, "a fault of the server; its log says more, under the request's id", code="internal")
            await error_response(fault)(scope, receive, sending)
        finally:
            self._log(method, scope, record, status or CLIENT_GONE, time.monotonic() - began)

    def _key(self, headers: Headers) -> int | None:
        """Return the number of a request's API key, 0 if none is needed, or None if it is missing or wrong."""
        if not self._keys:
            return 0
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # compare all keys, each in constant time, so that the duration reveals nothing
        matches = [hmac.compare_digest(sent.strip().encode(), key) for key in self._keys]
        return matches.index(True) if scheme.lower() == "bearer" and any(matches) else None

    def _log(self, method: str, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        # the route's pattern, not the path: paths are unlimited in number, and may hold a user's words
        route = record.route or getattr(scope.get("route"), "path", None) or "other"
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if record.first_token_s is not None:
            self._metrics.first_token.labels(record.model).observe(record.first_token_s)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": record.request_id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "model": record.model,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 4),
            "error": record.error,
            "param": record.param,
            "reason": record.reason,
        }
        access.info(json.dumps({name: value for name, value in line.items() if value is not None}))


def _is_protected(scope: Scope) -> bool:
    """Return whether a path needs an API key, also if the application is mounted in another one."""
    path = scope["path"]
    return path.startswith(PROTECTED) or path.removeprefix(scope.get("root_path", "")).startswith(PROTECTED)


def _no_key(is_wrong: bool) -> ApiError:
    """Return the error about a wrong or missing API key."""
    send = "send the header Authorization: Bearer <key>"
    return ApiError(
        401,
        f"the API key is wrong: {send} with a key of this server" if is_wrong else f"there is no API key: {send}",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


_ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress")


def _limited(receive: Receive, headers: Headers, limits: Limits) -> Receive:
    """Refuse a body that is compressed, longer than allowed (announced or not), or stalled."""
    encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity"):
        # an unknown name is not for the log: it may hold a user's words
        known = all(part.strip() in _ENCODINGS for part in encoding.split(","))
        shown = f"Content-Encoding: {encoding}" if known and len(encoding) < 40 else "an unknown Content-Encoding"
        raise ApiError(
            415,
            f"the body is sent with {shown}, which is not supported; send it uncompressed, without that header",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "identity"},
        )
    most, announced = limits.max_body_bytes, headers.get("content-length", "")[:20]
    if announced.isdecimal() and int(announced) > most:
        raise ApiError(
            413,
            f"the body has {announced} bytes, which exceed context limits: at most {most} are read",
            code="body_too_large",
        )
    seen, complete = 0, False

    async def receiving() -> Message:
        nonlocal seen, complete
        if complete:  # the next message is the client's disconnect
            return await receive()
        try:
            async with asyncio.timeout(limits.stalled_client_s):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing came for {limits.stalled_client_s:g} seconds") from None
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if seen > most:
                raise HTTPException(413, f"the body's bytes exceed context limits: at most {most} are read")
        return message

    return receiving


def host_name(host: str) -> str:
    """Return the normalized name in a header `Host`; empty if it holds no name.

    The port and a final dot are removed, letters are lower case, and an IPv6 address is in its short form.
    """
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return ""
    name = found[1]
    if name.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return ""
    return name.removesuffix(".")


def _answer(status: str, error: ApiError) -> bytes:
    """Return the bytes of a whole response, for errors that arise before the application is called."""
    body = error_response(error).body
    head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + bytes(body)


_TOO_LATE = _answer("408 Request Timeout", ApiError(408, "the head of a request did not come in time"))
_NO_REQUEST = _answer("400 Bad Request", ApiError(400, "this is no request of HTTP/1.1 or HTTP/1.0"))


def timed_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Make uvicorn's HTTP protocol with a limit on the time that a request's head may take.

    By itself uvicorn waits for the end of a request's head for ever. The time runs from the connection, and after a
    response from the first byte of the next request; further bytes do not prolong it. uvicorn's `timeout_keep_alive`
    limits how long a connection may be idle after a response, `Limits.stalled_client_s` how long a body may take.

    A connection without a whole head after `seconds` gets status 408 and is closed. The result is for
    `uvicorn.Config(http=...)`.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen when uvicorn is imported
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._start_timer()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(error)

        def send_400_response(self, msg: str) -> None:
            """Send the error about an invalid HTTP request in the form of all errors."""
            self.transport.write(_NO_REQUEST)
            self.transport.close()

        def _start_timer(self) -> None:
            """Let the time run unless a request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(_TOO_LATE)
                self.transport.close()

    return TimedProtocol
