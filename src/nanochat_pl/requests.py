"""The engine's requests, events and completions, and the range of every setting.

Each setting belongs to one request, none to the batch. This module imports no torch, since command lines check their
numbers with `RANGES`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from nanochat_pl.model.config import GPTConfig

__all__ = ["PENALTIES", "RANGES", "Completion", "Event", "Range", "Request", "TokenLogprobs", "check_request"]


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have: `low` to `high`, both allowed, and finite."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is not allowed."""
    words: str = ""
    """Description in an error instead of the bounds."""

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def bounds(self) -> str:
        """Complete the sentence "the value must …"."""
        if self.above:
            return f"lie above {self.low} and not above {self.high}"
        return f"be {self.low} or more" if self.high == math.inf else f"lie between {self.low} and {self.high}"


RANGES = {
    "max_new_tokens": Range(0),
    "temperature": Range(0, words="be a number from 0 (greedy) up"),
    "top_k": Range(1, words="be at least 1, or None to sample among all tokens"),
    "top_p": Range(0, 1, above=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0.1, 10),
    "frequency_penalty": Range(-2, 2),
    "presence_penalty": Range(-2, 2),
}
"""Setting of a `Request` -> the values it may have; the server and the terminal take their bounds from here."""
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
_OFF = {
    "top_p": "None samples among all tokens",
    "min_p": "None samples among all tokens",
    "repetition_penalty": "1 = none",
    "frequency_penalty": "0 = none",
    "presence_penalty": "0 = none",
}
"""Setting -> how to switch it off, for errors."""


@dataclass(frozen=True)
class Request:
    """One row to generate, with settings of its own.

    The restrictions of sampling hold after the temperature; top-p applies to what top-k leaves.
    """

    prompt: Sequence[int]
    """At least one token, and fewer than the model's `sequence_len` (or as many, without new tokens)."""
    max_new_tokens: int
    """Limit on new tokens, including those of tools; the end of the context may come first."""
    temperature: float = 0.0
    """0 = greedy: the most likely token."""
    top_k: int | None = None
    """Sample among the k most likely tokens; None = all."""
    top_p: float | None = None
    """Sample among the fewest most likely tokens that reach this probability together; None = all."""
    min_p: float | None = None
    """Sample among tokens at least this many times as likely as the most likely one; None = all."""
    seed: int | str = 0
    """Name of the row's random stream: equal seed, settings and prompt give equal tokens."""
    stop_ids: Collection[int] | None = None
    """Tokens that end the row; None = the engine's."""
    logprobs: int | None = None
    """Report each sampled token's log-probability, and this many of the likeliest at its position; None = do not."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt, given those before it; `max_new_tokens` may then be 0."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer are less likely to be repeated; below 1, more. 1 = off."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was sampled before. 0 = off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that was sampled before. 0 = off.

    No penalty touches the tokens that end a row or call a tool. All of them hold for greedy rows too, and before the
    temperature."""


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's log-probability by the model itself: before penalties, temperature, top-k, top-p and min-p."""

    logprob: float
    """Natural logarithm of the token's probability."""
    top: tuple[tuple[int, float], ...]
    """The requested number of likeliest tokens with their logarithms, the likeliest first."""


@dataclass
class Completion:
    """The result of a request."""

    tokens: list[int] = field(default_factory=list)
    """New tokens, including those of tools, without the stop token."""
    mask: list[int] = field(default_factory=list)
    """1 = sampled by the model, 0 = put there by a tool."""
    stop_token: int | None = None
    """The token that ended it; None = it reached its limit or was cancelled."""
    tool_calls: int = 0
    """How many expressions the model gave to the calculator."""
    tool_errors: int = 0
    """How many of these expressions had no result."""
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """One for each token, None for those of a tool; empty if not requested."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """One for each token of the prompt, None for the first; empty if not requested."""


@dataclass(frozen=True)
class Event:
    """One step of one request."""

    id: int
    token: int | None
    """The new token; None if the row ended without one (by a stop token, or without room)."""
    sampled: bool
    completion: Completion | None
    """The request's result, in its last event."""
    logprobs: TokenLogprobs | None = None
    """The token's log-probabilities, if it was sampled and they were requested; a stop token has them too."""
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    """The prompt's log-probabilities, in the row's first event, if requested."""


def check_request(
    request: Request, prompt: Sequence[int], name: str, config: GPTConfig, context_tokens: int | None = None
) -> None:
    """Raise ValueError, with the remedy, if the request cannot be generated."""
    for setting, allowed in RANGES.items():
        value = getattr(request, setting)
        if value is not None and value not in allowed:
            off = f"; {_OFF[setting]}" if setting in _OFF else ""
            raise ValueError(f"{setting}={value} must {allowed.words or allowed.bounds()}{off}")
    for report in ("logprobs", "prompt_logprobs"):
        count = getattr(request, report)
        if count is not None and not 0 <= count <= config.vocab_size:
            raise ValueError(f"{report}={count} must lie between 0 and {config.vocab_size}, or be None for none")
    if not prompt:
        raise ValueError(f"{name} is empty; begin it with the tokenizer's <|bos|>")
    room = context_tokens or config.sequence_len
    most = room - min(1, request.max_new_tokens)  # a prompt that is only scored may fill the context
    if len(prompt) > most:
        limit = f"model.sequence_len={room}" if room == config.sequence_len else f"context_tokens={room}"
        lacking = "for a new one" if most < room else "for it"
        raise ValueError(
            f"{name} has {len(prompt)} tokens; with {limit} there is no room {lacking}; cut it to {most} "
            "tokens or fewer"
        )
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        raise ValueError(
            f"{name} holds ids from {min(prompt)} to {max(prompt)}, the model knows 0 to "
            f"{config.vocab_size - 1}; was it encoded with this model's tokenizer?"
        )
