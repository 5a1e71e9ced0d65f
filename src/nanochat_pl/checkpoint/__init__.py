"""`load_model(path)` opens a trained model of any format; there is no other way."""

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_pl.checkpoint.formats import FORMATS, ModelFiles, find_model_files
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
    """A trained model, its tokenizer, and what its files say about them."""

    model: "GPT"
    tokenizer: "Tokenizer"
    path: Path
    """The file the weights came from."""
    stage: str
    """The stage that trained it; `unknown` where the files do not say."""
    step: int
    """Optimizer updates within that stage."""
    config: dict[str, Any]
    """The resolved config of the run that trained it; empty if another program did."""
    format: str = "lightning"
    """One of `checkpoint.formats.FORMATS`; `lightning` is this project's own."""

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
        device: the device of the weights.
        compute_dtype: number format of the computation; None = the fastest the device is good at.
        hub_folder: where models of the hub are kept.
        offline: open no socket.

    Raises:
        FileNotFoundError: if nothing is there; the message lists what exists.
        ValueError: if there are several models, or a file is damaged, carries code or is of another kind of model.
    """
    from nanochat_pl.model.gpt import GPT
    from nanochat_pl.runtime import pick_compute_dtype

    state = read_model(path, hub_folder, offline)
    model = GPT(state.config, compute_dtype or pick_compute_dtype("auto", device))
    model.load_state_dict(state.state)
    return LoadedModel(
        model=model.to(device).eval(),
        tokenizer=state.tokenizer,
        path=state.file,
        stage=state.stage,
        step=state.step,
        config=state.run_config,
        format=state.format,
    )


def read_model(path: str | Path, hub_folder: str | Path = HUB_FOLDER, offline: bool = False) -> "ModelState":
    """Read a model without building it; arguments and errors are those of `load_model`."""
    files = locate_model(path, hub_folder, offline)
    reader = import_module(f"nanochat_pl.checkpoint.{FORMATS[files.format].module}")
    is_folder = files.file.name.startswith("model.safetensors")  # its reader wants what lies beside it as well
    state: ModelState = reader.read(files.file.parent if is_folder else files.file)
    for note in state.notes:
        log.info("%s: %s", state.file, note)
    return state


def locate_model(path: str | Path, hub_folder: str | Path = HUB_FOLDER, offline: bool = False) -> ModelFiles:
    """Return the files that a path stands for, fetching those of the hub; loads no torch."""
    return HubModel.parse(path, hub_folder).fetch(offline) if is_hub_address(path) else find_model_files(path)


def check_model(path: str | Path, hub_folder: str | Path = HUB_FOLDER, offline: bool = False) -> ModelFiles | None:
    """Make sure that a path stands for one model, without fetching anything large or loading torch.

    The result are its files; None if they are on the hub and not here yet. The errors are those of `load_model`, as far
    as names and metadata tell.
    """
    if not is_hub_address(path):
        return find_model_files(path)
    model = HubModel.parse(path, hub_folder)
    model.look(offline)
    return model.here()
