"""Real servers on loopback ports for tests: tiny models, uvicorn in a thread, engines that can be slowed or broken."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.engine import DecodingSession, Engine, Request
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.serve.app import create_app
from nanochat_pl.serve.choices import TokenTexts
from nanochat_pl.serve.middleware import timed_protocol
from nanochat_pl.serve.server import ServedModel
from nanochat_pl.serve.settings import Limits
from nanochat_pl.serve.worker import Worker
from nanochat_pl.tokenizer import Tokenizer

# Without certificates to check, since loading them takes longer than most requests here.
get, post, options, stream = (
    partial(call, verify=False) for call in (httpx.get, httpx.post, httpx.options, httpx.stream)
)


def tiny_tokenizer() -> Tokenizer:
    """Train a vocabulary of 300 tokens."""
    text = "the river runs to the sea and the rain comes back to the hills; what is 12 + 30? it is 42. " * 20
    return Tokenizer.train([text], 300)


def tiny_model(tokenizer: Tokenizer, seed: int = 1, sequence_len: int = 256) -> GPT:
    """Make a random model with opinions: noise on its weights spreads its logits."""
    config = GPTConfig(
        sequence_len=sequence_len, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32
    )
    model, generator = GPT(config), torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        # nothing but printable characters is likely: neither tools nor halves of characters
        model.lm_head.weight[:32] = model.lm_head.weight[127:256] = model.lm_head.weight[-9:] = 0
    return model.eval()


class TestSession(DecodingSession):
    """A session of an engine that is slow, breaks when told to, or says what it is told to."""

    __test__ = False

    def __init__(self, session: DecodingSession, engine: "TestEngine"):
        vars(self).update(vars(session))
        self._engine = engine

    def submit(self, request: Request) -> int:
        if self._engine.refuses:
            raise ValueError("this engine refuses")
        return super().submit(request)

    def step(self) -> list[Any]:
        time.sleep(self._engine.step_s)
        if self._engine.fails > 0:
            self._engine.fails -= 1
            raise RuntimeError("the engine broke")
        return super().step()

    def _choose(self, rows: Any, draws: Any, logits: torch.Tensor, events: Any) -> None:
        logits = logits.clone()
        for place, row in enumerate(rows if self._engine.script else ()):
            logits[place] = -10.0
            logits[place, self._engine.script[len(row.completion.tokens)]] = 10.0
        super()._choose(rows, draws, logits, events)


class TestEngine(Engine):
    """An engine whose steps take at least `step_s` seconds, and of which the next `fails` fail.

    With a `script`, every answer wants its tokens, whatever the model says; those of tools stand in it too.
    """

    __test__ = False
    step_s = 0.0
    fails = 0
    refuses = False
    script: Sequence[int] = ()

    def session(self, batch_size: int = 32) -> DecodingSession:
        return TestSession(super().session(batch_size), self)


def served(
    tokenizer: Tokenizer,
    id: str = "sft/tiny",
    *,
    model: GPT | None = None,
    stop: bool = False,
    batch_size: int = 4,
    queue_limit: int = 32,
    client_limit: int | None = None,
) -> ServedModel:
    """Offer a tiny model; without `stop` its answers end by length only."""
    model = model or tiny_model(tokenizer)
    stop_ids = [tokenizer.special_id("<|assistant_end|>"), tokenizer.bos_id] if stop else []
    engine = TestEngine(model, stop_ids, tokenizer, "float32")
    loaded = LoadedModel(model, tokenizer, Path("outputs/sft/tiny/checkpoints/last.ckpt"), id.split("/")[0], 7, {})
    return ServedModel(id, loaded, Worker(engine, batch_size, queue_limit, client_limit, id), TokenTexts(tokenizer))


def engine_of(model: ServedModel) -> TestEngine:
    """Return the engine of a served model, to slow it or to break it."""
    engine = model.worker._engine
    assert isinstance(engine, TestEngine)
    return engine


@contextlib.contextmanager
def running(*models: ServedModel, header_timeout_s: float = 10.0, **limits: Any) -> Iterator[str]:
    """Run a server; yields its address."""
    app = create_app(models, Limits(**limits))
    http = timed_protocol(header_timeout_s)
    server = uvicorn.Server(
        uvicorn.Config(app, http=http, log_config=None, access_log=False, timeout_graceful_shutdown=2, ws="none")
    )
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def wait_until(condition: Any, timeout_s: float = 15.0) -> None:
    """Wait for something that happens in another thread."""
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, f"not within {timeout_s} s"
        time.sleep(0.01)
