"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

import http
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nanochat_pl.serve.tickets import Closed, End, Full, Update

__all__ = ["ApiError", "ClientGone", "add_error_handlers", "error_of_end", "error_response"]

CLIENT_GONE = 499
"""Status in logs of a request whose client went away; nobody reads it."""

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_KINDS = {  # pydantic's error type -> OpenAI's code
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
    "unsupported_parameter": "unsupported_parameter",
}


class ApiError(Exception):
    """What a client is told.

    Args:
        status: HTTP status.
        message: what is wrong, what was expected, what to do.
        param: the field of the request that is at fault.
        code: short name for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        kind = "invalid_request_error"
        if self.status >= 500:
            kind = "timeout_error" if self.status == 504 else "server_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def error_response(error: ApiError) -> JSONResponse:
    """Make the answer of an error."""
    return JSONResponse(error.body(), error.status, error.headers)


def error_of_end(update: Update) -> ApiError | None:
    """Say what a client is told of a request's end; None where it ended well."""
    # openai's clients repeat requests that failed on the server's side, unless told not to
    no_retry = {"x-should-retry": "false"}
    match update.end:
        case End.refused:
            return ApiError(400, update.message)
        case End.expired:
            return ApiError(
                504,
                "the time limit of a request was reached; ask for fewer tokens, or again when there is less to do",
                code="request_timeout",
                headers=no_retry,
            )
        case End.shutdown:
            return ApiError(503, "the server is shutting down", code="shutting_down")
        case End.fault:
            return ApiError(500, "the engine failed; the server's log says why", code="engine_fault", headers=no_retry)
    return None


def add_error_handlers(app: FastAPI) -> None:
    """Let all errors of an app have OpenAI's form."""

    def api(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    def full(_: Request, error: Exception) -> Response:
        assert isinstance(error, Full)
        wait = {"Retry-After": str(error.retry_after_s)}
        return error_response(ApiError(429, f"{error}; try again later", code="queue_full", headers=wait))

    def closed(_: Request, error: Exception) -> Response:
        return error_response(ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "10"}))

    def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(_of_validation(error.errors()))

    def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if message == http.HTTPStatus(error.status_code).phrase:
            message = f"{message}: {request.method} {request.url.path}"
        code = _CODES.get(error.status_code)
        return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))

    for kind, handler in (
        (ApiError, api),
        (Full, full),
        (Closed, closed),
        (ClientGone, gone),
        (RequestValidationError, invalid),
        (HTTPException, plain),
    ):
        app.add_exception_handler(kind, handler)


def _of_validation(errors: Sequence[Any]) -> ApiError:
    """Tell of the first fault of a body; of a field with several forms, of the form that was meant most likely."""
    first = max(errors, key=lambda error: (error["type"] == "unsupported_parameter", len(error["loc"])))
    if not any(error["type"] == "unsupported_parameter" for error in errors) and len(errors) > 1:
        first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    kind, param = str(first["type"]), _path(place)
    if kind == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}", code=_KINDS[kind])
    if kind == "unsupported_parameter":
        param = _path([*place, first["ctx"]["param"]])
    if not place and kind in ("missing", "model_attributes_type"):
        return ApiError(400, "the body must be a JSON object, sent with Content-Type: application/json")
    if kind == "extra_forbidden":
        message = f"{param} is unknown here, and a setting without effect is refused; leave it out"
    elif kind == "missing":
        message = f"{param} is missing"
    else:
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return ApiError(400, message, param=param or None, code=_KINDS.get(kind, "invalid_value"))


def _path(place: Sequence[Any]) -> str:
    """Write (messages, 0, role) as messages[0].role, without pydantic's names of alternatives."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path[:200]
