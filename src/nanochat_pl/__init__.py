"""Train small chat models from nothing, as a library: model, optimizers, tokenizer, data, evaluation.

The public names load on first use, so that importing the package (and composing a config, and printing
help) costs neither torch nor lightning.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "GPT": "nanochat_pl.model.gpt",
    "Completion": "nanochat_pl.requests",
    "Engine": "nanochat_pl.engine",
    "GPTConfig": "nanochat_pl.model.config",
    "Muon": "nanochat_pl.optim.muon",
    "Request": "nanochat_pl.requests",
    "Tokenizer": "nanochat_pl.tokenizer",
    "evaluate": "nanochat_pl.api",
    "load_model": "nanochat_pl.checkpoint",
    "train": "nanochat_pl.api",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
