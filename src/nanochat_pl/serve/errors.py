"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, for all that can go wrong."""

import http
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nanochat_pl.serve.handle import EndReason, GenerationHandle, QueueFull, WorkerClosed
from nanochat_pl.serve.responses import ErrorBody

__all__ = ["CLIENT_GONE", "ApiError", "ClientGone", "add_error_handlers", "error_of_end", "error_response"]

CLIENT_GONE = 499
"""Status that the log shows for a request whose client disconnected."""

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_KINDS = {  # pydantic's error type -> OpenAI's code
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}


class ApiError(Exception):
    """An error that is sent to the client.

    The message tells what is wrong, what was expected, and what to do; `param` is the request's field that is at fault,
    `code` a short name for programs.
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
        """Return the body of the response."""
        kind = "invalid_request_error"
        if self.status >= 500:
            kind = "timeout_error" if self.status == 504 else "server_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return ErrorBody.model_validate({"error": error}).sent()


class ClientGone(Exception):
    """The client disconnected and no longer waits for the answer."""


def error_response(error: ApiError) -> JSONResponse:
    """Make the response for an error."""
    return JSONResponse(error.body(), error.status, error.headers)


def error_of_end(handle: GenerationHandle) -> ApiError | None:
    """Return the error that a client gets for a request's end; None if the request succeeded."""
    # openai's clients repeat requests that failed on the server's side, unless told not to
    no_retry = {"x-should-retry": "false"}
    match handle.end:
        case EndReason.refused:
            return ApiError(400, handle.message)
        case EndReason.expired:
            return ApiError(
                504,
                "the time limit of a request was reached; ask for fewer tokens, or again when there is less to do",
                code="request_timeout",
                headers=no_retry,
            )
        case EndReason.shutdown:
            return ApiError(503, "the server is shutting down", code="shutting_down")
        case EndReason.fault:
            return ApiError(500, "the engine failed; the server's log says why", code="engine_fault", headers=no_retry)
    return None


def add_error_handlers(app: FastAPI) -> None:
    """Send all errors of an application in OpenAI's form."""

    def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientGone):
            return Response(status_code=CLIENT_GONE)
        client_error, logged = _to_api_error(error, request)
        # by name, since the middleware, whose record it is, imports this module
        if (record := request.scope.get("nanochat_pl.record")) is not None:
            record.refuse(client_error, logged)
        return error_response(client_error)

    for kind in (ApiError, QueueFull, WorkerClosed, ClientGone, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _to_api_error(error: Exception, request: Request) -> tuple[ApiError, str | None]:
    """Return the client's form of an error, and the message for the log if it must differ from the client's."""
    match error:
        case QueueFull():
            wait = {"Retry-After": str(error.retry_after_s)}
            return ApiError(429, f"{error}; try again later", code="queue_full", headers=wait), None
        case WorkerClosed():
            return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "10"}), None
        case RequestValidationError():
            return _from_validation(error.errors()), None
        case HTTPException(status_code=400):  # FastAPI could not parse it: no UTF-8, too deep, too many digits
            why = "the body cannot be read as JSON: it must be UTF-8, nested less deep, with shorter numbers"
            return ApiError(400, why, code="invalid_json"), None
        case HTTPException():
            status, message = error.status_code, str(error.detail)
            is_plain = message == http.HTTPStatus(status).phrase
            path = f": {request.method} {request.url.path}" * is_plain  # not for the log: it may hold a user's words
            return ApiError(status, message + path, code=_CODES.get(status), headers=error.headers), message
    assert isinstance(error, ApiError)
    return error, None


_REQUIREMENTS = {  # pydantic's error type -> the requirement on the value, with names of the error's context
    "literal_error": "one of {expected}",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_unicode": "text of whole characters",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than_equal": "{ge} or more",
    "greater_than": "above {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "below {lt}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}
_TYPE_NAMES: dict[type, str] = {str: "text", list: "a list", dict: "an object"}


def _from_validation(errors: Sequence[Any]) -> ApiError:
    """Return the first error of a body, in this server's words."""
    first = errors[0]
    path = [part for part in first["loc"] if part != "body"]
    kind, param = str(first["type"]), _path(path)
    if kind == "json_invalid":
        # keep the parser's position, but not its sentence
        where = next((f", at character {part}" for part in first["loc"] if isinstance(part, int)), "")
        return ApiError(400, f"the body is no JSON{where}", code=_KINDS[kind])
    if kind == "unsupported_parameter":
        name = first["ctx"]["param"]
        param = f"{param}.{name}" if param else name
        return ApiError(400, f"{param} {first['ctx']['problem']}", param=param, code=kind)
    if not path and kind in ("missing", "model_attributes_type"):
        return ApiError(400, "the body must be a JSON object, sent with Content-Type: application/json")
    if kind == "extra_forbidden":
        message = f"{param} is unknown here, and a setting without effect is refused; leave it out"
    elif kind == "missing":
        message = f"{param} is missing"
    else:
        message = f"{param or 'the name of a field'} must be {_expected(first)}; found {_found(first)}"
    return ApiError(400, message, param=param or None, code=_KINDS.get(kind, "invalid_value"))


def _expected(error: Mapping[str, Any]) -> str:
    kind, bounds = str(error["type"]), error.get("ctx", {})
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in bounds.items()}
    if kind == "form":
        return str(error["msg"])
    return (
        _REQUIREMENTS[kind].format(**bounds)
        if kind in _REQUIREMENTS
        else "of another form (/openapi.json describes it)"
    )


def _found(error: Mapping[str, Any]) -> str:
    """Describe the value that is at fault; text and containers only by kind, since logs hold no user's words."""
    value, kind = error["input"], error["type"]
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return f"{value}"[:40]
    if kind == "literal_error" and isinstance(value, str):
        return repr(value[:40])
    if kind in ("too_short", "too_long") and isinstance(value, list):
        return f"{len(value)}"
    return "empty text" if value == "" else _TYPE_NAMES.get(type(value), "something else")


def _path(location: Sequence[Any]) -> str:
    """Format (messages, 0, role) as messages[0].role; names that begin with # are forms of a field and are skipped."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("#"):
            path += ("." if path else "") + (part if part.isidentifier() else repr(part[:40]))
    return path[:200]
