"""How answers are drawn, and how people type it; no torch here, so that a slip of the pen is answered at once."""

import math
from dataclasses import dataclass

__all__ = ["Settings", "read_setting", "shown_setting"]


@dataclass(frozen=True)
class Settings:
    """How answers are drawn; see `Request`. The defaults are nanochat's (2025-11), but for the seed: there 42."""

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


_WHOLE = ("top_k", "max_new_tokens", "seed")
_OFF: dict[str, float | None] = {
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "seed": None,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""What `off` means for the settings that can be off."""


def read_setting(name: str, text: str) -> int | float | None:
    """Read a setting's value as people type it; `off` (for top_k also 0) is the value that does nothing.

    Raises:
        ValueError: for what is no number or out of range, or for a setting that cannot be off.
    """
    if name in _OFF and (text == "off" or (name == "top_k" and text == "0")):
        return _OFF[name]
    try:
        value = int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ValueError(f"{name}={text!r} must be {kind}" + " or off" * (name in _OFF)) from None
    fits, expected = _range(name, value)
    if not fits:
        raise ValueError(f"{name}={text} must {expected}")
    return value


def shown_setting(name: str, value: float | None) -> str:
    """Write a setting's value as it may be typed."""
    return "off" if name in _OFF and value == _OFF[name] else str(value)


def _range(name: str, value: float) -> tuple[bool, str]:
    """Say whether a value lies in the engine's range (`check_request`), and that range as people know it."""
    match name:
        case "temperature":
            return 0 <= value < math.inf, "be a number from 0 up; 0 = always the likeliest token"
        case "top_k":
            return value >= 1, "be 1 or more; 0 or off = all tokens"
        case "top_p":
            return 0 < value <= 1, "lie above 0 and not above 1; off = all tokens"
        case "min_p":
            return 0 <= value <= 1, "lie between 0 and 1; off = all tokens"
        case "repetition_penalty":
            return 0.1 <= value <= 10, "lie between 0.1 and 10; 1 or off = none"
        case "frequency_penalty" | "presence_penalty":
            return -2 <= value <= 2, "lie between -2 and 2; 0 or off = none"
        case "max_new_tokens":
            return value >= 0, "be 0 or more"
    return True, ""
