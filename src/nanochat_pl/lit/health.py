"""The old address of a callback that saved configs name."""

from nanochat_pl.training.callbacks.diagnostics import Health

__all__ = ["Health"]
