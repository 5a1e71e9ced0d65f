"""nanochat's own files, read and written: `model_NNNNNN.pt`, `meta_NNNNNN.json` and `tokenizer.pkl`.

nanochat's files do not say which model they are of: the rotary base, the softcap and more stand in the program alone.
The names of their tensors tell it, because each later model added some. Two of them open: the classic one (until
January 10, 2026) and the modern one (since March 14, 2026); files of the models between are refused with the names that
gave them away.
"""

import base64
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tiktoken
import torch

from nanochat_pl.checkpoint.formats import SHAPE, metadata_path, model_config, read_json, tokenizer_file
from nanochat_pl.checkpoint.safe_load import read_tensors
from nanochat_pl.checkpoint.state import UNKNOWN_STAGE, ModelState, check_tokenizer, check_weights
from nanochat_pl.model.config import MODERN, Architecture, GPTConfig
from nanochat_pl.paths import atomic_file, write_atomically
from nanochat_pl.tokenizer import Tokenizer

__all__ = [
    "classic_config",
    "read",
    "read_tokenizer",
    "read_weights",
    "token_bytes",
    "tokenizer_pickle",
    "unsupported",
    "write",
    "write_files",
]

PADDED_ROWS = 64
"""Between December 23, 2025 and January 10, 2026 both ends of the vocabulary were padded to a multiple of this."""

MODERN_NAMES = ("smear_lambda", "smear_gate", "backout_lambda")
"""Weights that models since March 14, 2026 have and no earlier one."""

STAGES = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}
"""The names of nanochat's folders and the stages that they stand for."""


def read(path: Path) -> ModelState:
    """Read `model_NNNNNN.pt` with the metadata and the tokenizer that belong to it.

    Raises:
        FileNotFoundError: if one of the three is missing.
        ValueError: if one is damaged, carries code, is of a nanochat between January 11 and March 14, 2026, or does not
            fit the others.
    """
    meta_file = Path(metadata_path(path.as_posix()))
    meta = read_json(meta_file)
    config, state, notes = read_weights(path, model_config(meta, meta_file))
    step = int(found[1]) if (found := re.fullmatch(r"model_(\d+)", path.stem)) else 0
    if meta.get("step", step) != step:
        raise ValueError(
            f"{path} is of step {step}, {meta_file.name} of step {meta['step']!r}; they do not belong together"
        )
    return ModelState(
        config=config,
        state=state,
        tokenizer=read_tokenizer(path, config),
        stage=_stage(path, meta),
        step=step,
        run_config={},
        file=path,
        format="nanochat",
        notes=(*notes, *_left_behind(path)),
    )


def read_weights(path: Path, config: GPTConfig) -> tuple[GPTConfig, dict[str, torch.Tensor], tuple[str, ...]]:
    """Read a file of weights in nanochat's form, whose metadata have this config.

    Returns:
        The config, with `pad_vocab_to` if the file has padded rows; the weights, as in `ModelState.state`; notes on
        what was converted.

    Raises:
        ValueError: if it is damaged, carries code, is of a nanochat between classic and modern, or does not fit the
            config.
    """
    found = read_tensors(path)
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in found.items()}
    if len(state) < len(found):
        raise ValueError(f"{path} holds weights twice, with and without the prefix _orig_mod.; keep one of each")
    if between := _model_between(state):
        raise ValueError(f"{path} {between}; classic files, until January 10, and those since March 14, 2026 open here")
    notes = ["the prefix _orig_mod. was taken off its names"] if state.keys() != found.keys() else []
    if _named(state, *MODERN_NAMES):
        config = replace(config, **MODERN | {"window_pattern": config.window_pattern or "L"})
        notes.append(
            "it is of a nanochat since March 14, 2026, and assumed to be what the file does not say: model.rope_base="
            f"{config.rope_base:g}, model.softcap={config.softcap:g}, model.qk_scale={config.qk_scale:g}, short "
            "windows of a quarter, gates of value embeddings up to 3"
        )
    elif config.window_pattern is not None:
        raise ValueError(
            f"{path} has window_pattern={config.window_pattern!r}: sliding windows, which the classic model, whose "
            "weights these are, does not have"
        )
    rows = {
        len(state[name]) if state[name].dim() else 0
        for name in ("transformer.wte.weight", "lm_head.weight")
        if name in state
    }
    padded = replace(config, pad_vocab_to=PADDED_ROWS)
    if config.pad_vocab_to is None and rows == {padded.padded_vocab_size} != {config.vocab_size}:
        config = padded
        notes.append(f"its vocabulary of {config.vocab_size} is padded to {config.padded_vocab_size} rows")
    check_weights(state, config, path)
    if other := sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()} - {"float32"}):
        notes.append(f"its {' and '.join(other)} weights were converted to float32")
    weights = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    return config, weights, tuple(notes)


