"""nanochat's own routes (chat_web, 2025-11), so that its page and scripts go on working, and what operators look at.

Differs: errors have OpenAI's form here too; a conversation that is too long loses its oldest turns.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nanochat_pl.serve.api import ERRORS, fitted
from nanochat_pl.serve.choices import merged
from nanochat_pl.serve.context import fit
from nanochat_pl.serve.metrics import CONTENT_TYPE
from nanochat_pl.serve.schema import OriginalBody
from nanochat_pl.serve.server import Answer, Sampling, Server
from nanochat_pl.serve.streams import EventStream, event
from nanochat_pl.serve.turns import take_turns

__all__ = ["original_routes"]

_AROUND = {
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
    "text": ("", ""),
}


def original_routes(server: Server) -> APIRouter:
    """Make `POST /chat/completions`, `/health`, `/stats`; and `/metrics`."""
    router = APIRouter()

    @router.post("/chat/completions", response_model=None, responses=ERRORS, name="original chat")
    async def chat(body: OriginalBody, request: Request) -> Response:
        """Answer with the first model, token by token: `{"token": "…", "gpu": 0}` …, at last `{"done": true}`."""
        served = server.model(None)
        server.check_messages([message.content for message in body.messages])
        sampling = Sampling(
            max_tokens=server.max_tokens({"max_tokens": body.max_tokens}, 512),
            temperature=0.8 if body.temperature is None else body.temperature,
            top_k=50 if body.top_k is None else body.top_k or None,
        )
        messages = take_turns([message.model_dump() for message in body.messages])
        prompt = await fitted(fit, messages, served, sampling, "drop")
        answer = server.begin(request, served, [prompt.ids], sampling, "chat")
        return await EventStream.begin(request, _events(answer), server.limits)

    @router.get("/health", responses=ERRORS)
    async def health() -> JSONResponse:
        """Say whether requests are taken: 200, or 503 while the server is shut down."""
        states = [served.worker.state() for served in server.models.values()]
        ready = not server.draining and all(state.alive for state in states)
        body = {
            "status": "ok" if ready else "draining" if server.draining else "failed",
            "ready": ready,
            "num_gpus": sum(device["device"] != "cpu" for device in _devices(server)),
            "available_workers": sum(state.active < state.batch_size for state in states),
        }
        return JSONResponse(body, 200 if ready else 503)

    @router.get("/stats", responses=ERRORS)
    async def stats() -> dict[str, Any]:
        """Say what is being done; a worker is a model, available while it has a free row."""
        states = {served.id: served.worker.state() for served in server.models.values()}
        busy = sum(state.active >= state.batch_size for state in states.values())
        return {
            "total_workers": len(states),
            "available_workers": len(states) - busy,
            "busy_workers": busy,
            "workers": _devices(server),
            "uptime_s": round(time.monotonic() - server.began, 1),
            "models": {id: asdict(state) for id, state in states.items()},
        }

    @router.get("/metrics", responses=ERRORS, response_class=Response)
    async def metrics() -> Response:
        """Give the figures in Prometheus' text format."""
        return Response(server.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _devices(server: Server) -> list[dict[str, Any]]:
    return [
        {"gpu_id": served.loaded.model.device.index or 0, "device": str(served.loaded.model.device)}
        for served in server.models.values()
    ]


async def _events(answer: Answer) -> AsyncGenerator[str, None]:
    gpu = answer.served.loaded.model.device.index or 0
    async with answer.noted():
        async for _, piece in merged(answer.choices):
            for kind, text in piece.parts if piece else ():
                before, after = _AROUND[kind]
                yield event({"token": f"{before}{text}{after}", "gpu": gpu})
        yield event({"done": True})
