"""What the routes share: the models by name, the limits, and how a request's answers are begun."""

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest

from nanochat_pl.engine import Request
from nanochat_pl.serve.choices import Choice
from nanochat_pl.serve.errors import ApiError
from nanochat_pl.serve.gate import Record, record_of
from nanochat_pl.serve.limits import Limits
from nanochat_pl.serve.metrics import Metrics
from nanochat_pl.serve.models import Served

__all__ = ["Answer", "Sampling", "Server"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the answers of a request are drawn."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    """None = another stream each time."""
    stop: Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answers to one request, on their way."""

    served: Served
    choices: list[Choice]
    num_prompt_tokens: int
    """Each prompt counted once."""
    record: Record
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int]:
        """Count tokens so far."""
        new = sum(choice.num_tokens for choice in self.choices)
        read = self.num_prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}

    @asynccontextmanager
    async def noted(self) -> AsyncIterator[None]:
        """Free all rows at the end of the block, and note for the log what they yielded."""
        try:
            yield
        finally:
            tickets = [choice.ticket for choice in self.choices]
            for ticket in tickets:
                ticket.cancel()
            self.record.completion_tokens = sum(choice.num_tokens for choice in self.choices)
            firsts = [ticket.first_token - ticket.submitted for ticket in tickets if ticket.first_token is not None]
            self.record.first_token_s = min(firsts, default=None)


class Server:
    """Models, limits and figures behind the routes.

    Raises:
        ValueError: for no model, or two of one name.
    """

    def __init__(self, models: Sequence[Served], limits: Limits):
        ids = [served.id for served in models]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(f"a server needs one model or more, each with a name of its own; found {ids}")
        self.models: Mapping[str, Served] = {served.id: served for served in models}
        self.limits = limits
        self.metrics = Metrics(models)
        self.began = time.monotonic()
        self.draining = False
        """Whether no more requests are taken."""

    def drain(self, grace_s: float) -> None:
        """Take no more requests, and end those that are not done after `grace_s` seconds; returns at once."""
        self.draining = True
        for served in self.models.values():
            served.worker.drain(grace_s)

    def close(self) -> None:
        """End what still runs, and wait for the workers."""
        self.drain(0.0)
        for served in self.models.values():
            served.worker.close()

    def model(self, id: str | None) -> Served:
        """Return a model by name, the first one for None.

        Raises:
            ApiError: 404, listing what there is.
        """
        if id is None:
            return next(iter(self.models.values()))
        if id not in self.models:
            raise ApiError(
                404,
                f"there is no model {id[:100]!r}; there is {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return self.models[id]

    def max_tokens(self, asked: Mapping[str, int | None], default: int | None = None) -> int:
        """Return how many new tokens a choice may have.

        Args:
            asked: by the client, under the name it used; the first that is not None counts.
            default: where it did not ask; None = the server's limit.
        """
        limit = self.limits.max_tokens
        for name, value in asked.items():
            if value is not None and value > limit:
                raise ApiError(400, f"{name}={value} is above this server's {limit}", param=name, code="invalid_value")
            if value is not None:
                return value
        return min(default or limit, limit)

    def check_choices(self, num_prompts: int, n: int, most: int | None = None) -> None:
        """Refuse more answers than one request may want, by the name of what asks for them."""
        limit = min(self.limits.max_choices, most or self.limits.max_choices)
        if num_prompts * n > limit:
            each = f", {n} to each of {num_prompts} prompts" if n > 1 < num_prompts else ""
            raise ApiError(
                400,
                f"{num_prompts * n} answers in one request{each}; this server gives at most {limit}",
                param="n" if n > 1 else "prompt",
                code="invalid_value",
            )

    def check_chars(self, texts: Sequence[str], param: str) -> None:
        """Refuse texts that are too long together."""
        total = sum(map(len, texts))
        if total > (limit := self.limits.max_total_chars):
            is_chat = param == "messages"
            what = "the conversation has" if is_chat else "the text to continue has"
            remedy = "shorten it" + " or begin a new one" * is_chat
            raise ApiError(
                400,
                f"{what} {total:,} characters together, which exceed context limits: this server reads at most "
                f"{limit:,} of a request. The prompt is too long: {remedy}",
                param=param,
                code="context_length_exceeded",
            )

    def check_messages(self, texts: Sequence[str]) -> None:
        """Refuse too many messages, or too long ones."""
        limits = self.limits
        if len(texts) > limits.max_messages:
            raise ApiError(
                400,
                f"the conversation has {len(texts):,} messages, which exceed context limits: this server reads at most "
                f"{limits.max_messages:,}. The prompt is too long: begin a new one",
                param="messages",
                code="context_length_exceeded",
            )
        for i, text in enumerate(texts):
            if len(text) > limits.max_message_chars:
                which = "your message" if i == len(texts) - 1 else f"message {i + 1} of {len(texts)}"
                raise ApiError(
                    400,
                    f"{which} has {len(text):,} characters, which exceed context limits: this server reads at most "
                    f"{limits.max_message_chars:,} of one message. The prompt is too long: shorten it",
                    param=f"messages[{i}].content",
                    code="context_length_exceeded",
                )
        self.check_chars(texts, "messages")

    def begin(
        self, http: HttpRequest, served: Served, prompts: Sequence[Sequence[int]], sampling: Sampling, kind: str
    ) -> Answer:
        """Queue the answers of a request: choice j of prompt i is number i * n + j.

        Args:
            http: whose client they are for.
            served: the model.
            prompts: ids, with room behind them.
            sampling: of all of them.
            kind: first letters of the answer's id.

        Raises:
            ApiError: 400 for more answers than one request may want.
            Full, Closed: see `Worker.submit`.
        """
        self.check_choices(len(prompts), sampling.n, served.worker.most_together)
        seed: Any = secrets.token_hex(8) if sampling.seed is None else sampling.seed
        requests = [
            Request(
                prompt,
                sampling.max_tokens,
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                sampling.min_p,
                seed=f"{seed}/{i}/{j}",
                logprobs=sampling.logprobs,
                prompt_logprobs=sampling.prompt_logprobs,
                repetition_penalty=sampling.repetition_penalty,
                frequency_penalty=sampling.frequency_penalty,
                presence_penalty=sampling.presence_penalty,
            )
            for i, prompt in enumerate(prompts)
            for j in range(sampling.n)
        ]
        record = record_of(http.scope)
        tickets = served.worker.submit(requests, record.client, self.limits.request_timeout_s)
        choices = [
            Choice(index, ticket, served.loaded.tokenizer, sampling.stop) for index, ticket in enumerate(tickets)
        ]
        answer = Answer(served, choices, sum(map(len, prompts)), record, f"{kind}-{uuid.uuid4().hex}")
        record.model, record.prompt_tokens = served.id, answer.num_prompt_tokens
        return answer
