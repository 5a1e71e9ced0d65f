"""`nanochat-pl import SRC DST`: a model of another program, an archive or a hub becomes a run folder of this one.

The folder holds what a run leaves behind: a checkpoint with weights, tokenizer and config, `config.yaml` and
`summary.json`. Everything that takes a run folder therefore takes it: `init_from=`, `ckpt=`, chat, serve, report. It
has no optimizer state: training can start from these weights but not resume.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.cli.export import check_destination, new_folder
from nanochat_pl.config.stages import MODEL_STAGES

if TYPE_CHECKING:
    from nanochat_pl.checkpoint.state import ModelState

__all__ = ["import_model", "main", "write_run"]

_NAMES = ("checkpoints", "config.yaml", "summary.json", "run.json", "eval", "report")
"""The entries of an imported run folder, which may be replaced; the folder of a training run holds more."""


def main(arguments: list[str]) -> int:
    """Import a model; return the exit code: 0, or 2 if it was refused, with the reason in one line."""
    parser = Arguments(
        prog="nanochat-pl import",
        description="Turn a model of another program, an archive or hf://owner/repo into a run folder.",
    )
    parser.add_argument("source", metavar="SRC", help="folder, file, archive, or hf://owner/repo[/folder]")
    parser.add_argument("destination", metavar="DST", type=Path, help="the run folder to make")
    parser.add_argument("--stage", choices=MODEL_STAGES, help="the stage that trained it, where its files do not say")
    parser.add_argument(
        "--rope-tables",
        choices=("bfloat16", "float32"),
        help="what rotary tables were rounded to in training, where its files do not say (nanochat: bfloat16)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier import")
    try:
        options = parser.parse_args(arguments)
        model = import_model(
            options.source,
            options.destination,
            stage=options.stage,
            rope_tables=options.rope_tables,
            force=options.force,
        )
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    except (ValueError, OSError) as error:
        return refuse(error)
    for note in model.notes:
        print(f"note: {note}")
    if model.stage not in MODEL_STAGES:
        print("note: its files do not say which stage trained it; --stage says so, for reports and evaluations")
    shape = model.config
    print(
        f"imported: {options.destination} ({model.format}, stage {model.stage}, step {model.step:,}; "
        f"{shape.n_layer} layers of {shape.n_embd} channels, vocabulary {shape.vocab_size:,})"
    )
    return 0


def import_model(
    source: str | Path,
    destination: Path,
    *,
    stage: str | None = None,
    rope_tables: str | None = None,
    force: bool = False,
) -> "ModelState":
    """Write a model as a run folder, and return the model.

    Args:
        source: any path that `load_model` opens.
        destination: the run folder.
        stage: the stage that trained it; None = the one that its files name.
        rope_tables: the rounding of its rotary tables; None = the one that its files name.
        force: replace an earlier import.
    """
    from nanochat_pl.checkpoint import read_model

    check_destination(destination, _NAMES, force)  # before a large model is fetched
    model = read_model(source)
    if stage is not None:
        model = replace(model, stage=stage)
    if rope_tables is not None:
        answered = tuple(note for note in model.notes if "--rope-tables" not in note)
        model = replace(model, config=replace(model.config, rope_table_dtype=rope_tables), notes=answered)
    with new_folder(destination, _NAMES, force) as folder:
        write_run(model, folder, destination.resolve().name, str(source))
    return model


def write_run(model: "ModelState", folder: Path, run_name: str, source: str) -> None:
    """Write the files that a run with these weights would have left, except optimizer state, curves and log."""
    import torch
    import yaml

    from nanochat_pl.checkpoint.lightning import checkpoint_metadata
    from nanochat_pl.model.accounting import num_parameters
    from nanochat_pl.paths import atomic_file

    checkpoint = {
        "epoch": 0,
        "global_step": model.step,
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state.items()},
        "nanochat_pl": checkpoint_metadata(model.stage, model.config, model.run_config, model.tokenizer),
    }
    with atomic_file(folder / "checkpoints" / "last.ckpt") as temporary:
        torch.save(checkpoint, temporary)
    config = model.run_config or _least_config(model, run_name)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    summary = {
        "stage": model.stage,
        "run_name": run_name,
        "status": "imported",
        "step": model.step,
        "num_parameters": num_parameters(model.config),
        "vocab_size": model.config.vocab_size,
    }
    record = {"imported_from": source, "format": model.format, "notes": list(model.notes)}
    for name, content in (("summary.json", summary), ("run.json", record)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _least_config(model: "ModelState", run_name: str) -> dict[str, Any]:
    """Return the part of a run's config that follows from the weights themselves."""
    return {
        "run_name": run_name,
        "depth": model.config.n_layer,
        "stage": {"name": model.stage, "sequence_len": model.config.sequence_len},
        "model": asdict(model.config),
    }
