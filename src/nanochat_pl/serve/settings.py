"""How answers are drawn, and how people type it; no torch here, so that a slip of the pen is answered at once."""

import math
from dataclasses import dataclass

__all__ = ["Settings", "read_setting"]


@dataclass(frozen=True)
class Settings:
    """How answers are drawn; see `Request`. The defaults are nanochat's (2025-11), but for the seed: there 42."""

    temperature: float = 0.6
    top_k: int | None = 50
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int = 256
    seed: int | None = None
    """With a seed, the same questions in the same order get the same answers; None = another chat each time."""


_WHOLE = ("top_k", "max_new_tokens", "seed")
_MAY_BE_OFF = ("top_k", "top_p", "min_p", "seed")


def read_setting(name: str, text: str) -> int | float | None:
    """Read a setting's value as people type it; `off` (for top_k also 0) is None.

    Raises:
        ValueError: for what is no number or out of range, or for a setting that cannot be off.
    """
    if name in _MAY_BE_OFF and (text == "off" or (name == "top_k" and text == "0")):
        return None
    try:
        value = int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ValueError(f"{name}={text!r} must be {kind}" + " or off" * (name in _MAY_BE_OFF)) from None
    fits, expected = _range(name, value)
    if not fits:
        raise ValueError(f"{name}={text} must {expected}")
    return value


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
        case "max_new_tokens":
            return value >= 0, "be 0 or more"
    return True, ""
