"""Measure the server as clients see it: requests and tokens a second, time to the first token, for 1, 8, 64 clients.

The server runs in a process of its own (`nanochat-pl serve`), over a checkpoint or a model with random weights. Each
client asks one question after another, streamed, greedy, over its own connection; a 429 is counted, and the client
comes again after `Retry-After`. Clients and server share the machine: on few cores the figures are of both.

With `--check` it is a test instead: for `--seconds`, clients ask beside others that read slowly or leave in the middle.
No error other than 429 may come; every greedy answer must be the one a single user gets, but for places where the two
likeliest tokens are tied up to rounding (counted); at the end all rows are free and the memory is what it was after
warming up. Prints JSON; with --check the exit code is 1 where a law is broken.

    python benchmarks/bench_server.py                                  # a random d4 with 8,192 tokens
    python benchmarks/bench_server.py --ckpt outputs/sft/d4 --clients 1 8 64 --seconds 20
    python benchmarks/bench_server.py --check --clients 64 --seconds 60
"""

import argparse
import asyncio
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.runtime import pick_compute_dtype, pick_device
from nanochat_pl.tokenizer import Tokenizer

TIE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Logarithms of probability closer than this are a tie: rounding differs with the number of rows in a product."""
WORDS = (
    *("the", "river", "runs", "to", "sea", "and", "rain", "comes", "back", "hills", "where"),
    *("stones", "trees", "remember", "why", "water", "is", "blue"),
)


def main() -> int:
    """Run the benchmark or the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", help="checkpoint; without one, random weights")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--sequence-len", type=int, default=512)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--queue", type=int, default=256)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--questions", type=int, default=24, help="different ones")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ckpt = options.ckpt or random_checkpoint(Path(folder), options.depth, options.vocab_size, options.sequence_len)
        with Server(ckpt, options) as server:
            result = asyncio.run((check if options.check else measure)(server, options))
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "check")}
    result |= {
        "settings": settings,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result.get("holds", True) else 1


def random_checkpoint(folder: Path, depth: int, vocab_size: int, sequence_len: int) -> Path:
    """Write a model with random weights, whose logits are spread by noise, and a vocabulary of made-up words."""
    draw = random.Random(1)
    texts = [
        " ".join("".join(draw.choices("aeiounrstlkmdp", k=draw.randint(2, 9))) for _ in range(40)) for _ in range(4000)
    ]
    tokenizer = Tokenizer.train(texts, vocab_size)
    config = GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, **shape_for_depth(depth))
    model, generator = GPT(config, torch.float32), torch.Generator().manual_seed(1)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.lm_head.weight[-9:] = 0  # no tools, and no early end
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    file = folder / "random" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save(
        {"state_dict": state, "global_step": 0, "nanochat_pl": checkpoint_metadata("sft", config, {}, tokenizer)}, file
    )
    return file


class Server:
    """`nanochat-pl serve` in a process of its own."""

    def __init__(self, ckpt: Any, options: argparse.Namespace):
        arguments = ["--port", "0", "--batch-size", options.batch_size, "--queue", options.queue]
        arguments += ["--dtype", options.dtype, "--device", options.device, "--request-timeout", 600]
        command = [sys.executable, "-m", "nanochat_pl.cli.main", "serve", str(ckpt), *map(str, arguments)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)

    def __enter__(self) -> "Server":
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("page: "):
                self.url = line.split()[1].rstrip("/")
                return self
        self._log.seek(0)
        raise RuntimeError(f"the server did not start: {self._log.read().decode()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self._log.close()

    def rss_mib(self) -> float:
        """Return its resident memory; NaN where the system does not say."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return math.nan
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


@dataclass
class Observed:
    """What clients saw."""

    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: list[tuple[int, str]] = field(default_factory=list)
    """Question and answer."""
    outcomes: Counter[str] = field(default_factory=Counter)


def questions(count: int) -> list[str]:
    """Make questions of different lengths."""
    draw = random.Random(7)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 60))) + "?" for _ in range(count)]


async def ask(
    client: httpx.AsyncClient,
    number: int,
    question: str,
    max_tokens: int,
    seen: Observed,
    pause_s: float = 0.0,
    leave: int = 0,
) -> None:
    """Ask once.

    Args:
        client: its own connection.
        number: number of the question.
        question: its text.
        max_tokens: most tokens of the answer.
        seen: what the client sees is added here.
        pause_s: pause after each piece, as a slow reader makes it.
        leave: hang up after this many pieces; 0 = stay.
    """
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "context": "drop",
    }
    began, first_s, text, pieces, done = time.perf_counter(), None, "", 0, False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            seen.outcomes[str(response.status_code)] += 1
            await response.aread()
            await asyncio.sleep(min(1.0, float(response.headers.get("retry-after", 0.1))))
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                seen.outcomes[f"error {chunk['error']['code']}"] += 1
                return
            if first_s is None:
                first_s = time.perf_counter() - began
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
            if chunk.get("usage"):
                seen.tokens += chunk["usage"]["completion_tokens"]
            pieces += 1
            if leave and pieces >= leave:
                seen.outcomes["left"] += 1
                return
            if pause_s:
                await asyncio.sleep(pause_s)
    assert first_s is not None
    seen.outcomes["200" if done else "broken off"] += 1
    seen.first_s.append(first_s)
    seen.whole_s.append(time.perf_counter() - began)
    seen.answers.append((number, text))


async def crowd(
    server: Server, options: argparse.Namespace, clients: int, seconds: float, rough: bool = False
) -> Observed:
    """Let clients ask for some seconds; with `rough`, every eighth reads slowly and every eighth leaves."""
    seen, until, texts = Observed(), time.monotonic() + seconds, questions(options.questions)

    async def one(number: int) -> None:
        draw = random.Random(number)
        pause_s = 0.05 if rough and number % 8 == 1 else 0.0
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            while time.monotonic() < until:
                i = draw.randrange(len(texts))
                leave = draw.randint(1, 20) if rough and number % 8 == 2 else 0
                try:
                    await ask(client, i, texts[i], options.max_tokens, seen, pause_s, leave)
                except httpx.HTTPError as error:
                    seen.outcomes[type(error).__name__] += 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    return seen


def quantile(values: list[float], share: float) -> float:
    """Return the value below which this share of the values is."""
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 4) if values else math.nan


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures for each number of clients."""
    await crowd(server, options, 2, 2.0)
    rows = []
    for clients in options.clients:
        began = time.perf_counter()
        seen = await crowd(server, options, clients, options.seconds)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "clients": clients,
                "seconds": round(seconds, 2),
                "requests_per_s": round(len(seen.whole_s) / seconds, 2),
                "tokens_per_s": round(seen.tokens / seconds, 1),
                "first_token_s": {"median": quantile(seen.first_s, 0.5), "p95": quantile(seen.first_s, 0.95)},
                "request_s": {"median": quantile(seen.whole_s, 0.5), "p95": quantile(seen.whole_s, 0.95)},
                "outcomes": dict(seen.outcomes),
                "server_rss_mib": round(server.rss_mib(), 1),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"rows": rows}


