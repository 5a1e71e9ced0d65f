"""A stand-in for the server behind the web page: it speaks the same protocol and says what a test wants it to say.

Answers are scripts: text, a tool's part, an error, or a gate at which the stream waits for the test. It serves the page
under a stricter policy than the real server does (trusted types: Chromium refuses any text that is parsed as HTML).
"""

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nanochat_pl.serve
from nanochat_pl.tasks.scienceqa import PERSONA, format_question

__all__ = ["MODELS", "STATIC", "Break", "Failure", "Gate", "Length", "StandIn", "Tool", "serve_page"]

STATIC = Path(nanochat_pl.serve.__file__).parent / "static"
POLICY = "default-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
MODELS = [
    {"id": "base/d4", "object": "model", "stage": "base", "step": 2000, "context_length": 512},
    {"id": "sft/d4", "object": "model", "stage": "sft", "step": 650, "context_length": 512},
    {"id": "sft_scienceqa/d4", "object": "model", "stage": "sft_scienceqa", "step": 625, "context_length": 512},
]
for _model in MODELS[1:]:
    _model["suggestions"] = [
        {"topic": topic, "title": title, "text": format_question(title, choices), "system": system}
        for topic, title, choices, system in (
            ("Physics", "Which makes the best handle for a hot pan?", ["copper", "wood", "steel"], PERSONA),
            ("Biology", "Which part of a plant takes in most of the water?", ["flowers", "leaves", "roots"], PERSONA),
            ("Chemistry", "Which of these is a chemical change?", ["ice melting", "iron rusting"], None),
        )
    ]


@dataclass
class Failure:
    """An answer that is refused before it begins."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Gate:
    """A place where a stream waits until the test opens it, or the client is gone."""

    open: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass
class Tool:
    """A call of the calculator."""

    expression: str
    result: str


class Break:
    """The connection ends here, without a word."""


class Length:
    """The answer ends here because it is long enough."""


Script = Sequence[str | Tool | Gate | Break | Length | Failure]


@dataclass
class StandIn:
    """What the server says, and what it was asked."""

    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=lambda: [dict(model) for model in MODELS])
    answer: Callable[[dict[str, Any]], Script] = lambda body: ["Hello ", "there."]
    api_key: str | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)
    down: bool = False

    @property
    def last(self) -> dict[str, Any]:
        """Body of the latest question."""
        return self.requests[-1][1]


class _Handler(SimpleHTTPRequestHandler):
    """Serves the page's files and the scripted interface."""

    state: StandIn

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(STATIC))

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def do_GET(self) -> None:
        if not self.path.startswith("/v1/"):
            super().do_GET()
        elif self._allowed():
            self._json(200, {"object": "list", "data": self.state.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.state.requests.append((self.path, body))
        script = self.state.answer(body)
        if script and isinstance(script[0], Failure):
            self._json(script[0].status, {"error": {"message": script[0].message}}, script[0].headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(OSError):
            for event in self._events(script, body):
                self.wfile.write(f"data: {json.dumps(event) if isinstance(event, dict) else event}\n\n".encode())
                self.wfile.flush()

    def _allowed(self) -> bool:
        if self.state.down:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return False
        if self.state.api_key and self.headers.get("Authorization") != f"Bearer {self.state.api_key}":
            self._json(401, {"error": {"message": "Incorrect API key."}})
            return False
        return True

    def _json(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(HTTPStatus(status))
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _events(self, script: Script, body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        plain = "prompt" in body
        finish, pieces = "stop", 0
        for step in script:
            if isinstance(step, Gate):
                step.reached.set()
                if not self._wait(step):
                    return
            elif isinstance(step, Break):
                return
            elif isinstance(step, Length):
                finish = "length"
            elif isinstance(step, Failure):
                yield {"error": {"message": step.message}}
                return
            elif isinstance(step, Tool):
                for kind, text in (("python", step.expression), ("python_output", step.result)):
                    pieces += 1
                    part = {"part": {"type": kind, "text": text}}
                    said = {"text": "", **part} if plain else {"delta": part}
                    yield {"choices": [{"index": 0, **said, "finish_reason": None}]}
            else:
                pieces += 1
                said = {"text": step} if plain else {"delta": {"content": step}}
                yield {"choices": [{"index": 0, **said, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": finish}]}
        yield {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": pieces, "total_tokens": 9 + pieces}}
        yield "[DONE]"

    def _wait(self, gate: Gate) -> bool:
        while not gate.open.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                self.state.disconnected.set()
                return False
        return True


@contextlib.contextmanager
def serve_page() -> Iterator[StandIn]:
    """Run a stand-in on a free port of this machine while the block runs."""
    state = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
