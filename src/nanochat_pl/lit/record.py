"""What a run leaves beside its weights: config, command line, versions, commit, log; and how dashboards are closed."""

import json
import logging
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import OmegaConf

from nanochat_pl.paths import write_atomically

log = logging.getLogger(__name__)


def describe_run(folder: Path, plain: dict[str, Any], arguments: list[str]) -> None:
    """Save what is needed to repeat a run: resolved config, command line, versions, commit and uncommitted changes."""
    OmegaConf.save(OmegaConf.create(plain), folder / "config.yaml")

    checkout = Path(__file__).resolve().parents[3]
    where = checkout if (checkout / ".git").exists() else None  # installed: the user's own repository, if in one

    def git(*words: str) -> str | None:
        try:
            out = subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return out.stdout

    packages = ("torch", "lightning", "hydra-core", "omegaconf", "tiktoken", "rustbpe", "numpy", "pyarrow")
    record = {
        "argv": arguments,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "git_commit": (git("rev-parse", "HEAD") or "").strip() or None,
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2) + "\n")
    if difference := git("diff", "HEAD"):
        write_atomically(folder / "git_diff.patch", difference)


def write_log(path: Path | None, first: bool) -> None:
    """Send the project's log to standard error and, on the first process, to `path` as plain lines.

    Args:
        path: the log file; None = standard error only.
        first: this is the first process; the others only say what is wrong.
    """
    logging.getLogger("rustbpe").setLevel(logging.WARNING)
    logger = logging.getLogger("nanochat_pl")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if first else logging.WARNING)
    logger.propagate = False
    console = _StandardError()
    if is_terminal():  # the progress bar shows what these lines would say
        console.addFilter(lambda record: not getattr(record, "in_bar", False))
    handlers: list[logging.Handler] = [console]
    if first and path is not None:
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


class _StandardError(logging.StreamHandler):
    """Write to whatever `sys.stderr` is at that moment: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def is_terminal() -> bool:
    """Say whether a person watches standard error."""
    return sys.stderr.isatty()


def finish_loggers(trainer: L.Trainer) -> None:
    """Close dashboards, so that the next job of a sweep gets a run of its own; say how to sync what stayed offline."""
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            folder = Path(logger.experiment.dir).parent if hasattr(logger.experiment, "dir") else None
            wandb.finish()
            if folder is not None and "offline" in folder.name:
                log.info("W&B wrote offline; to upload: wandb sync %s", folder)
