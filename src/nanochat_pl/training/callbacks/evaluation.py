"""Evaluations of the model during training, the same as those of `evaluate.py`."""

import logging
import time
from dataclasses import replace
from typing import Any

import lightning as L

from nanochat_pl.config.checks import named_eval
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.eval.evaluations import EVAL_TASKS, EvalContext, EvalTask
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.results import Evaluation, ExampleLog, dashboard_metrics, headline_metrics
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.callbacks import RunCallback, is_due, log_metrics
from nanochat_pl.training.state import RunState

log = logging.getLogger(__name__)

_MANY = 20
"""Above this number of rows the line of the log has only those over all tasks; metrics.csv has all."""


class Evaluations(RunCallback):
    """Evaluate the model at an interval and at the end of training, as `evaluate.py` does, after saving it.

    The metrics are logged as `core_metric`, `chatcore_metric` and, for each task, `<evaluation>/<task>/<metric>`. Ranks
    share the work of CORE; in other evaluations each rank does all of it, since waiting for an answer takes as long.

    Args:
        cfg: the config of the training run; `cfg.eval` says what to measure.
        every_steps: the interval in optimizer steps.
    """

    priority = 30  # after the samples

    def __init__(self, run: RunState, cfg: TrainConfig, tokenizer: Tokenizer, every_steps: int) -> None:
        super().__init__(run)
        self.cfg, self.tokenizer = cfg, tokenizer
        self.every_steps = every_steps
        self.name = named_eval(cfg.eval, cfg.stage.name)
        self._task: EvalTask | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        context = EvalContext(
            model=pl_module.model,
            tokenizer=self.tokenizer,
            data=self.cfg.data,
            tasks=self.cfg.mixture.tasks,
            cfg=self.cfg,
        )
        self._task = EVAL_TASKS[self.name](context)  # what is missing is found before anything is computed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > 0 and is_due(trainer, self.every_steps) and not trainer.should_stop:
            self._evaluate(trainer, pl_module)  # the row of this step was dropped, or the evaluation interrupted

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if is_due(trainer, self.every_steps) and not trainer.should_stop:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        begin = time.perf_counter()
        self.run.checkpoints.save(trainer)
        assert self._task is not None
        pl_module.eval()
        evaluation = self._task.run(ExampleLog(), None)
        pl_module.train()
        found = headlines(str(self.name), evaluation)
        log_metrics(trainer, self.run, found, step)
        self.run.paused_seconds += time.perf_counter() - begin
        text = " | ".join(f"{key} {value:.4f}" for key, value in told(str(self.name), evaluation).items())
        log.info("step %05d/%05d | %s (%.0f s)", step, trainer.max_steps, text, evaluation.seconds)


def headlines(name: str, evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of an evaluation that curves are drawn of, by the names under which they are logged."""
    rows = [row for row in evaluation.rows if row.value is not None]
    shown = headline_metrics(rows)
    return dashboard_metrics(name, [row for row in rows if (row.task, row.metric) in shown])


def told(name: str, evaluation: Evaluation) -> dict[str, float]:
    """Return those of the headlines that the line of the log has room for.

    They are those that have a better and a worse; of many tasks, such as CORE's, those over all tasks.
    """
    rows = [row for row in evaluation.rows if metric_of(row.metric).direction] or evaluation.rows
    over_all = {row.task for row in rows if metric_of(row.metric).is_composite}
    if over_all and len(rows) > _MANY:
        rows = [row for row in rows if row.task in over_all]
    return headlines(name, replace(evaluation, rows=rows))