async def check(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was seen, and whether every law held."""
    clients = max(options.clients)
    alone: dict[int, list[tuple[str, float]]] = {}
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        for i, question in enumerate(questions(options.questions)):
            alone[i] = await one_user(client, question, options.max_tokens)
        await crowd(server, options, clients, 10.0, rough=True)  # the memory of all rows is in use from now on
        await settled(client)
        before = server.rss_mib()
        seen = await crowd(server, options, clients, options.seconds, rough=True)
        state = await settled(client)
        after = server.rss_mib()
    differing = [(number, text) for number, text in seen.answers if text != whole(alone[number])]
    tie = TIE[pick_compute_dtype(options.dtype, pick_device(options.device), "engine.dtype")]
    tied = sum(lead_where_they_part(text, alone[number]) < tie for number, text in differing)
    bad = {kind: count for kind, count in seen.outcomes.items() if kind not in ("200", "429", "left")}
    growth = after - before
    laws = {
        "no_error_but_429": not bad and seen.outcomes["200"] > 0,
        "greedy_answers_are_the_single_users": len(differing) == tied,
        "rows_are_free": state["active"] == 0 and state["waiting"] == 0 and state["faults"] == 0,
        "memory_does_not_grow": not growth > max(32.0, 0.05 * before),
    }
    return {
        "holds": all(laws.values()),
        "laws": laws,
        "clients": clients,
        "answers": len(seen.answers),
        "answers_that_differ_at_a_tie": tied,
        "answers_that_differ_elsewhere": len(differing) - tied,
        "outcomes": dict(seen.outcomes),
        "rss_mib": {"before": round(before, 1), "after": round(after, 1)},
        "first_token_s": {"median": quantile(seen.first_s, 0.5), "p95": quantile(seen.first_s, 0.95)},
        "seconds_an_answer": round(statistics.fmean(seen.whole_s), 3) if seen.whole_s else None,
        "model": state,
    }


async def one_user(client: httpx.AsyncClient, question: str, max_tokens: int) -> list[tuple[str, float]]:
    """Return the tokens that a single user gets, each with how far ahead of the second likeliest it was."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": True,
        "top_logprobs": 2,
        "context": "drop",
    }
    answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()["choices"][0]
    if "parts" in answer["message"]:
        raise RuntimeError("this model uses a tool in its answer; choose other questions")
    tokens = []
    for token in answer["logprobs"]["content"]:
        first, second = (rival["logprob"] for rival in token["top_logprobs"])
        tokens.append((bytes(token["bytes"] or b"").decode("latin-1"), first - second))
    return tokens


def whole(tokens: list[tuple[str, float]]) -> str:
    """Join tokens (bytes as latin-1) to text."""
    return "".join(token for token, _ in tokens).encode("latin-1").decode("utf-8", "replace")


def lead_where_they_part(text: str, alone: list[tuple[str, float]]) -> float:
    """Return the lead over its rival of the first token in which an answer differs from the single user's."""
    for i, (_, ahead) in enumerate(alone):
        if not text.startswith(whole(alone[: i + 1]).rstrip("\ufffd")):
            return ahead
    return math.inf  # it goes on where the other ended


async def settled(client: httpx.AsyncClient) -> dict[str, Any]:
    """Wait until the server has noticed that nobody waits any more; return its figures."""
    state: dict[str, Any] = {}
    for _ in range(100):
        (state,) = (await client.get("/stats")).json()["models"].values()
        if not state["active"] and not state["waiting"]:
            break
        await asyncio.sleep(0.1)
    return state


if __name__ == "__main__":
    sys.exit(main())
