"""The contents of a run folder: where a run resumes, how far it came, its config, and what a new run removes.

Nothing here imports torch: checkpoints are looked at by name and by their archive's listing.
"""

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat_pl.checkpoint.whole import fault, newest_checkpoint, other_checkpoints, stored_step
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.config.stages import StageName
from nanochat_pl.paths import checkpoint_file, read_record

log = logging.getLogger(__name__)

RUN_FILES = (
    "checkpoints",
    "config.yaml",
    "error.txt",
    "eval",
    "events.out.tfevents*",
    "git_diff.patch",
    "hpc_ckpt_*.ckpt",
    "lightning",
    "lightning_logs",
    "log.txt",
    "loss.png",
    "metrics.csv",
    "report",
    "run.json",
    "samples.jsonl",
    "summary.json",
    "tokenizer",
    "tokenizer.json",
    "wandb",
    "wandb_run_id.txt",
)
"""Patterns of what runs, evaluations, reports, dashboards and Lightning leave in a run folder."""


def resume_file(cfg: TrainConfig, folder: Path) -> Path | None:
    """Find the checkpoint to continue from; None for a fresh run.

    Raises:
        FileNotFoundError: resume= names nothing.
        ValueError: the run folder already holds a run, and neither resume= nor force= is set; or the checkpoint of
            resume= is damaged, or all that `auto` finds are.
    """
    checkpoints = folder / "checkpoints"
    existing = sorted(checkpoints.glob("*.ckpt")) if checkpoints.is_dir() else []
    if cfg.stage.name == StageName.tokenizer:  # it is made in one step: there is nothing to continue
        existing = [p for p in [folder / "tokenizer.json"] if p.is_file()]
        if cfg.resume == "auto" and (folder / "config.yaml").is_file() and unfinished(folder) is not None:
            existing = []  # it was killed before its summary: it makes the same again
    elif cfg.resume == "auto":
        try:
            return newest_checkpoint(checkpoints)
        except ValueError:
            if not cfg.force:
                raise
    elif cfg.resume is not None:
        path = Path(cfg.resume)
        inside = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        path = (newest_checkpoint(inside) if path.is_dir() else None) or checkpoint_file(path)  # not the best one
        if not existing or cfg.force or path.resolve().parent == checkpoints.resolve():
            if path.suffix == ".ckpt" and (found := fault(path)) is not None:
                raise ValueError(f"{path} {found}; {other_checkpoints(path)}")
            return path
    if existing and not cfg.force:
        can_continue = cfg.stage.name != StageName.tokenizer and cfg.resume is None
        remedy = "resume=auto to continue it, " if can_continue else ""
        raise ValueError(
            f"{folder} already holds {existing[-1].name}"
            f"{f' and {len(existing) - 1} more' if len(existing) > 1 else ''}; give "
            f"{remedy}run_name=<another name>, or force=true to throw it away"
        )
    return None


def unfinished(folder: Path) -> str | None:
    """Return how far the run in a folder has come, or that there is none; None if it is finished."""
    summary = read_record(folder / "summary.json")
    if summary is None:
        return f"there is no {folder / 'summary.json'}"
    if "status" not in summary:
        return f"{folder / 'summary.json'} does not say how it ended"
    if summary["status"] == "finished":
        return None
    return f"{summary['status']} at step {summary.get('step')} of {summary.get('num_steps')}"


def warn_of_older_checkpoint(cfg: TrainConfig, resume: Path | None) -> None:
    """Warn if a run does not resume from its last.ckpt although no other checkpoint was named."""
    if resume is None or resume.name == "last.ckpt" or (cfg.resume != "auto" and not Path(cfg.resume or "").is_dir()):
        return
    last = resume.with_name("last.ckpt")
    why = f"{last} {fault(last)}" if last.is_file() else f"there is no {last}"
    log.warning("%s; going on from the newest whole checkpoint, %s (step %d)", why, resume, stored_step(resume))


def imported_run(checkpoint: Path) -> Path | None:
    """Return the run folder of a checkpoint that `nanochat-pl import` made; None for one that was trained there."""
    folder = checkpoint.parent.parent
    return folder if "imported_from" in (read_record(folder / "run.json") or {}) else None


def weights_only_error(file: Path) -> ValueError:
    """Return the error for a checkpoint without the optimizer state that a resume needs."""
    return ValueError(
        f"{file} holds weights only, no optimizer state to go on with; to start from them: resume=null "
        f"init_from={file} run_name=<another name>"
    )


def run_config(checkpoint: Path, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the config.yaml of the run of a checkpoint; `default` if it cannot be read."""
    import yaml

    try:
        config = yaml.safe_load((checkpoint.parent.parent / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return default
    return config if isinstance(config, dict) else default


def forget_run(folder: Path) -> None:
    """Remove the folder of a run that was refused before it wrote anything but Hydra's notes and a lock."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {".hydra", ".lock"}:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # other runs of the stage are there
            folder.parent.rmdir()


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left in `folder` (force=true), including half-written files; other files stay."""
    for pattern in (*RUN_FILES, ".*.tmp"):
        for entry in folder.glob(pattern):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
