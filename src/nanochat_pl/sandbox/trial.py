"""The script that tests a function from a process that the function's program cannot touch.

It runs as a program of the sandbox, with its task as JSON on standard input (`prompt`, `code`, `imports`, `test`,
`entry_point`).
The tests stay in this process; the code runs in another one, a fresh interpreter, and answers calls through two pipes.
Only JSON of built-in values crosses them, and it is not trusted: an object that equals everything cannot cross, a
changed `abs` stays where it was changed, and the code can see neither tests nor outcome. The outcome is the exit code
of this process: 0 where `check` ran to its end.

Arguments cross as copies, so a function that changes them in place changes only its own.
"""

import builtins
import contextlib
import ctypes
import json
import os
import signal
import sys
import types
from typing import Any, BinaryIO, NoReturn

__all__: list[str] = []

_DUMPABLE = 4
_MAX_BYTES = 16 * 2**20
"""Longest message."""


def _packed(value: Any) -> Any:
    """Turn a value of built-in types into JSON; a subclass becomes the built-in type that it extends.

    Raises:
        TypeError: for anything else.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"int": hex(int.__int__(value))}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [_packed(item) for item in list(value)]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key), _packed(item)] for key, item in dict.items(value)]}
    raise TypeError(f"a value of type {type(value).__name__} cannot be handed over; only built-in types can")


def _unpacked(data: Any) -> Any:
    """Turn the JSON of `_packed` into values, which are always of built-in types exactly."""
    if data is None or isinstance(data, (bool, str)):
        return data
    ((kind, content),) = data.items()
    match kind:
        case "int":
            return int(content, 16)
        case "float":
            return float.fromhex(content)
        case "complex":
            return complex(*map(float.fromhex, content))
        case "bytes":
            return bytes.fromhex(content)
        case "list" | "tuple" | "set" | "frozenset":
            return getattr(builtins, kind)(map(_unpacked, content))
        case "dict":
            return {_unpacked(key): _unpacked(item) for key, item in content}
    raise ValueError("a message that is none")


def _send(pipe: BinaryIO, message: Any) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def _receive(pipe: BinaryIO) -> Any:
    line = pipe.readline(_MAX_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the program ended, or said too much, before its tests did")
    return json.loads(line)


# -- the side of the code -----------------------------------------------------------------------------------------


def _answer(calls: BinaryIO, responses: BinaryIO) -> NoReturn:
    """Run the code in the first message, then answer calls of its functions forever.

    The code is imported, not started: a block `if __name__ == "__main__"` is not run, as in nanochat (2025-11).
    """
    module = sys.modules["answer"] = types.ModuleType("answer")
    space = module.__dict__
    try:
        exec(compile(_receive(calls), "<answer>", "exec"), space)
        _send(responses, {"result": None})
    except BaseException as error:
        _send(responses, _error_message(error))
    while True:
        name, args, kwargs = _receive(calls)
        try:
            result = space[name](*_unpacked(args), **_unpacked(kwargs))
            message = {"result": _packed(result)}
        except BaseException as error:
            message = _error_message(error)
        _send(responses, message)


def _error_message(error: BaseException) -> dict[str, Any]:
    try:
        text = str(error)
    except BaseException:
        text = ""
    return {"error": [type(error).__name__, text[:500]]}


# -- the side of the tests ----------------------------------------------------------------------------------------


def _result(responses: BinaryIO) -> Any:
    """Return what a call returned, or raise its error: the same if it is built in, else a RuntimeError."""
    message = _receive(responses)
    if "error" not in message:
        return _unpacked(message["result"])
    name, text = (str(part) for part in message["error"])
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, UnicodeError):
        raise RuntimeError(f"{name}: {text}")
    raise kind(text)


def _test(spec: dict[str, str]) -> None:
    """Start the code's process, run the tests here, and end the former."""
    # If the code can see other processes, it still cannot look into this one.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DUMPABLE, 0, 0, 0, 0)
    calls_read, calls_write = os.pipe()
    responses_read, responses_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # standard input held the tests
        for pipe in (calls_read, responses_write):
            os.set_inheritable(pipe, True)
        flags = ["-s", "-S", "-P"]
        os.execv(sys.executable, [sys.executable, *flags, __file__, str(calls_read), str(responses_write)])
    os.close(calls_read)
    os.close(responses_write)
    try:
        with open(calls_write, "wb") as calls, open(responses_read, "rb") as responses:
            _send(calls, spec["code"])
            _result(responses)

            def candidate(*args: Any, **kwargs: Any) -> Any:
                _send(calls, [spec["entry_point"], _packed(list(args)), _packed(kwargs)])
                return _result(responses)

            space: dict[str, Any] = {"__name__": "tests"}
            try:
                exec(compile(spec["prompt"], "<prompt>", "exec"), space)  # helpers that the tests may call
            except SyntaxError:
                exec(compile(spec["imports"], "<imports>", "exec"), space)
            space[spec["entry_point"]] = candidate
            exec(compile(spec["test"], "<tests>", "exec"), space)
            space["check"](candidate)
    finally:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        pipes = [int(number) for number in sys.argv[1:]]
        sys.argv[1:] = []
        with open(pipes[0], "rb") as calls_of_tests, open(pipes[1], "wb") as responses_to_tests:
            _answer(calls_of_tests, responses_to_tests)
    else:
        _test(json.load(sys.stdin))
