"""The old address of a logger that saved configs name."""

from nanochat_pl.training.loggers import weights_and_biases

__all__ = ["weights_and_biases"]
