"""The routes of nanochat's own server (chat_web, 2025-11), so that its page and scripts work here, and the metrics.

Differs: errors have OpenAI's form, and a conversation that is too long loses its oldest turns.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nanochat_pl.serve.api import ERRORS, fit_prompt
from nanochat_pl.serve.choices import Generation
from nanochat_pl.serve.context import fit, take_turns
from nanochat_pl.serve.schema import NanochatBody, SamplingBody
from nanochat_pl.serve.server import Server
from nanochat_pl.serve.streams import EventStream, event
from nanochat_pl.tokenizer import CONTENT_PARTS

__all__ = ["nanochat_routes"]

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of Prometheus' text format."""


def nanochat_routes(server: Server) -> APIRouter:
    """Make the routes `POST /chat/completions`, `/health`, `/stats` and `/metrics`."""
    router = APIRouter()

    @router.post("/chat/completions", response_model=None, responses=ERRORS, name="nanochat chat")
    async def chat(body: NanochatBody, request: Request) -> Response:
        """Stream the first model's answer as events `{"token": "…", "gpu": 0}`, followed by `{"done": true}`."""
        served = server.model(None)
        server.check_messages([message.content for message in body.messages])
        max_tokens = server.max_tokens({"max_tokens": body.max_tokens}, 512)
        temperature, top_k = body.temperature, body.top_k
        settings = SamplingBody.model_validate(
            {"temperature": 0.8 if temperature is None else temperature, "top_k": 50 if top_k is None else top_k}
        )
        messages = take_turns([message.model_dump() for message in body.messages])
        prompt = await fit_prompt(fit, messages, served, max_tokens, "drop")
        generation = server.generate(request, served, settings, [prompt.ids], max_tokens, "chat")
        gpu = served.loaded.model.device.index or 0
        return await EventStream.begin(request, _events(generation, gpu), server.limits)

    @router.get("/health", responses=ERRORS)
    async def health() -> JSONResponse:
        """Return whether the server takes requests: status 200, or 503 while it shuts down."""
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
        """Return the load of each worker; there is one a model, and it is available while it has a free row."""
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
        """Return the metrics in Prometheus' text format."""
        return Response(server.metrics.text(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    return router


def _devices(server: Server) -> list[dict[str, Any]]:
    return [
        {"gpu_id": served.loaded.model.device.index or 0, "device": str(served.loaded.model.device)}
        for served in server.models.values()
    ]


async def _events(generation: Generation, gpu: int) -> AsyncGenerator[str, None]:
    async with generation.recorded():
        async for _, delta in generation.deltas():
            for kind, text in delta.parts if delta else ():
                before, after, _ = CONTENT_PARTS[kind]
                yield event({"token": f"{before or ''}{text}{after or ''}", "gpu": gpu})
        yield event({"done": True})
