"""`load_model(path)`: the only way to open a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from nanochat_pl.model.gpt import GPT
    from nanochat_pl.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it."""

    model: "GPT"
    tokenizer: "Tokenizer"
    path: Path
    """The file the weights came from."""
    stage: str
    step: int
    config: dict[str, Any]
    """The resolved config of the run that trained it."""


def load_model(
    path: str | Path, device: "torch.device | str" = "cpu", compute_dtype: "torch.dtype | None" = None
) -> LoadedModel:
    """Open a checkpoint file or a run folder (its best checkpoint if there is one, else its last).

    Args:
        path: a `.ckpt` file, a run folder or its `checkpoints/`.
        device: where the weights go.
        compute_dtype: number format of the computation; None = the fastest the device is good at.

    Raises:
        FileNotFoundError: nothing there; the message lists what exists.
        ValueError: not a checkpoint of this project, truncated, or carrying code.
    """
    from nanochat_pl.checkpoint.lightning import model_weights, read_checkpoint, stored_model_config, stored_tokenizer
    from nanochat_pl.model.gpt import GPT
    from nanochat_pl.paths import checkpoint_file
    from nanochat_pl.runtime import pick_compute_dtype

    file = checkpoint_file(path)
    checkpoint = read_checkpoint(file)
    model = GPT(stored_model_config(checkpoint), compute_dtype or pick_compute_dtype("auto", device))
    model.load_state_dict(model_weights(checkpoint))
    ours = checkpoint["nanochat_pl"]
    return LoadedModel(
        model=model.to(device).eval(),
        tokenizer=stored_tokenizer(checkpoint),
        path=file,
        stage=ours["stage"],
        step=checkpoint["global_step"],
        config=ours["config"],
    )
