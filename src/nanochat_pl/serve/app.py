"""The web application: it joins routes, middleware, error handlers and the page over the models that it offers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema

from nanochat_pl.serve.api import api_routes
from nanochat_pl.serve.errors import add_error_handlers
from nanochat_pl.serve.middleware import RequestMiddleware, record_of
from nanochat_pl.serve.nanochat_api import nanochat_routes
from nanochat_pl.serve.responses import ChatChunk, TextChunk
from nanochat_pl.serve.server import ServedModel, Server
from nanochat_pl.serve.settings import Limits

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "static"


def create_app(models: Sequence[ServedModel], limits: Limits | None = None) -> FastAPI:
    """Build the application; the first model is the default one.

    Its `state.server` is the `Server`: call `drain` on it before a graceful shutdown. When the application ends, it
    also ends the workers of its models.

    Raises:
        ValueError: there is no model, or two have one name.
    """
    limits = limits or Limits()
    server = Server(models, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    app = FastAPI(
        title="nanochat_pl",
        description="OpenAI's API over checkpoints of nanochat_pl",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = server
    app.include_router(api_routes(server))
    app.include_router(nanochat_routes(server))
    _add_page(app)
    _describe_chunks(app)
    add_error_handlers(app)
    app.add_middleware(RequestMiddleware, limits=limits, metrics=server.metrics)
    if limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _describe_chunks(app: FastAPI) -> None:
    """Add the schemas of streams to /openapi.json."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()  # the same object each time
        _, chunks = models_json_schema(
            [(ChatChunk, "serialization"), (TextChunk, "serialization")], ref_template="#/components/schemas/{model}"
        )
        description["components"]["schemas"] |= chunks["$defs"]
        return description

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation does it


def _add_page(app: FastAPI) -> None:
    """Serve each file of the page by its own route, since a mount at / would also answer mistyped routes."""
    files = StaticFiles(directory=PAGE, check_dir=False)

    async def send(request: Request, name: str) -> Response:
        record_of(request.scope).route = "page"
        response = await files.get_response(name, request.scope)
        # Browsers revalidate by the ETag each time, because modules of two versions do not fit together.
        response.headers["Cache-Control"] = "no-cache"
        return response

    for file in sorted(path for path in PAGE.rglob("*") if path.is_file()):
        name = file.relative_to(PAGE).as_posix()
        app.add_route(f"/{name}", partial(send, name=name), methods=["GET"], include_in_schema=False)
        if name == "index.html":
            app.add_route("/", partial(send, name=name), methods=["GET"], include_in_schema=False)
