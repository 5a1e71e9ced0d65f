"""The state that all routes share: the models, the limits, the metrics, and the start of a request's generation."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest

from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.engine import Engine
from nanochat_pl.paths import run_name
from nanochat_pl.serve.choices import ChoiceStream, Generation, TokenTexts
from nanochat_pl.serve.errors import ApiError
from nanochat_pl.serve.middleware import Metrics, record_of
from nanochat_pl.serve.responses import Suggestion
from nanochat_pl.serve.schema import SamplingBody
from nanochat_pl.serve.settings import Limits
from nanochat_pl.serve.worker import Worker

__all__ = ["ServedModel", "Server", "model_id", "serve_model"]


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with its worker."""

    id: str
    loaded: LoadedModel
    worker: Worker
    texts: TokenTexts
    suggestions: tuple[Suggestion, ...] = ()
    """Questions that the page offers to begin with."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Time of loading, in seconds since 1970."""

    @property
    def sequence_len(self) -> int:
        """Number of tokens in the model's context."""
        return self.loaded.model.config.sequence_len


def serve_model(
    loaded: LoadedModel,
    id: str | None = None,
    *,
    batch_size: int = 16,
    queue_limit: int = 256,
    client_limit: int | None = None,
    dtype: str = "auto",
    suggestions: Sequence[Mapping[str, Any]] = (),
) -> ServedModel:
    """Start a worker for a model.

    Args:
        loaded: from `load_model`.
        id: the model's name for clients; None = see `model_id`.
        batch_size: how many answers are generated at once.
        queue_limit: how many answers may wait.
        client_limit: how many of these may be of one client; None = all.
        dtype: dtype of decoding, see `Engine`.
        suggestions: questions that the page offers, each as the fields of `responses.Suggestion`.
    """
    tokenizer = loaded.tokenizer
    engine = Engine(loaded.model, tokenizer.stop_ids, tokenizer, dtype)
    id = id or model_id(loaded.stage, loaded.path)
    worker = Worker(engine, batch_size, queue_limit, client_limit, id)
    shown = tuple(Suggestion(**suggestion) for suggestion in suggestions)
    return ServedModel(id, loaded, worker, TokenTexts(tokenizer), shown)


def model_id(stage: str, file: Path, taken: Sequence[str] = ()) -> str:
    """Return a model's name, `<stage>/<run>`; see `paths.run_name`.

    Raises:
        ValueError: the name is taken.
    """
    name = f"{stage}/{run_name(file)}"
    if name in taken:
        shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        raise ValueError(f"two models would be called {name}; name one of them: NAME={shown}")
    return name


