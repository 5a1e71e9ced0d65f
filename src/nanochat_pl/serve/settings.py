"""The settings of users: the sampling settings of a chat, and the limits of a server.

This module imports no torch, so that a mistake in a command line is reported at once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from nanochat_pl.requests import RANGES, Request

__all__ = ["SETTINGS", "Limits", "Policy", "Settings", "Typed", "read_setting", "shown_setting"]

Policy = Literal["drop", "refuse"]
"""How a conversation that is too long is treated, see `context.fit`."""


@dataclass(frozen=True)
class Settings:
    """Sampling settings; see `Request`. The defaults are nanochat's (2025-11), except for the seed (there 42)."""

    temperature: float = 0.6
    top_k: int | None = 50
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    """With a seed, the same questions in the same order get the same answers; None = a random seed for each chat."""


@dataclass(frozen=True, kw_only=True)
class Typed:
    """How users type a setting: as an option of `nanochat-pl chat`, or as a command in the chat."""

    flags: tuple[str, ...]
    command: str
    meaning: str
    command_meaning: str = ""
    """Text of /help, if it differs from `meaning`."""
    can_be_off: bool = True
    range_words: str = ""
    """Description of the range in an error, if it is not the bounds."""
    remedy: str = ""
    """End of an error, after the range."""


SETTINGS = {
    "temperature": Typed(
        flags=("-t", "--temperature"),
        command="temperature",
        meaning="0 = always the likeliest token",
        can_be_off=False,
        range_words="be a number from 0 up",
        remedy="; 0 = always the likeliest token",
    ),
    "top_k": Typed(
        flags=("-k", "--top-k"),
        command="topk",
        meaning="sample among this many tokens; 0 = all",
        command_meaning="sample among this many tokens",
        remedy="; 0 or off = all tokens",
    ),
    "top_p": Typed(
        flags=("--top-p",),
        command="topp",
        meaning="sample among the fewest that reach this probability together",
        command_meaning="sample among the fewest of so much probability",
        remedy="; off = all tokens",
    ),
    "min_p": Typed(
        flags=("--min-p",),
        command="minp",
        meaning="sample among those at least this share as likely as the likeliest",
        command_meaning="sample among this share of the likeliest or more",
        remedy="; off = all tokens",
    ),
    "repetition_penalty": Typed(
        flags=("--repetition-penalty",),
        command="repetition",
        meaning="above 1, what was said is said again less often",
        remedy="; 1 or off = none",
    ),
    "frequency_penalty": Typed(
        flags=("--frequency-penalty",),
        command="frequency",
        meaning="taken off a token's logit each time the answer has had it",
        command_meaning="the same by how often the answer has said it; above 0",
        remedy="; 0 or off = none",
    ),
    "presence_penalty": Typed(
        flags=("--presence-penalty",),
        command="presence",
        meaning="taken off once the answer has had it",
        command_meaning="the same by whether the answer has said it; above 0",
        remedy="; 0 or off = none",
    ),
    "max_new_tokens": Typed(
        flags=("-n", "--max-new-tokens"), command="tokens", meaning="longest answer", can_be_off=False
    ),
    "seed": Typed(flags=("--seed",), command="seed", meaning="the same questions, the same answers"),
}
"""Setting -> how users type it."""

_WHOLE = ("top_k", "max_new_tokens", "seed")
_OFF: dict[str, float | None] = {
    name: None if name == "seed" else getattr(Request, name) for name, typed in SETTINGS.items() if typed.can_be_off
}
"""Setting that can be off -> the value that `off` stands for, which has no effect."""


def read_setting(name: str, text: str) -> int | float | None:
    """Parse a setting's value; `off` (for top_k also 0) is the value without effect.

    Raises:
        ValueError: it is no number or out of range, or the setting cannot be off.
    """
    if name in _OFF and (text == "off" or (name == "top_k" and text == "0")):
        return _OFF[name]
    try:
        value = int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ValueError(f"{name}={text!r} must be {kind}" + " or off" * (name in _OFF)) from None
    if name in RANGES and value not in RANGES[name]:
        typed = SETTINGS[name]
        raise ValueError(f"{name}={text} must {typed.range_words or RANGES[name].bounds()}{typed.remedy}")
    return value


def shown_setting(name: str, value: float | None) -> str:
    """Format a setting's value as a user may type it."""
    return "off" if name in _OFF and value == _OFF[name] else str(value)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a server; batch and queue sizes belong to each model's `Worker`.

    Raises:
        ValueError: a limit is not above 0, a key is empty or cannot be sent, or the policy is unknown.
    """

    api_keys: tuple[str, ...] = ()
    """Requests must carry one of them; empty = anyone who reaches the server may use it."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may use the server, `*` = all; empty = only its own page."""
    hosts: tuple[str, ...] = ()
    """Allowed values of the header `Host`, without a port; empty = any. A server that only its own machine reaches
    needs them: otherwise a foreign page could let its host name resolve to that server and read answers."""
    max_messages: int = 500
    max_message_chars: int = 8_000
    max_total_chars: int = 32_000
    """Characters of all messages or prompts of a request together."""
    max_body_bytes: int = 1 << 20
    max_tokens: int = 2048
    """Limit on the new tokens of an answer, and the default in chats."""
    max_choices: int = 32
    """How many answers one request may ask for: `n` times the number of its prompts."""
    request_timeout_s: float = 120.0
    """Time from a request's arrival to its last token, including waiting."""
    stalled_client_s: float = 60.0
    """A client that stops sending its body or reading its stream for this long is disconnected."""
    heartbeat_s: float = 15.0
    """After this long without an event a stream sends a comment line, since proxies cut silent connections."""
    context: Policy = "refuse"
    """How a conversation that is too long is treated, unless the request sets it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith(("max_", "request_", "stalled_", "heartbeat_")) and not value > 0:
                raise ValueError(f"{name}={value} must be above 0")
        if not all(self.api_keys):
            raise ValueError("an API key is empty; put a long random string there")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise ValueError("an API key holds blanks or characters beyond ASCII, which no header can carry")
        if self.context not in get_args(Policy):
            raise ValueError(f"context={self.context!r} is unknown; choose one of {', '.join(get_args(Policy))}")
