"""Checks of single values that several sections of a config share."""

__all__ = ["MAX_SEED", "check_seed", "positive"]

MAX_SEED = 2**32 - 1
"""The largest seed that all random generators take."""


def positive(section: object, prefix: str, *names: str) -> None:
    """Raise ValueError unless each named number is positive or null."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value <= 0:
            key = f"{prefix}.{name}" if prefix else name
            raise ValueError(f"{key}={value} must be positive; set {key}=1 or higher")


def check_seed(key: str, seed: int) -> None:
    """Raise ValueError unless a seed is one that all random generators take."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{key}={seed} must lie between 0 and {MAX_SEED}")
