"""What a run says while it trains: one line of a terminal, and no figure that is not known."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat_pl.training.callbacks.progress import Progress, _LineColumn
from nanochat_pl.training.state import CheckpointFolder, RunState


def progress(peak_flops: float | None = None, every_steps: int = 5) -> Progress:
    folder = Path("nowhere")
    run = RunState(folder, CheckpointFolder(folder), flops_per_token=1000)
    run.validation = {"val/loss": 6.2383, "val/bpb": 4.2346}
    return Progress(run, every_steps, peak_flops)


def session(figures: Progress, durations: list[float], monkeypatch: pytest.MonkeyPatch, first: int = 0) -> list[str]:
    """Let steps take these seconds; returns the lines that are logged."""
    clock, said = SimpleNamespace(now=100.0), []
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr("nanochat_pl.training.callbacks.progress.log.info", lambda line, **kwargs: said.append(line))
    trainer: Any = SimpleNamespace(
        global_step=first, max_steps=first + len(durations), world_size=1, loggers=[], callbacks=[]
    )
    outputs = {"loss": torch.tensor(2.0), "grad_norm": torch.tensor(1.0), "lrm": 1.0, "tokens": 512, "metrics": {}}
    module: Any = None
    figures.on_train_start(trainer, module)
    for index, seconds in enumerate(durations):
        clock.now += seconds
        trainer.global_step += 1
        figures.on_train_batch_end(trainer, module, outputs, None, index)
    return said


@pytest.mark.parametrize("every_steps", [1, 2, 5])
def test_the_first_time_left_that_is_told_knows_nothing_of_the_step_that_compiled(
    every_steps: int, monkeypatch: pytest.MonkeyPatch
):
    lines = session(progress(every_steps=every_steps), [60.0] + [1.0] * 10, monkeypatch, first=7)
    told = [line.rpartition("eta ")[2] for line in lines if "eta" in line]
    assert told and all(eta.startswith("0m") for eta in told)  # of ten steps of a second


def test_a_figure_that_is_not_known_is_left_out(monkeypatch: pytest.MonkeyPatch):
    first, *others = session(progress(every_steps=1), [1.0, 1.0, 1.0], monkeypatch)
    assert "eta" not in first and all("eta" in line for line in others)
    assert not any("mfu" in line or " - " in line for line in [first, *others])
    known = session(progress(peak_flops=1e6, every_steps=1), [1.0, 1.0], monkeypatch)
    assert all("mfu 51.2%" in line for line in known)


@pytest.mark.parametrize("width", [20, 50, 80, 120])
@pytest.mark.parametrize("reward", [True, False])
def test_the_bar_is_one_line_of_whole_figures(width: int, reward: bool, monkeypatch: pytest.MonkeyPatch):
    figures = progress()
    begin = _LineColumn(figures.run).text(0, 100_000, width)
    session(figures, [1.0] * 10, monkeypatch)
    figures.run.metrics |= {"train/tok_per_sec": 1_234_567.0} | ({"reward": 0.25} if reward else {})
    line = _LineColumn(figures.run)
    for text in (begin, *(line.text(step, 100_000, width) for step in (0, 1, 99_999, 100_000))):
        assert len(text) <= width and "\n" not in text
    if width >= 80:
        text = line.text(50_000, 100_000, width)
        assert "50000/100000" in text and "━─" in text and "left" in text and "loss 2.000 | tok/s 1,234,567" in text
        assert set(text.partition("left")[2].split(" | ")) - {""} <= {
            *("loss 2.000", "tok/s 1,234,567", "reward 0.250", "val/loss 6.2383", "val/bpb 4.2346"),
        }
