"""`load_model(path)`: the only way to open a trained model, of whatever format."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_pl.checkpoint.formats import ModelFiles, find_model_files
from nanochat_pl.checkpoint.hub import HUB_FOLDER, HubModel, is_hub_address

if TYPE_CHECKING:
    import torch

    from nanochat_pl.checkpoint.state import ModelState
    from nanochat_pl.model.gpt import GPT
    from nanochat_pl.tokenizer import Tokenizer

__all__ = ["LoadedModel", "check_model", "load_model", "locate_model", "read_model"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it."""

    model: "GPT"
    tokenizer: "Tokenizer"
    path: Path
    """The file the weights came from."""
    stage: str
    """Stage that trained it; `unknown` where the files do not say."""
    step: int
    config: dict[str, Any]
    """The resolved config of the run that trained it; empty where another program did."""
    format: str = "lightning"
    """`lightning` (this project's own), `nanochat`, `sciassist`, `huggingface` or `package`."""

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"LoadedModel({str(self.path)!r}, stage={self.stage!r}, step={self.step}, depth={config.n_layer}, "
            f"vocab_size={config.vocab_size}, sequence_len={config.sequence_len})"
        )


def load_model(
    path: str | Path,
    device: "torch.device | str" = "cpu",
    compute_dtype: "torch.dtype | None" = None,
    *,
    hub_folder: str | Path = HUB_FOLDER,
    offline: bool = False,
) -> LoadedModel:
    """Open a trained model.

    Args:
        path: a `.ckpt` file or a run folder (its best checkpoint if there is one, else its last), `<run folder>/last`;
            a nanochat file or folder, a SciAssist folder, a Hugging Face folder of a nanochat; an archive of
            `nanochat-pl export` or its folder; or `hf://owner/repo[/folder]`, fetched below `outputs/hub` once.
        device: where the weights go.
        compute_dtype: number format of the computation; None = the fastest the device is good at.
        hub_folder: where models of the hub are kept.
        offline: open no socket.

    Raises:
        FileNotFoundError: nothing there; the message lists what exists.
        ValueError: several models there, or a file that is damaged, carries code or is of another kind of model.
    """
    from nanochat_pl.model.gpt import GPT
    from nanochat_pl.runtime import pick_compute_dtype

    stored = read_model(path, hub_folder, offline)
    model = GPT(stored.config, compute_dtype or pick_compute_dtype("auto", device))
    model.load_state_dict(stored.state)
    return LoadedModel(
        model=model.to(device).eval(),
        tokenizer=stored.tokenizer,
        path=stored.file,
        stage=stored.stage,
        step=stored.step,
        config=stored.run_config,
        format=stored.format,
    )


def read_model(path: str | Path, hub_folder: str | Path = HUB_FOLDER, offline: bool = False) -> "ModelState":
    """Read a model without building it; `path` and errors as `load_model`.

    Args:
        path: what to open.
        hub_folder: where models of the hub are kept.
        offline: open no socket.
    """
    source = locate_model(path, hub_folder, offline)
    if source.format == "lightning":
        from nanochat_pl.checkpoint.lightning import read
    elif source.format == "nanochat":
        from nanochat_pl.checkpoint.nanochat import read
    elif source.format == "sciassist":
        from nanochat_pl.checkpoint.sciassist import read
    elif source.format == "package":
        from nanochat_pl.checkpoint.archive import read
    else:
        from nanochat_pl.checkpoint.huggingface import read
    is_folder = source.file.name.startswith("model.safetensors")  # its reader wants what lies beside it as well
    stored = read(source.file.parent if is_folder else source.file)
    for note in stored.notes:
        log.info("%s: %s", stored.file, note)
    return stored


def locate_model(path: str | Path, hub_folder: str | Path = HUB_FOLDER, offline: bool = False) -> ModelFiles:
    """Say which files a path stands for, fetching those of the hub; loads no torch. As `read_model`."""
    return HubModel.parse(path, hub_folder).fetch(offline) if is_hub_address(path) else find_model_files(path)


def check_model(path: str | Path, hub_folder: str | Path = HUB_FOLDER, offline: bool = False) -> ModelFiles | None:
    """Make sure that a path stands for one model, without fetching anything large or loading torch.

    Returns:
        Its files; None where they are on the hub and not here yet.

    Raises:
        FileNotFoundError, ValueError: as `load_model`, as far as names and metadata tell.
    """
    if not is_hub_address(path):
        return find_model_files(path)
    model = HubModel.parse(path, hub_folder)
    model.look(offline)
    return model.here()