def _left_behind(path: Path) -> tuple[str, ...]:
    """Note that a run's optimizer state lies beside its weights and is not taken over; it is not opened."""
    # nanochat writes one file a rank, with slices that fit that number of ranks, and does not say in this project's
    # terms where in the data the run was: a run that went on from it would be another one.
    suffix = path.stem.removeprefix("model")
    files = sorted(file.name for file in path.parent.glob(f"optim{suffix}*.pt"))
    if not files:
        return ()
    shown = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return (f"its optimizer state ({shown}) is not taken over: training starts from these weights with a new one",)


def read_tokenizer(weights: Path, config: GPTConfig) -> Tokenizer:
    """Read the tokenizer that belongs to a file of weights (see `tokenizer_file`); it must have the model's size."""
    file = tokenizer_file(weights)
    tokenizer = Tokenizer.load(file)
    check_tokenizer(tokenizer, config, file)
    return tokenizer


def unsupported(model: ModelState) -> list[str]:
    """List the settings of a model that nanochat's classic files cannot express; empty if they can hold it.

    Written nevertheless, the model would compute something else over there. Where it has weights that only nanochat's
    modern model has, the list is what separates it from that one.
    """
    if _named(model.state, *MODERN_NAMES):
        return _modern_differences(model.config) or _differences(model.config, "classic", Architecture())
    return _differences(model.config, "classic", Architecture())


def _differences(config: GPTConfig, era: str, nanochats: Architecture) -> list[str]:
    """List the settings that one of nanochat's models has otherwise; how weights began does not matter any more."""
    settings = {field.name: getattr(config, field.name) for field in fields(Architecture) if field.name != "init"}
    if config.padded_vocab_size == config.vocab_size:  # padding that adds no row is none
        settings["pad_vocab_to"] = nanochats.pad_vocab_to
    return [
        f"model.{name}={value} ({era}: {getattr(nanochats, name)})"
        for name, value in settings.items()
        if value != getattr(nanochats, name)
    ]


def _is_modern(config: GPTConfig) -> bool:
    """Return whether nanochat's program since March 14, 2026 computes what a model does."""
    return not _modern_differences(config)


def _modern_differences(config: GPTConfig) -> list[str]:
    """List the settings that nanochat's modern model has otherwise; its windows are free, but there are some."""
    free = {"window_pattern": config.window_pattern or "SSSL", "smear_across_documents": config.smear_across_documents}
    return _differences(config, "modern", Architecture(**MODERN | free))


def write(model: ModelState, folder: Path, meta: Mapping[str, Any] | None = None) -> list[Path]:
    """Write a model so that nanochat opens it: put the files where its base folder has checkpoints and tokenizer.

    Written are `model_NNNNNN.pt`, `meta_NNNNNN.json`, `tokenizer/tokenizer.pkl` and `tokenizer/token_bytes.pt`. The
    tables of embeddings are written in bfloat16, as nanochat does after training on a GPU, where that loses nothing.
    `meta` holds further entries of the metadata, such as `val_bpb` or `user_config`.

    Raises:
        ValueError: if the format cannot hold the model; the message lists what would be lost.
        FileExistsError: if there is such a file already; nothing was written.
    """
    stage = {} if model.stage == UNKNOWN_STAGE else {"stage": model.stage}  # ours: nanochat tells it by the folder
    windows: dict[str, Any] = {}
    if _is_modern(model.config):  # nanochat derives the windows from sequence_len
        context = model.config.window_context or model.config.sequence_len
        windows = {"window_pattern": model.config.window_pattern, "sequence_len": context}
    details = {"step": model.step} | stage | dict(meta or {})
    details["model_config"] = classic_config(model.config) | windows
    lost = [] if _is_modern(model.config) else unsupported(model)
    return write_files(model, folder, f"{model.step:06d}", details, lost)


