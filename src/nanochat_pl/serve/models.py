"""The models a server offers: each with its name, its worker and what clients are told of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.engine import Engine
from nanochat_pl.serve.answers import Suggestion
from nanochat_pl.serve.choices import TokenTexts
from nanochat_pl.serve.names import model_id
from nanochat_pl.serve.worker import Worker

__all__ = ["Served", "serve_model"]


@dataclass(frozen=True)
class Served:
    """A loaded model with its worker."""

    id: str
    loaded: LoadedModel
    worker: Worker
    texts: TokenTexts
    suggestions: tuple[Suggestion, ...] = ()
    """What it may be asked for a beginning."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970, of the loading."""

    @property
    def sequence_len(self) -> int:
        """Tokens of context."""
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
) -> Served:
    """Start a worker for a model.

    Args:
        loaded: from `load_model`.
        id: what clients call it; None = see `model_id`.
        batch_size: answers generated at once.
        queue_limit: answers that may wait.
        client_limit: how many of these may be one client's; None = all.
        dtype: of decoding; see `Engine`.
        suggestions: what the page offers to ask, as `answers.Suggestion`.
    """
    tokenizer = loaded.tokenizer
    engine = Engine(loaded.model, tokenizer.stop_ids, tokenizer, dtype)
    id = id or model_id(loaded.stage, loaded.path)
    worker = Worker(engine, batch_size, queue_limit, client_limit, id)
    shown = tuple(Suggestion(**suggestion) for suggestion in suggestions)
    return Served(id, loaded, worker, TokenTexts(tokenizer), shown)
