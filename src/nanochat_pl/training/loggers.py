"""Log metrics to disk and to a dashboard.

Every run writes `metrics.csv`, append-only, with one row for each logged step and columns as they come. Lightning's own
CSV logger wipes its file when a run folder is used again; this one drops only the rows past the step that a run resumes
from. Weights & Biases is opt-in and works offline where there is no account; an evaluation joins the dashboard of the
run that trained its checkpoint.
"""

import csv
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from nanochat_pl.config.processes import is_first_process
from nanochat_pl.eval.metrics import METRICS
from nanochat_pl.eval.results import dashboard_metrics
from nanochat_pl.paths import JOB_FILE, write_atomically, writing
from nanochat_pl.report.evaluated import read_result
from nanochat_pl.report.read import EvaluationResult, read_config, read_metrics

__all__ = [
    "AXES",
    "SUMMARIES",
    "MetricsFile",
    "evaluation_figures",
    "finish_loggers",
    "log_evaluation",
    "log_table",
    "weights_and_biases",
]

log = logging.getLogger(__name__)

AXES = ("step", "tokens", "total_training_flops", "total_training_time")
"""The possible x axes of a curve; the first is the default. Every row that a dashboard gets has all four."""

SUMMARIES = {
    name: f"{'max' if known.direction > 0 else 'min'},last" for name, known in METRICS.items() if known.is_tracked
}
"""Metrics whose best value is shown next to the last one in W&B's table of runs."""

RUN_ID = "wandb_run_id.txt"
"""File of a run folder with the id of its W&B run."""

MAX_EXAMPLES = 1000
"""The most rows of a table of answers on a dashboard; examples.jsonl has all."""

EXAMPLE_COLUMNS = ("id", "task", "prompt", "expected", "output", "correct", "prompt_tokens", "output_tokens")
"""Fields of answers that are shown in that table, where the answers have them."""


class MetricsFile(Logger):
    """Append metrics to a CSV file, which may have rows already; the first column is `step`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
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
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """Read back all rows, values as text."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
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
    """Make the W&B logger: offline if the config says so or there is no key, with the same run id after a resume.

    Args:
        project: the W&B project.
        name: the display name of the run.
        offline: write to disk only.
        folder: the run folder; W&B's files and the run id live there.
        run_id: the W&B run to continue; None = the one noted in the folder, else a new one.
    """
    from lightning.pytorch.loggers import WandbLogger

    # Lightning would define every metric over a step count of its own. W&B leaves open which of two matching patterns
    # applies, so ours must be the only one: the run is started here.
    run = None
    if is_first_process():
        run = _start_run(project, name, offline, Path(folder), run_id)
        _define_metrics(run)
    return WandbLogger(project=project, name=name, save_dir=folder, id=run_id, experiment=run)


def _start_run(project: str, name: str | None, offline: bool, folder: Path, run_id: str | None) -> Any:
    """Start or continue the W&B run of a run folder, and note its id there."""
    import wandb

    if not offline and not os.environ.get("WANDB_API_KEY") and not _netrc_knows_wandb():
        log.warning(
            "logger=wandb: no WANDB_API_KEY and no login found; writing offline, see the sync command at the end"
        )
        offline = True
    note, config = folder / RUN_ID, read_config(folder, [])[0]
    if run_id is None and note.is_file():
        run_id = note.read_text().strip()
    run = wandb.init(
        project=project,
        name=f"{name} {folder.name}" if (folder / JOB_FILE).is_file() else name,
        group=(config.get("sweep") or {}).get("variant"),
        dir=folder,
        id=run_id,
        resume="allow" if run_id and not offline else None,  # offline the id alone identifies the run
        mode="offline" if offline else None,
        config=config,
        reinit="finish_previous",
    )
    write_atomically(note, run.id + "\n")
    return run


def _define_metrics(run: Any) -> None:
    """Define the step as the x axis of all metrics; a panel may choose tokens, FLOPs or time instead."""
    for axis in AXES:
        run.define_metric(axis, hidden=True)
    run.define_metric("*", step_metric=AXES[0])
    for name, summary in SUMMARIES.items():
        run.define_metric(name, step_metric=AXES[0], summary=summary)


def _netrc_knows_wandb() -> bool:
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


def finish_loggers(trainer: L.Trainer) -> None:
    """Close dashboards, so that the next job of a sweep gets its own run; log how to sync what stayed offline."""
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            folder = Path(logger.experiment.dir).parent if hasattr(logger.experiment, "dir") else None
            wandb.finish()
            if folder is not None and "offline" in folder.name:
                _log_sync_command(folder)


def _log_sync_command(folder: Path) -> None:
    log.info("W&B wrote offline; to upload: wandb sync %s", folder)


def log_table(
    loggers: Sequence[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Send a table to the loggers that can show one; call on the first process only."""
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            table: Any = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            logger.log_metrics({"step": step, name: table})


def log_evaluation(results: Path, run_folder: Path) -> bool:
    """Add an evaluation to the W&B run that trained its checkpoint: the figures at its step, and a table of answers.

    Args:
        results: the evaluation's `results.json`; `examples.jsonl` lies beside it if questions were asked.
        run_folder: the folder of the training run.

    Returns:
        Whether that run was logged to W&B; if not, nothing is done.
    """
    specs = (read_config(run_folder, [])[0].get("logger") or {}).values()
    spec = next((s for s in specs if s and str(s.get("_target_", "")).endswith(".weights_and_biases")), None)
    if spec is None or not (run_folder / RUN_ID).is_file():
        return False
    import wandb

    result = read_result(results)
    run = _start_run(spec["project"], spec.get("name"), bool(spec.get("offline")), run_folder, spec.get("run_id"))
    _define_metrics(run)
    row = evaluation_figures(result) | _axes_at(run_folder, result.step)
    columns: list[str | int] = [key for key in EXAMPLE_COLUMNS if any(key in record for record in result.records)]
    if columns:
        table = [[_cell(record.get(key)) for key in columns] for record in result.records[:MAX_EXAMPLES]]
        row[f"{result.name}/examples"] = wandb.Table(columns=columns, data=table, allow_mixed_types=True)
    run.log(row)
    folder, offline = Path(run.dir).parent, run.settings.mode == "offline"
    run.finish()
    if offline:
        _log_sync_command(folder)
    return True


def evaluation_figures(result: EvaluationResult) -> dict[str, float]:
    """Return the metrics of an evaluation as a dashboard names them: `<evaluation>/<task>/<metric>`, or `core_metric`.

    Metrics of parts of the questions and those that could not be measured are left out.
    """
    speed = {f"{result.name}/examples_per_s": result.examples_per_s} if result.examples_per_s else {}
    return dashboard_metrics(result.name, result.rows) | speed


def _axes_at(run_folder: Path, step: int | None) -> dict[str, float]:
    """Return the x axes after `step` updates, as far as the row of the last of these was logged."""
    if step is None:
        return {}
    curves = read_metrics(run_folder / "metrics.csv", [])
    known = {axis: dict(curves.get(axis, ())).get(step - 1) for axis in AXES[1:]}
    return {"step": step} | {axis: value for axis, value in known.items() if value is not None}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)
