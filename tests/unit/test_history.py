"""One picture of all training: stages follow each other as they were trained, nothing overlaps, nothing is left out."""

import itertools
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat_pl.cli.report import main
from nanochat_pl.config.run_folder import RUN_FILES
from nanochat_pl.report.charts import png_bytes, styled
from nanochat_pl.report.history import StageCurves, chains, draw_history, history_figure, run_picture, smooth
from nanochat_pl.report.html import render_html
from nanochat_pl.report.read import Curve, find_chain, read_run
from nanochat_pl.report.run_report import report_blocks
from nanochat_pl.training.callbacks import picture as callbacks
from nanochat_pl.training.callbacks.picture import Picture
from nanochat_pl.training.state import CheckpointFolder, RunState
from tests.unit.test_report import write_run
from tests.unit.test_writing import full_disk

PNG = b"\x89PNG\r\n\x1a\n"
WIDTHS = [(9.2, 3.7), (4.0, 3.7)]


def stage(
    name: str, steps: int, *, every: int = 1, first: float = 8.0, last: float = 2.0, **more: Curve
) -> StageCurves:
    """A stage whose loss falls evenly, validated at its start and end."""
    logged = range(0, steps, every)
    training = tuple((step, first + (last - first) * step / steps) for step in logged)
    tokens = tuple((step, 2048.0 * (step + 1)) for step in logged)
    return StageCurves(
        name=name, curves={"train/loss": training, "val/loss": ((0, first), (steps, last)), "tokens": tokens} | more
    )


def policy(steps: int) -> StageCurves:
    reward = tuple((step, step / steps) for step in range(steps))
    curves = {"train/loss": reward, "reward": reward, "pass@1": ((0, 0.1), (steps, 0.7))}
    return StageCurves(name="rl", curves=curves)


# --- which runs follow each other ---


def start(folder: Path) -> str:
    return f"{folder}/checkpoints/best.ckpt ({folder.parent.name}, step 30)"


def test_a_chain_goes_by_start_weights_and_a_stage_from_which_two_went_on_stands_in_both(tmp_path: Path):
    base = write_run(tmp_path, "base", init_from="seed 42")
    mid = write_run(tmp_path, "mid", init_from=start(base))
    write_run(tmp_path, "sft", init_from=start(mid))
    write_run(tmp_path, "sft_scienceqa", init_from=start(base))
    write_run(tmp_path, "tokenizer")
    runs = [read_run(folder) for folder in find_chain([base])]
    assert [[run.stage for run in chain] for chain in chains(runs)] == [
        ["base", "mid", "sft"],
        ["base", "sft_scienceqa"],
    ]


def test_a_run_continues_only_the_run_that_it_started_from(tmp_path: Path):
    jobs = [read_run(write_run(tmp_path, "base", name)) for name in ("one", "two")]
    sft = read_run(write_run(tmp_path, "sft", "two", init_from="hf://somebody/model"))
    assert [[run.name for run in chain] for chain in chains([*jobs, sft])] == [["one"], ["two"], ["two"]]
    unsaid = read_run(write_run(tmp_path, "mid", "two", status=None))
    assert [[run.stage for run in chain] for chain in chains([*jobs, unsaid])] == [["base"], ["base", "mid"]]


# --- what is drawn ---


def lines_of(axes: Any) -> list[tuple[float, float]]:
    """First and last x of every line."""
    return [(float(line.get_xdata()[0]), float(line.get_xdata()[-1])) for line in axes.lines]


def test_steps_are_counted_over_all_stages_and_losses_share_an_axis():
    figure = draw_history([stage("base", 800), stage("mid", 200, first=3.0), policy(40)], "tiny")
    base, mid, rl = figure.axes
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 800), (800, 1000), (1000, 1040)]
    assert (800, 999) in lines_of(mid) and (800, 1000) in lines_of(mid)
    assert (1000, 1039) in lines_of(rl)
    assert base.get_ylim() == mid.get_ylim() != rl.get_ylim()
    assert base.get_ylabel() == "loss (nats per token)"
    assert rl.get_ylabel() == "reward, share solved" and rl.yaxis.get_label_position() == "right"
    assert max(y for line in rl.lines for y in line.get_ydata()) <= 1, "a policy's loss is not drawn"


