"""What is asked of the engine and what it gives back; every setting belongs to one request, none to the batch."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from nanochat_pl.model.config import GPTConfig

__all__ = ["Completion", "Event", "Request", "TokenLogprobs", "check_request"]


@dataclass(frozen=True)
class Request:
    """One row to generate; every setting is its own.

    The restrictions of sampling hold after the temperature; top-p applies to what top-k leaves.
    """

    prompt: Sequence[int]
    """At least one token, fewer than the model's `sequence_len`; as many where no new one is wanted."""
    max_new_tokens: int
    """Most new tokens, those of tools among them; the end of the context may come first."""
    temperature: float = 0.0
    """0 = greedy: the most likely token."""
    top_k: int | None = None
    """Sample among the k most likely tokens; None = all."""
    top_p: float | None = None
    """Sample among the fewest most likely tokens that reach this probability together; None = all."""
    min_p: float | None = None
    """Sample among tokens at least this many times as likely as the most likely one; None = all."""
    seed: int | str = 0
    """Names the row's random stream: equal seed, settings and prompt give equal tokens."""
    stop_ids: Collection[int] | None = None
    """Tokens that end the row; None = the engine's."""
    logprobs: int | None = None
    """Report how likely each sampled token was, and so many of the likeliest in its place; None = do not."""
    prompt_logprobs: int | None = None
    """The same of each token of the prompt, given what stands before it; `max_new_tokens` 0 then reads it alone."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of what follows it are less likely to come again; below 1, more. 1 = off."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time it was sampled before. 0 = off."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that was sampled before. 0 = off.

    No penalty touches the tokens that end a row or call a tool. All of them hold for greedy rows too, and before the
    temperature."""


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was to the model itself: before penalties, temperature, top-k, top-p and min-p."""

    logprob: float
    """Natural logarithm of the token's probability."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their logarithms, the likeliest first; as many as were asked for."""


@dataclass
class Completion:
    """What a request yielded."""

    tokens: list[int] = field(default_factory=list)
    """New tokens without the stop token, those of tools among them."""
    mask: list[int] = field(default_factory=list)
    """1 = sampled by the model, 0 = put there by a tool."""
    stop_token: int | None = None
    """The token that ended it; None = it was cut by length, or by whoever listened."""
    tool_calls: int = 0
    """Expressions the model handed to the calculator."""
    tool_errors: int = 0
    """Those of them that had no result."""
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """One a token, None for those of a tool; empty where the request asked for none."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """One a token of the prompt, None for the first, which nothing comes before; empty where none were asked for."""


@dataclass(frozen=True)
class Event:
    """One step of one request."""

    id: int
    token: int | None
    """The new token; None where the row ended without one (by a stop token, or no room)."""
    sampled: bool
    completion: Completion | None
    """The whole yield, with the row's last event."""
    logprobs: TokenLogprobs | None = None
    """Of the token, where it was sampled and the request asked; of a stop token too, which is no part of the result."""
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    """Of the prompt, with the row's first event, where the request asked."""


def check_request(
    request: Request, prompt: Sequence[int], name: str, config: GPTConfig, context_tokens: int | None = None
) -> None:
    """Raise ValueError, with the remedy, for what cannot be generated."""
    if request.max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={request.max_new_tokens} must be 0 or more")
    if not 0 <= request.temperature < math.inf:
        raise ValueError(f"temperature={request.temperature} must be a number from 0 (greedy) up")
    if request.top_k is not None and request.top_k < 1:
        raise ValueError(f"top_k={request.top_k} must be at least 1, or None to sample among all tokens")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise ValueError(f"top_p={request.top_p} must lie above 0 and not above 1; None samples among all tokens")
    if request.min_p is not None and not 0 <= request.min_p <= 1:
        raise ValueError(f"min_p={request.min_p} must lie between 0 and 1; None samples among all tokens")
    if not 0.1 <= request.repetition_penalty <= 10:
        raise ValueError(f"repetition_penalty={request.repetition_penalty} must lie between 0.1 and 10; 1 = none")
    for penalty in ("frequency_penalty", "presence_penalty"):
        if not -2 <= (value := getattr(request, penalty)) <= 2:
            raise ValueError(f"{penalty}={value} must lie between -2 and 2; 0 = none")
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
