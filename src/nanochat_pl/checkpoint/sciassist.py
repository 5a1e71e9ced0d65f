"""The folder of a fine-tuned science tutor: `model_finetuned.pt`, `meta_finetuned.json` and `tokenizer/`, both ways.

Weights and tokenizer are in nanochat's form, under fixed names; the metadata say which step was the best and what the
model was trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat_pl.checkpoint import nanochat
from nanochat_pl.checkpoint.formats import metadata_path, model_config, read_json
from nanochat_pl.checkpoint.nanochat import classic_config, read_tokenizer, read_weights, unsupported
from nanochat_pl.checkpoint.state import ModelState

__all__ = ["read", "unsupported", "write"]

STAGE = "sft_scienceqa"


def read(path: Path) -> ModelState:
    """Read `model_finetuned.pt` with the metadata and the tokenizer that belong to it.

    Raises:
        FileNotFoundError: if one of the three is missing.
        ValueError: if one is damaged, carries code, is not of a classic model, or does not fit the others.
    """
    meta_file = Path(metadata_path(path.as_posix()))
    meta = read_json(meta_file)
    config, state, notes = read_weights(path, model_config(meta, meta_file))
    step = next((meta[key] for key in ("best_step", "step") if type(meta.get(key)) is int), None)
    if step is None:
        notes += (f"{meta_file.name} names no step; 0 is assumed",)
    return ModelState(
        config=config,
        state=state,
        tokenizer=read_tokenizer(path, config),
        stage=STAGE,
        step=step or 0,
        run_config={},
        file=path,
        format="sciassist",
        notes=notes,
    )


def write(model: ModelState, folder: Path, meta: Mapping[str, Any] | None = None) -> list[Path]:
    """Write the three, with the best step, the model's config and the resolved config of its run in the metadata.

    `meta` holds further entries, such as `best_val_loss`. The result and the errors are those of `nanochat.write`.
    """
    run = {"config": model.run_config} | _training(model.run_config) if model.run_config else {}
    details = {"best_step": model.step} | run | dict(meta or {}) | {"model_config": classic_config(model.config)}
    return nanochat.write_files(model, folder, "finetuned", details, unsupported(model))


def _training(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a fine-tuning that its config settles."""
    data, stage = run.get("data") or {}, run.get("stage") or {}
    known = {
        "num_train_samples": data.get("train_rows"),
        "num_val_samples": stage.get("val_rows") or data.get("val_rows"),
        "num_epochs": stage.get("num_epochs"),
        "effective_batch_size": stage.get("total_batch_rows"),
    }
    return {key: value for key, value in known.items() if value is not None}