def test_the_star_is_at_the_step_that_validation_chose():
    """Of text that is the lowest bpb, which need not be the lowest loss."""
    chosen = stage(
        "base", 30, **{"val/loss": ((0, 8.0), (10, 3.0), (30, 2.9)), "val/bpb": ((0, 3.0), (10, 1.0), (30, 1.1))}
    )
    assert chosen.best == (10, 3.0)
    (axes,) = draw_history([chosen], "tiny").axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "*"] == [10]
    assert [text.get_text() for text in axes.texts] == ["3.00"]


@pytest.mark.slow
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize(
    "stages",
    [
        [stage("base", 800)],
        [policy(40)],
        [stage("base", 21_400, every=100), stage("mid", 813, every=10), stage("sft", 701), policy(467)],
        [stage("base", 800), stage("mid", 638), stage("sft", 793), policy(40)],
        [stage("base", 1), stage("sft_scienceqa", 1)],
        [
            stage("base", 1_000_000, every=10_000),
            stage("mid", 2),
            stage("sft", 2),
            stage("sft_scienceqa", 2),
            policy(2),
        ],
    ],
    ids=lambda stages: "-".join(f"{one.name}{one.num_steps}" for one in stages),
)
def test_no_words_of_the_picture_overlap_or_leave_it(stages: list[StageCurves], size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_history(stages, "d4" if len(stages) == 4 else "a_long_name_of_a_run_" * 5, size)
    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    words = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        words += [label for label in axes.get_xticklabels() if label.get_text()]
        words += [axes.yaxis.label] if axes.get_ylabel() else []
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in words if text.get_text()}
    assert {one.name for one in stages} <= {text.get_text() for text in words} or len(stages) == 1
    for text, box in boxes.items():
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{text.get_text()} leaves the picture"
    for one, two in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[two]), f"{one.get_text()!r} lies on {two.get_text()!r}"


@pytest.mark.parametrize(
    "curves",
    [
        {"train/loss": ((0, 5.0),)},
        {"val/loss": ((0, 5.0),)},
        {"train/loss": ((0, math.nan), (1, math.inf)), "val/loss": ((0, math.nan),), "val/bpb": ((0, math.nan),)},
        {"train/loss": tuple((step, math.nan if step > 30 else 3.0) for step in range(60))},
        {"train/loss": ((0, 0.0), (1, -1.0)), "val/loss": ((0, 1e30), (2, 1e-30))},
        {"train/loss": ((5, 3.0), (6, 3.0)), "val/loss": ((7, 3.0),)},
        {"reward": ((0, -5.0), (1, 5.0))},
        {"train/loss": tuple((step, 9 - step / 40_000) for step in range(200_000))},
    ],
)
def test_whatever_was_logged_can_be_drawn(curves: dict[str, Curve]):
    figure = draw_history([StageCurves(name="base", curves=curves)], "名前 $x$ <b>")
    assert png_bytes(figure).startswith(PNG)


def test_equal_figures_are_equal_bytes_and_none_without_a_curve():
    stages = [stage("base", 50), policy(5)]
    assert png_bytes(draw_history(stages, "tiny")) == png_bytes(draw_history(stages, "tiny"))
    assert (
        draw_history(
            [StageCurves(name="base", curves={}), StageCurves(name="mid", curves={"train/lrm": ((0, 1.0),)})], "tiny"
        )
        is None
    )


def test_smoothing_keeps_a_straight_line_the_start_and_what_is_no_number():
    line = tuple((step, 3.0 - step / 100) for step in range(200))
    assert [value for _, value in smooth(line)[:-5]] == pytest.approx([value for _, value in line[:-5]])
    noisy = tuple((step, float(step % 2)) for step in range(300))
    course = smooth(noisy)
    assert course[0] == noisy[0]
    assert max(abs(value - 0.5) for _, value in course[20:]) < 0.1
    assert max(abs(value - 0.5) for _, value in course[20:-20]) < 0.05
    broken = smooth(tuple((step, math.nan if step == 50 else math.inf if step == 60 else 1.0) for step in range(100)))
    assert [step for step, value in broken if not math.isclose(value, 1.0)] == [50, 60]


# --- where it lies ---