class Server:
    """The models, limits and metrics behind the routes.

    Raises:
        ValueError: there is no model, or two have one name.
    """

    def __init__(self, models: Sequence[ServedModel], limits: Limits):
        ids = [served.id for served in models]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(f"a server needs one model or more, each with a name of its own; found {ids}")
        self.models: Mapping[str, ServedModel] = {served.id: served for served in models}
        self.limits = limits
        self.metrics = Metrics({served.id: served.worker for served in models})
        self.began = time.monotonic()
        self.draining = False
        """Whether the server refuses new requests."""

    def drain(self, grace_s: float) -> None:
        """Refuse new requests, and end those that are not done after `grace_s` seconds. Returns at once."""
        self.draining = True
        for served in self.models.values():
            served.worker.drain(grace_s)

    def close(self) -> None:
        """End all running requests, and wait for the workers."""
        self.drain(0.0)
        for served in self.models.values():
            served.worker.close()

    def model(self, id: str | None) -> ServedModel:
        """Return a model by its name, or the first one for None.

        Raises:
            ApiError: status 404, with the names of the models.
        """
        if id is None:
            return next(iter(self.models.values()))
        if id not in self.models:
            message = f"there is no model {id[:100]!r}; there is {', '.join(self.models)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.models[id]

    def max_tokens(self, requested: Mapping[str, int | None], default: int | None = None) -> int:
        """Return the limit on an answer's new tokens: the first not None in `requested`, or `default`.

        Raises:
            ApiError: status 400, the client's limit is above the server's.
        """
        limit = self.limits.max_tokens
        for name, value in requested.items():
            if value is not None and value > limit:
                raise ApiError(400, f"{name}={value} is above this server's {limit}", param=name, code="invalid_value")
            if value is not None:
                return value
        return min(default or limit, limit)

    def check_choices(self, num_prompts: int, n: int, most: int | None = None) -> None:
        """Refuse more answers than one request may have; the error names the field that asks for them."""
        limit = min(self.limits.max_choices, most or self.limits.max_choices)
        if num_prompts * n > limit:
            each = f", {n} to each of {num_prompts} prompts" if n > 1 < num_prompts else ""
            message = f"{num_prompts * n} answers in one request{each}; this server gives at most {limit}"
            raise ApiError(400, message, param="n" if n > 1 else "prompt", code="invalid_value")

    def check_chars(self, texts: Sequence[str], param: str) -> None:
        """Refuse texts that are too long together."""
        total = sum(map(len, texts))
        if total > (limit := self.limits.max_total_chars):
            is_chat = param == "messages"
            what = "the conversation has" if is_chat else "the text to continue has"
            remedy = "shorten it" + " or begin a new one" * is_chat
            raise _too_long(f"{what} {total:,} characters together", f"{limit:,} of a request", remedy, param)

    def check_messages(self, texts: Sequence[str]) -> None:
        """Refuse too many messages, or messages that are too long."""
        limits = self.limits
        if len(texts) > limits.max_messages:
            what = f"the conversation has {len(texts):,} messages"
            raise _too_long(what, f"{limits.max_messages:,}", "begin a new one", "messages")
        for i, text in enumerate(texts):
            if len(text) > limits.max_message_chars:
                which = "your message" if i == len(texts) - 1 else f"message {i + 1} of {len(texts)}"
                what, most = f"{which} has {len(text):,} characters", f"{limits.max_message_chars:,} of one message"
                raise _too_long(what, most, "shorten it", f"messages[{i}].content")
        self.check_chars(texts, "messages")

    def generate(
        self,
        http: HttpRequest,
        served: ServedModel,
        body: SamplingBody,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        kind: str,
        **reports: int | None,
    ) -> Generation:
        """Queue the answers of a request: answer j to prompt i is number i * n + j.

        Args:
            http: the client's request, with its record.
            served: the model.
            body: the sampling settings.
            prompts: token ids; the context must have room for the answer.
            max_new_tokens: limit of each answer.
            kind: prefix of the answer's id.
            reports: `logprobs` and `prompt_logprobs`, see `Request`.

        Raises:
            ApiError: status 400, these are more answers than one request may have.
            QueueFull, WorkerClosed: see `Worker.submit`.
        """
        n = body.n or 1
        self.check_choices(len(prompts), n, served.worker.most_together)
        seed: Any = secrets.token_hex(8) if body.seed is None else body.seed  # without a seed answers differ each time
        requests = [
            body.request(prompt, max_new_tokens, f"{seed}/{i}/{j}", **reports)
            for i, prompt in enumerate(prompts)
            for j in range(n)
        ]
        record = record_of(http.scope)
        handles = served.worker.submit(requests, record.client, self.limits.request_timeout_s)
        choices = [
            ChoiceStream(index, handle, served.loaded.tokenizer, served.texts, body.stop_strings)
            for index, handle in enumerate(handles)
        ]
        return Generation(served.id, choices, sum(map(len, prompts)), record, kind)


def _too_long(what: str, most: str, remedy: str, param: str) -> ApiError:
    """Make the error about a text above a limit; clients recognize an overflow by its code and by these phrases."""
    return ApiError(
        400,
        f"{what}, which exceed context limits: this server reads at most {most}. The prompt is too long: {remedy}",
        param=param,
        code="context_length_exceeded",
    )
