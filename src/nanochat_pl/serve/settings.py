"""What people may set: how the answers of a chat are drawn, and what a server allows.

No torch here, so that a slip in a command line is answered at once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from nanochat_pl.requests import RANGES, Request

__all__ = ["SETTINGS", "Limits", "Policy", "Settings", "Typed", "read_setting", "shown_setting"]

Policy = Literal["drop", "refuse"]
"""What is done with a conversation that is too long, see `context.fit`."""


@dataclass(frozen=True)
class Settings:
    """How answers are drawn; see `Request`. The defaults are nanochat's (2025-11), except for the seed: there 42."""

    temperature: float = 0.6
    top_k: int | None = 50
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    """With a seed, the same questions in the same order get the same answers; None = another chat each time."""


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A setting as people type it: an option of `nanochat-pl chat`, and a command in the chat."""

    flags: tuple[str, ...]
    command: str
    meaning: str
    command_meaning: str = ""
    """What /help says, where it is not `meaning`."""
    can_be_off: bool = True
    range_words: str = ""
    """What an error says of the range, where it is not its bounds."""
    remedy: str = ""
    """What an error says behind the range."""


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
"""Setting -> how it is typed."""

_WHOLE = ("top_k", "max_new_tokens", "seed")
_OFF: dict[str, float | None] = {
    name: None if name == "seed" else getattr(Request, name) for name, typed in SETTINGS.items() if typed.can_be_off
}
"""What `off` means for the settings that can be off: the value that does nothing."""


def read_setting(name: str, text: str) -> int | float | None:
    """Read a setting's value as people type it; `off` (for top_k also 0) is the value that does nothing.

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
    """Write a setting's value as it may be typed."""
    return "off" if name in _OFF and value == _OFF[name] else str(value)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What whoever runs a server allows; batch and queue belong to each model's `Worker`.

    Raises:
        ValueError: a limit allows nothing, a key is empty or cannot be sent, or the policy is unknown.
    """

    api_keys: tuple[str, ...] = ()
    """Requests must bear one of them; none = whoever reaches the server may use it."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may use it, `*` = all; none = only its own."""
    hosts: tuple[str, ...] = ()
    """Names it may be called by (the header `Host`, without a port); none = any. A server that only its own machine
    reaches needs them: otherwise a page from elsewhere could make its own name lead there, and read along."""
    max_messages: int = 500
    max_message_chars: int = 8_000
    max_total_chars: int = 32_000
    """Of all messages or prompts of a request together."""
    max_body_bytes: int = 1 << 20
    max_tokens: int = 2048
    """Most new tokens of an answer, and a chat's default."""
    max_choices: int = 32
    """How many answers one request may ask for: `n` times its prompts."""
    request_timeout_s: float = 120.0
    """From its arrival to its last token, waiting included."""
    stalled_client_s: float = 60.0
    """A client that ought to send its body or read its stream, and does neither for this long, is left."""
    heartbeat_s: float = 15.0
    """After this long without anything new a stream sends a comment line: proxies cut connections that are silent."""
    context: Policy = "refuse"
    """What happens to a conversation that is too long, unless the request says it."""

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
