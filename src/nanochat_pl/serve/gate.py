"""What every request passes: its id, the key, the size of its body, the log, the counters.

Written against ASGI itself, not as a wrapped function of a request: a stream passes through as it is, and a client's
leaving reaches whoever generates for it. Logs never hold contents: only what was asked how long.
"""

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat_pl.serve.errors import CLIENT_GONE, ApiError, error_response
from nanochat_pl.serve.limits import Limits
from nanochat_pl.serve.metrics import Metrics
from nanochat_pl.serve.names import host_name

__all__ = ["PROTECTED", "Gate", "Record", "record_of"]

log = logging.getLogger(__name__)
access = logging.getLogger("nanochat_pl.serve.access")
"""One line of JSON a request."""

PROTECTED = ("/v1/", "/chat/", "/stats", "/metrics", "/openapi.json")
"""Paths that need a key where there is one; the page and /health are open."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass
class Record:
    """What a request's line in the log says; filled in on its way."""

    request_id: str
    client: str
    """Whose it is, for sharing out: the number of its key and its address. Not logged."""
    route: str | None = None
    """Name where no route of the API answers; None = that one's pattern."""
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    error: str | None = None
    """Code of an error, also of one that came after the status."""
    param: str | None = None
    reason: str | None = None
    """The field that is at fault, and what is wrong with it; names and numbers only, never what was said."""

    def refuse(self, error: ApiError, logged: str | None = None) -> None:
        """Note why a request was not answered.

        Args:
            error: what the client is told.
            logged: the message for the log, where it must not be the client's.
        """
        self.error, self.param, self.reason = error.code, error.param, (logged or error.message)[:300]


def record_of(scope: Scope) -> Record:
    """Return the record of a request that passed the gate."""
    record = scope["nanochat_pl.record"]
    assert isinstance(record, Record)
    return record


class Gate:
    """ASGI middleware; the outermost but for CORS."""

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
        record = Record(_request_id(headers), f"{key}@{address}")
        method = scope["method"]
        # whatever can be got can also be asked for its headers alone
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
            # a request without the header (HTTP/1.0, as of health checks) is no page's
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
                raise  # the answer is under way: only breaking it off says that it is not whole
            fault = ApiError(500, "a fault of the server; its log says more, under the request's id", code="internal")
            await error_response(fault)(scope, receive, sending)
        finally:
            self._note(method, scope, record, status or CLIENT_GONE, time.monotonic() - began)

    def _key(self, headers: Headers) -> int | None:
        """Return the number of the key that a request bears, 0 where none is needed, or None for a wrong one."""
        if not self._keys:
            return 0
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # every key is compared, each in constant time: how long it takes tells nothing
        fits = [hmac.compare_digest(sent.strip().encode(), key) for key in self._keys]
        return fits.index(True) if scheme.lower() == "bearer" and any(fits) else None

    def _note(self, method: str, scope: Scope, record: Record, status: int, seconds: float) -> None:
        # the route's pattern, not the path: paths are endless, and may hold what somebody typed
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
    """Say whether a path needs the key, also below the place where the application is mounted in another one."""
    path = scope["path"]
    return path.startswith(PROTECTED) or path.removeprefix(scope.get("root_path", "")).startswith(PROTECTED)


def _no_key(is_wrong: bool) -> ApiError:
    """Tell a wrong key from none."""
    send = "send the header Authorization: Bearer <key>"
    return ApiError(
        401,
        f"the API key is wrong: {send} with a key of this server" if is_wrong else f"there is no API key: {send}",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _request_id(headers: Headers) -> str:
    """Take the client's id where it can do no harm in a log, else make one."""
    theirs = headers.get("x-request-id", "")
    return theirs if _SANE_ID.fullmatch(theirs) else f"req_{uuid.uuid4().hex}"


_ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress")


def _limited(receive: Receive, headers: Headers, limits: Limits) -> Receive:
    """Refuse a body that is compressed or longer than allowed, announced or not, or does not come."""
    encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity"):
        # a name that is none may hold what somebody typed: not for the log
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
        if complete:  # what comes now is that the client has left
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
