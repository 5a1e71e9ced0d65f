"""Metrics on disk and on a dashboard.

`metrics.csv` is written in every run: append-only, one row a step that logged, columns as they come. Lightning's
own CSV logger wipes its file when a run folder is used again; this one drops only the rows past the step that a
run resumes from. Weights & Biases is opt-in and falls back to offline where there is no account.
"""

import csv
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from nanochat_pl.paths import write_atomically

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Append metrics to a CSV file; the first column is `step`.

    Args:
        path: the file; rows already in it stay.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.columns = next(csv.reader(file), [])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved config stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite(self.rows())
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """Read back all rows, values as text."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drop rows of `step` and later: a run that continues there writes them again."""
        rows = self.rows()
        kept = [row for row in rows if int(row["step"]) < step]
        if len(kept) < len(rows):
            self._rewrite(kept)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        lines = [",".join(self.columns)]
        lines += [",".join(row.get(name) or "" for name in self.columns) for row in rows]
        write_atomically(self.path, "\n".join(lines) + "\n")


def weights_and_biases(project: str, name: str, offline: bool, folder: str = ".", run_id: str | None = None) -> Logger:
    """Make the W&B logger: offline when asked to or where there is no key, same run id after a resume.

    Args:
        project: W&B project.
        name: display name of the run.
        offline: write to disk only.
        folder: the run folder; W&B's files and the run id live there.
        run_id: continue this W&B run; null = the one noted in the folder, else a new one.
    """
    from lightning.pytorch.loggers import WandbLogger

    if not offline and not os.environ.get("WANDB_API_KEY") and not _netrc_knows_wandb():
        log.warning(
            "logger=wandb: no WANDB_API_KEY and no login found; writing offline, see the sync command at the end"
        )
        offline = True
    note = Path(folder) / "wandb_run_id.txt"
    if run_id is None and note.is_file():
        run_id = note.read_text().strip()
    logger = WandbLogger(
        project=project, name=name, offline=offline, save_dir=folder, id=run_id, resume="allow" if run_id else None
    )
    run = logger.experiment
    if isinstance(getattr(run, "id", None), str):
        write_atomically(note, run.id + "\n")
    for pattern in ("train/*", "val/*", "rl/*", "pass@*", "reward", "sequence_length"):
        run.define_metric(pattern, step_metric="step")
    return logger


def _netrc_knows_wandb() -> bool:
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
