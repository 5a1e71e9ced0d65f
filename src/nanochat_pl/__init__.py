"""Train small chat models from nothing, as a library: model, optimizers, tokenizer, data, evaluation.

The public names load on first use, so that importing the package (and composing a config, and printing
help) costs neither torch nor lightning.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "GPT": "nanochat_pl.model.gpt",
    "GPTConfig": "nanochat_pl.model.config",
    "Tokenizer": "nanochat_pl.tokenizer",
    "Engine": "nanochat_pl.engine",
    "Request": "nanochat_pl.requests",
    "Completion": "nanochat_pl.requests",
    "Muon": "nanochat_pl.optim.muon",
    "load_model": "nanochat_pl.checkpoint",
    "train": "nanochat_pl.api",
    "evaluate": "nanochat_pl.api",
}

__all__ = [
    "GPT",
    "Completion",
    "Engine",
    "GPTConfig",
    "Muon",
    "Request",
    "Tokenizer",
    "evaluate",
    "load_model",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