def write_files(
    model: ModelState, folder: Path, suffix: str, meta: Mapping[str, Any], lost: Sequence[str]
) -> list[Path]:
    """Write `model_<suffix>.pt`, `meta_<suffix>.json` and `tokenizer/` with nanochat's two files; see `write`."""
    if lost:
        raise ValueError(f"nanochat's files cannot hold {model.file}; lost would be: {'; '.join(lost)}")
    weights, details = folder / f"model_{suffix}.pt", folder / f"meta_{suffix}.json"
    vocabulary, lengths = folder / "tokenizer" / "tokenizer.pkl", folder / "tokenizer" / "token_bytes.pt"
    files = [vocabulary, lengths, details, weights]
    if there := [str(file) for file in files if file.exists()]:
        raise FileExistsError(f"there is {', '.join(there)} already; give an empty folder, or remove it")
    write_atomically(vocabulary, tokenizer_pickle(model.tokenizer))
    _save(token_bytes(model.tokenizer), lengths)
    write_atomically(details, json.dumps(dict(meta), indent=2))
    state = dict(model.state)
    for name in [name for name in state if name == "transformer.wte.weight" or name.startswith("value_embeds.")]:
        table = state[name]
        if torch.equal(table, table.to(torch.bfloat16).to(table.dtype)):
            state[name] = table.to(torch.bfloat16)
    _save(state, weights)  # last: where it is, the others are
    return files


def classic_config(config: GPTConfig) -> dict[str, int]:
    """Return the part of a config that nanochat's metadata hold."""
    return {name: getattr(config, name) for name in SHAPE}


def tokenizer_pickle(tokenizer: Tokenizer) -> bytes:
    """Return the bytes of nanochat's `tokenizer.pkl`: a pickled `tiktoken.Encoding`."""
    state = tokenizer.state()
    encoding = tiktoken.Encoding(
        "rustbpe",
        pat_str=state["pattern"],
        mergeable_ranks={base64.b64decode(token): rank for rank, token in enumerate(state["tokens_base64"])},
        special_tokens=state["special_tokens"],
    )
    return pickle.dumps(encoding, protocol=4)


def token_bytes(tokenizer: Tokenizer) -> torch.Tensor:
    """Return nanochat's `token_bytes.pt`, int32 (V,): UTF-8 bytes of each token decoded alone, 0 for special tokens.

    Every byte that is no UTF-8 by itself counts 3 there (nanochat, until 2026-07). `Tokenizer.token_bytes` counts 1,
    but nanochat's bits per byte should come out as it computes them.
    """
    raw = tokenizer.token_bytes()
    lengths = [len(tokenizer.decode([token]).encode()) if raw[token] else 0 for token in range(tokenizer.vocab_size)]
    return torch.tensor(lengths, dtype=torch.int32)


def _save(content: Any, path: Path) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _model_between(state: Mapping[str, torch.Tensor]) -> str | None:
    """Return which nanochat between classic and modern made these weights, and which names tell; None for neither."""
    if _named(state, *MODERN_NAMES):
        return None
    gates = [name for name in state if name.endswith(".ve_gate.weight")]
    widths = {state[name].shape[-1] for name in gates if state[name].dim()}
    marks = {
        "March 9 to 14, 2026": gates if 12 in widths else [],
        "January 18 to March 9, 2026": gates + _named(state, "value_embeds", "bigram_embed", "bigram_lambdas"),
        "January 11 to 17, 2026": _named(state, "resid_lambdas", "x0_lambdas"),
    }
    for when, names in marks.items():
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            return f"was saved by a nanochat of {when}, which computes another model ({shown} gave it away)"
    return None


def _named(state: Mapping[str, Any], *beginnings: str) -> list[str]:
    return [name for name in state if name.split(".")[0] in beginnings]


def _stage(path: Path, meta: Mapping[str, Any]) -> str:
    """Find the stage: by `write`'s note, by nanochat's folders, else by entries that only one stage's metadata have."""
    if isinstance(meta.get("stage"), str):
        return meta["stage"]
    folders = [path.resolve().parent.name, path.resolve().parent.parent.name]
    by_folder = next((STAGES[folder] for folder in folders if folder in STAGES), None)
    if by_folder is not None:
        return by_folder
    if "val_loss" in meta or "mmlu_acc" in meta:
        return "sft"
    return "base" if "dataloader_state_dict" in meta else UNKNOWN_STAGE
