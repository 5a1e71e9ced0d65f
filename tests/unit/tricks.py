"""The tricks of the architecture, each alone and all together, for tests that hold whatever is on."""

from typing import Any

from nanochat_pl.model.config import MODERN

TRICKS: dict[str, dict[str, Any]] = {name: {name: value} for name, value in MODERN.items()}
TRICKS |= {"short_conv": {"short_conv": 4}, "modern": MODERN, "all": MODERN | {"short_conv": 3}}
WINDOWED = [name for name, changes in TRICKS.items() if "window_pattern" in changes]
"""Those with windows, of which the shortest is 128 tokens: rows must be longer to show them."""