def test_a_report_begins_with_the_picture_of_its_chain_and_has_it_as_png(tmp_path: Path):
    for name in ("base", "mid", "sft"):
        folder = write_run(tmp_path / "outputs", name)
    assert main([str(folder)]) == 0
    out = tmp_path / "outputs" / "report" / "tiny"
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert page.index("<picture>") < page.index("<table")
    assert page.count("<picture>") == page.count("<source media=") == 1
    assert markdown.index("](loss.svg)") < markdown.index("\n|")
    assert "Loss of base, mid, sft over the steps of training" in page
    pictures = sorted(out.rglob("*.png"))
    assert (out / "loss.png") in pictures
    assert {path.with_suffix("") for path in pictures} == {path.with_suffix("") for path in out.rglob("*.svg")}
    assert all(path.read_bytes().startswith(PNG) for path in pictures)


def test_two_chains_of_a_report_are_two_pictures(tmp_path: Path):
    base = write_run(tmp_path / "outputs", "base", init_from="seed 42")
    for name in ("sft", "sft_scienceqa"):
        write_run(tmp_path / "outputs", name, init_from=start(base))
    assert main([str(base), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["loss.2.png", "loss.png"]


def test_runs_without_a_curve_have_no_picture(tmp_path: Path):
    tokenizer = read_run(write_run(tmp_path, "tokenizer"))
    base = write_run(tmp_path, "base")
    (base / "metrics.csv").unlink()
    assert history_figure([read_run(base)]) is None
    assert run_picture(base, "base", "tiny") is None
    assert "<picture>" not in render_html(report_blocks([tokenizer, read_run(base)]))


# --- what a run leaves ---


def picture(folder: Path, ended_unsaved: bool = False) -> Any:
    facts = {"stage": "base", "run_name": "tiny"}
    return Picture(RunState(folder, CheckpointFolder(folder), facts, ended_unsaved=ended_unsaved))


def leave(folder: Path, *, first: bool = True, ended_unsaved: bool = False, error: BaseException | None = None) -> Path:
    """Let a run of `folder` end; returns where its picture would be."""
    callback: Any = picture(folder, ended_unsaved)
    trainer = SimpleNamespace(is_global_zero=first)
    callback.on_train_start(trainer, None)
    callback.on_train_end(trainer, None) if error is None else callback.on_exception(trainer, None, error)
    return folder / "loss.png"


def test_a_run_that_ends_leaves_its_picture_unless_it_was_told_to_end_at_once(tmp_path: Path):
    assert "loss.png" in RUN_FILES, "force=true clears it"
    assert leave(write_run(tmp_path, "base", "whole")).read_bytes().startswith(PNG)
    assert leave(write_run(tmp_path, "base", "failed"), error=ValueError("x")).is_file()
    assert not leave(write_run(tmp_path, "base", "second"), ended_unsaved=True, error=ValueError("x")).exists()
    assert not leave(write_run(tmp_path, "base", "rank"), first=False).exists()
    callback = picture(tmp_path)
    callback.on_exception(None, None, ValueError("before training, as a refused resume"))


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Hear the project's log, which a run before may have taken from the root's handlers."""
    monkeypatch.setattr(logging.getLogger("nanochat_pl"), "propagate", True)
    return caplog


def test_a_picture_that_cannot_be_written_is_one_warning(tmp_path: Path, heard: pytest.LogCaptureFixture):
    folder = write_run(tmp_path, "base")
    with full_disk():
        assert not leave(folder).exists()
    (record,) = heard.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"cannot write {folder}/loss.png (file too large, ")
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("error", [ImportError("no module named matplotlib"), RuntimeError("font"), MemoryError()])
def test_a_picture_that_cannot_be_drawn_is_one_warning(
    tmp_path: Path, heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def broken(*args: Any) -> bytes:
        raise error

    monkeypatch.setattr(callbacks, "run_picture", broken)
    folder = write_run(tmp_path, "base")
    assert not leave(folder).exists()
    assert [record.getMessage() for record in heard.records] == [
        f"{folder}/loss.png could not be drawn ({type(error).__name__}); metrics.csv has its figures, and "
        f"nanochat-pl report {folder} draws them"
    ]


def test_no_word_of_the_drawing_library_reaches_a_user():
    """Where it finds no home for its caches it would say so on standard error."""
    kept = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    nowhere = {"HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    said = []
    for first in ("import nanochat_pl.cli", "pass"):
        program = f"{first}; import matplotlib; matplotlib.get_cachedir()"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=kept | nowhere
        )
        assert done.returncode == 0
        said.append(done.stderr)
    assert said[0] == ""
    assert "cache directory" in said[1], "nothing is heard, so the silence says nothing"
