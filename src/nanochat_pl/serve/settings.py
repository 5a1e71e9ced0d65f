"""How the answers of a chat are drawn, and how people type it; no torch here, so that a slip is answered at once."""

from dataclasses import dataclass

from nanochat_pl.requests import RANGES, Request

__all__ = ["SETTINGS", "Settings", "Typed", "read_setting", "shown_setting"]


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
        meaning="sample among so many tokens; 0 = all",
        command_meaning="sample among so many tokens",
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
