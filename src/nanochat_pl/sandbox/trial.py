"""The script that tests a function somebody wrote, from a process that its program cannot touch.

Run as a program of the sandbox, with what to test as JSON on standard input (`prompt`, `code`, `imports`, `test`,
`entry_point`).
The tests stay in this process; the code runs in another one, a fresh interpreter, and answers calls through two pipes.
What crosses them is JSON of built-in values, read without trust: an object that equals everything cannot cross, a
changed `abs` stays where it was changed, and neither tests nor outcome can be seen over there. The outcome is the exit
code of this process: 0 where `check` came to its end.

Arguments cross as copies, so a function that changes them in place changes its own.
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
"""Of one message."""


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
    """Turn the JSON of `_packed` into values; whatever it holds, they are of built-in types exactly."""
    if data is None or isinstance(data, (bool, str)):
        return data
    ((kind, held),) = data.items()
    match kind:
        case "int":
            return int(held, 16)
        case "float":
            return float.fromhex(held)
        case "complex":
            return complex(*map(float.fromhex, held))
        case "bytes":
            return bytes.fromhex(held)
        case "list" | "tuple" | "set" | "frozenset":
            return getattr(builtins, kind)(map(_unpacked, held))
        case "dict":
            return {_unpacked(key): _unpacked(item) for key, item in held}
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


def _answer(asked: BinaryIO, said: BinaryIO) -> NoReturn:
    """Run the code that comes first, then answer calls of its functions for ever.

    The code is imported, not started: what stands below `if __name__ == "__main__"` is not run, as in nanochat
    (2025-11).
    """
    module = sys.modules["answer"] = types.ModuleType("answer")
    space = module.__dict__
    try:
        exec(compile(_receive(asked), "<answer>", "exec"), space)
        _send(said, {"result": None})
    except BaseException as error:
        _send(said, _told(error))
    while True:
        name, arguments, named = _receive(asked)
        try:
            result = space[name](*_unpacked(arguments), **_unpacked(named))
            message = {"result": _packed(result)}
        except BaseException as error:
            message = _told(error)
        _send(said, message)


def _told(error: BaseException) -> dict[str, Any]:
    try:
        text = str(error)
    except BaseException:
        text = ""
    return {"error": [type(error).__name__, text[:500]]}


# -- the side of the tests ----------------------------------------------------------------------------------------


def _result(said: BinaryIO) -> Any:
    """Return what a call returned, or raise an error of the same name where that is a built-in one."""
    message = _receive(said)
    if "error" not in message:
        return _unpacked(message["result"])
    name, text = (str(part) for part in message["error"])
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, UnicodeError):
        raise RuntimeError(f"{name}: {text}")
    raise kind(text)


def _test(spec: dict[str, str]) -> None:
    """Start the code's process, run the tests here, and end both."""
    # Where the code sees other processes, it sees nothing of this one.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DUMPABLE, 0, 0, 0, 0)
    asked_read, asked_write = os.pipe()
    said_read, said_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what stood there are the tests
        for pipe in (asked_read, said_write):
            os.set_inheritable(pipe, True)
        flags = ["-s", "-S", "-P"]
        os.execv(sys.executable, [sys.executable, *flags, __file__, str(asked_read), str(said_write)])
    os.close(asked_read)
    os.close(said_write)
    try:
        with open(asked_write, "wb") as asked, open(said_read, "rb") as said:
            _send(asked, spec["code"])
            _result(said)

            def candidate(*arguments: Any, **named: Any) -> Any:
                _send(asked, [spec["entry_point"], _packed(list(arguments)), _packed(named)])
                return _result(said)

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
        sides = [int(number) for number in sys.argv[1:]]
        sys.argv[1:] = []
        with open(sides[0], "rb") as asked_by_tests, open(sides[1], "wb") as said_to_tests:
            _answer(asked_by_tests, said_to_tests)
    else:
        _test(json.load(sys.stdin))
