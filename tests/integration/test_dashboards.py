"""What a dashboard gets: names, axes, tables, one run over resumes, health figures that no run notices.

Read back from metrics.csv and from the files that W&B writes offline.
"""

import json
import re
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nanochat_pl.cli.workspace import SECTIONS, Curves, Table, layout, main
from nanochat_pl.eval.results import SCHEMA, MetricRow
from nanochat_pl.report.read import EvaluationResult
from nanochat_pl.training.callbacks.diagnostics import update_ratio
from nanochat_pl.training.loggers import AXES, SUMMARIES, evaluation_figures, log_evaluation
from tests.integration.conftest import BASE, SFT, Train, metrics
from tests.integration.test_processes import command, run

SOURCE = Path(__file__).resolve().parents[2] / "src" / "nanochat_pl"

ROLES = ("matrix", "embedding", "unembedding")
EVERY_RUN = {f"health/update_ratio_{role}" for role in ROLES} | {
    "health/logit_max_frac",
    "health/padding_frac",
    "health/data_wait_frac",
    "health/peak_memory_gib",
}


def records(file: Path) -> Iterator[Any]:
    """Read the records of a .wandb file: a head of 7 bytes, then chunks that do not cross blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + length > len(data):  # still being written
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def whole(file: Path) -> list[Any]:
    """Read a .wandb file up to its end, which W&B's own process writes a moment after the run was closed."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = list(records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


class Written:
    """What one offline session of a W&B run wrote."""

    def __init__(self, folder: Path) -> None:
        [file] = folder.glob("*.wandb")
        found = whole(file)
        self.id = file.stem.removeprefix("run-")
        self.run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update if item.key}
        self.definitions = {
            r.metric.name or r.metric.glob_name: r.metric for r in found if r.WhichOneof("record_type") == "metric"
        }
        self.rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in r.history.item}
            for r in found
            if r.WhichOneof("record_type") == "history"
        ]


def sessions(folder: Path) -> list[Written]:
    return [Written(path) for path in sorted((folder / "wandb").glob("offline-run-*"), key=lambda p: p.stat().st_mtime)]


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_account")
def test_a_resumed_run_is_one_run_whose_every_row_has_every_axis(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    config = [*BASE, "stage.num_steps=4", "stage.val_every_steps=2", "logger=wandb"]
    train(*config, "trainer.stop_after_steps=2")
    train(*config, "resume=auto")
    folder = tmp_path / "base" / "tiny"
    said = capfd.readouterr().err
    first, second = sessions(folder)
    assert first.id == second.id == (folder / "wandb_run_id.txt").read_text().strip()
    assert said.count("to upload: wandb sync") == 2
    for session, steps in ((first, [0, 0, 1]), (second, [2, 2, 3, 4])):
        rows = [row for row in session.rows if "train/loss" in row or "val/bpb" in row]
        assert [row["step"] for row in rows] == steps
        assert all(set(AXES) <= set(row) for row in rows)
        assert session.run.project == "nanochat"
        assert session.config["depth"] == 1
    trained = next(row for row in second.rows if "train/loss" in row)
    expected = {"train/loss", "train/lrm", "train/dt", "train/tok_per_sec", "train/grad_norm", "health/logit_max_frac"}
    assert expected <= set(trained)
    check_samples(folder, second, num_steps=4)
    end = next(row for row in second.rows if row["step"] == 4)
    assert end["tokens"] == 4 * 512
    assert end["total_training_flops"] > 0
    check_evaluations_join_the_run(folder, tmp_path)


def check_samples(folder: Path, session: Written, num_steps: int) -> None:
    """What the model wrote at the end is a table at its step, and the same lines in the run folder."""
    [row] = [row for row in session.rows if "samples/nrows" in row]
    [file] = (folder / "wandb").glob("offline-run-*/files/media/table/samples_*.json")
    table = json.loads(file.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert row["step"] == num_steps
    assert row["samples/nrows"] == len(lines) > 1
    assert [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]] == lines


def check_evaluations_join_the_run(folder: Path, tmp_path: Path) -> None:
    """Log an evaluation to the run that has just been written: here, because W&B takes seconds to start."""
    results = tmp_path / "results.json"
    metrics = [
        {"task": "arc_easy", "metric": "accuracy", "value": 0.25, "n": 4},
        {"task": "arc_easy", "metric": "accuracy", "value": 0.5, "n": 2, "group": {"part": "one"}},
        {"task": "CORE", "metric": "core_metric", "value": 0.01, "n": 1},
        {"task": "piqa", "metric": "accuracy", "value": None, "n": 0},
    ]
    checkpoint = {"path": str(folder / "checkpoints" / "last.ckpt"), "step": 4}
    document = {"schema": SCHEMA, "name": "core", "checkpoint": checkpoint, "config": {}, "metrics": metrics}
    document["examples_per_s"] = 7.5
    results.write_text(json.dumps(document))
    lines = [{"id": str(i), "prompt": "2+2?", "expected": 4, "output": "4\u20285", "spare": 1} for i in range(3)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / "examples.jsonl").write_text(text + '{"id": "half', encoding="utf-8")
    time.sleep(1.1)  # W&B names the folder of a session by id and second
    assert log_evaluation(results, folder)
    *_, last = sessions(folder)
    assert last.id == (folder / "wandb_run_id.txt").read_text().strip()
    [row] = last.rows
    assert (row["step"], row["tokens"]) == (4, 4 * 512)
    assert row["core/arc_easy/accuracy"] == 0.25
    assert row["core_metric"] == 0.01
    assert row["core/examples_per_s"] == 7.5
    assert not any("piqa" in name for name in row)
    assert row["core/examples/nrows"] == 3
    [table] = (folder / "wandb").glob("offline-run-*/files/media/table/core/*.json")
    written = json.loads(table.read_text(encoding="utf-8"))
    assert written["columns"] == ["id", "prompt", "expected", "output"]
    assert written["data"][0] == ["0", "2+2?", 4, "4\u20285"]
    check_definitions(last)


def check_definitions(session: Written) -> None:
    """One pattern only, for W&B does not say which of two that fit a name holds."""
    assert [name for name in session.definitions if "*" in name] == ["*"]
    assert session.definitions["*"].step_metric == "step"
    for axis in AXES:
        assert session.definitions[axis].options.hidden, axis
    for name, summary in SUMMARIES.items():
        definition = session.definitions[name]
        assert definition.step_metric == "step"
        assert definition.summary.last, name
        assert (definition.summary.min, definition.summary.max) == ("min" in summary, "max" in summary), name


def test_an_evaluation_of_a_run_without_a_dashboard_goes_nowhere(tmp_path: Path):
    OmegaConf.save(OmegaConf.create({"logger": {}}), tmp_path / "config.yaml")
    assert not log_evaluation(tmp_path / "results.json", tmp_path)
    assert not log_evaluation(tmp_path / "results.json", tmp_path / "nowhere")


def test_figures_of_an_evaluation_are_named_by_task_and_metric():
    row = MetricRow(task="GSM8K", metric="pass@1", value=0.5, n=2)
    result = EvaluationResult(file=Path("results.json"), name="chat", checkpoint={}, settings={}, rows=[row])
    assert evaluation_figures(result) == {"chat/GSM8K/pass@1": 0.5}


def test_every_panel_shows_what_is_logged(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2", "model=modern", "model.short_conv=2")  # parameters of every role
    logged = set((tmp_path / "base" / "tiny" / "metrics.csv").read_text().splitlines()[0].split(","))
    files = [path for path in SOURCE.rglob("*.py") if path.name != "workspace.py"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    panels = [panel for panels in SECTIONS.values() for panel in panels]
    for panel in panels:
        if isinstance(panel, Curves):
            assert panel.x in AXES
            assert bool(panel.metrics) != bool(panel.pattern), panel.title
            unknown = [name for name in panel.metrics if name not in logged and f'"{name}"' not in source]
            assert not unknown, panel.title
    shown = {name for panel in panels if isinstance(panel, Curves) for name in panel.metrics}
    patterns = [panel.pattern for panel in panels if isinstance(panel, Curves) and panel.pattern]
    found = {name for name in logged if any(re.search(pattern, name) for pattern in patterns)}
    assert {name for name in logged if "/" in name} <= shown | found, "a figure of every run has no panel"
    assert "scalar/x0_lambdas" in found


def test_the_layout_is_the_same_in_both_formats_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("layout.yaml", "layout.json"):
        assert main(["--out", str(tmp_path / name)]) == 0
    assert json.loads((tmp_path / "layout.json").read_text()) == layout()
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "layout.yaml")) == layout()
    capsys.readouterr()
    assert main([]) == 0
    assert capsys.readouterr().out == (tmp_path / "layout.yaml").read_text()
    names = [section["name"] for section in layout()["sections"]]
    assert names == ["headline", "learning", "efficiency", "health", "evals", "RL", "inference"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "layout.txt"], r"'\.txt'.*\.yaml or \.json"),
        (["--push", "nanochat"], r"--push=nanochat is not <entity>/<project>"),
        (["--push", "team/nanochat"], r"pip install wandb-workspaces.*--out"),
    ],
)
def test_what_cannot_be_written_or_pushed_is_refused_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert re.search(message, said)


def test_pushing_saves_a_view_with_every_panel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    saved: list[Any] = []

    class Workspace(SimpleNamespace):
        url = "the address"

        def save(self) -> None:
            saved.append(self)

    reports = SimpleNamespace(LinePlot=SimpleNamespace, WeavePanelSummaryTable=SimpleNamespace)
    workspaces = SimpleNamespace(Section=SimpleNamespace, Workspace=Workspace)
    package = SimpleNamespace(reports=SimpleNamespace(v2=reports), workspaces=workspaces)
    for name, module in {
        "wandb_workspaces": package,
        "wandb_workspaces.reports": package.reports,
        "wandb_workspaces.reports.v2": reports,
        "wandb_workspaces.workspaces": workspaces,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert main(["--push", "team/nanochat", "--name", "mine"]) == 0
    assert "saved the address" in capsys.readouterr().out
    [view] = saved
    assert (view.entity, view.project, view.name) == ("team", "nanochat", "mine")
    assert [section.name for section in view.sections if section.is_open] == ["headline"]
    for section in view.sections:
        for panel, expected in zip(section.panels, SECTIONS[section.name], strict=True):
            if isinstance(expected, Table):
                assert panel.table_name == expected.table
            else:
                assert panel.x == expected.x
                assert getattr(panel, "y", []) == list(expected.metrics)
                assert getattr(panel, "metric_regex", None) == expected.pattern


def columns(folder: Path) -> set[str]:
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    return {name for name in header.split(",") if name.startswith("health/")}


def figures(folder: Path, name: str) -> list[float]:
    return [float(value) for value in metrics(folder, name).values()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_training_is_the_same_bit_for_bit_with_and_without(train: Train, tmp_path: Path):
    config = [*BASE, "stage.num_steps=8", "stage.val_every_steps=4", "trainer.log_every_steps=3"]
    summary = train(*config, "run_name=with")
    train(*config, "run_name=without", "~callbacks.health")
    watched, plain = tmp_path / "base" / "with", tmp_path / "base" / "without"
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/bpb", "tokens"):
        assert metrics(watched, name) == metrics(plain, name), name
    one, two = weights(watched), weights(plain)
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert columns(plain) == set()
    assert columns(watched) == EVERY_RUN
    for name in EVERY_RUN:
        assert sorted(metrics(watched, name)) == [0, 3, 6, 7], name
    assert summary["health/logit_max_frac"] == figures(watched, "health/logit_max_frac")[-1]


def test_base_training_shows_plausible_figures(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=6")
    folder = tmp_path / "base" / "tiny"
    assert figures(folder, "health/update_ratio_unembedding")[0] == 1  # it begins at zero
    assert figures(folder, "health/update_ratio_embedding")[0] == 0  # so nothing comes back through it yet
    assert figures(folder, "health/logit_max_frac")[0] == pytest.approx(0, abs=1e-6)
    assert figures(folder, "health/logit_max_frac")[-1] > 0
    for role in ROLES:
        assert all(0 < ratio <= 1 for ratio in figures(folder, f"health/update_ratio_{role}")[1:]), role
    assert figures(folder, "health/padding_frac") == [0] * 6  # a stream of tokens has none
    assert all(0 <= share <= 1 for share in figures(folder, "health/data_wait_frac"))
    assert all(0 < gib < 1024 for gib in figures(folder, "health/peak_memory_gib"))


def test_the_update_ratio_of_a_run_is_that_of_its_checkpoints(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=3", "stage.checkpoint_every_steps=1", "stage.keep_checkpoints=3")
    folder = tmp_path / "base" / "tiny"
    before, after = (
        torch.load(folder / "checkpoints" / f"step_{step:06d}.ckpt", weights_only=True)["state_dict"] for step in (2, 3)
    )
    names = {"embedding": "wte", "unembedding": "lm_head", "matrix": ".h."}
    for role, part in names.items():
        keys = [key for key in after if part in key]
        expected = update_ratio([before[key].clone() for key in keys], [after[key] for key in keys])
        found = figures(folder, f"health/update_ratio_{role}")[2]
        assert found == pytest.approx(float(expected), rel=1e-5), role


def test_fine_tuning_counts_what_was_cut_and_what_was_padded(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    start = [f"init_from={tmp_path / 'base' / 'tiny'}", "trainer.log_every_steps=4", "stage.num_steps=8"]
    summary = train(*SFT, *start, "stage.sequence_len=192")
    folder = tmp_path / "sft_scienceqa" / "tiny"
    cut, padded = figures(folder, "health/cut_frac"), figures(folder, "health/padding_frac")
    rows = (1, 4, 3)  # steps behind each of the rows of steps 0, 4 and 7
    assert sum(share * steps * 8 for share, steps in zip(cut, rows)) == pytest.approx(summary["conversations"]["cut"])
    assert 0 < summary["conversations"]["cut"] < 64
    assert all(0 < share < 1 for share in padded)


def test_a_resumed_run_counts_only_its_own_steps(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    start = [*SFT, f"init_from={tmp_path / 'base' / 'tiny'}", "stage.num_steps=6", "stage.sequence_len=96"]
    train(*start, "run_name=straight")
    train(*start, "run_name=halves", "trainer.stop_after_steps=3")
    train(*start, "run_name=halves", "resume=auto")
    straight, halves = (tmp_path / "sft_scienceqa" / name for name in ("straight", "halves"))
    for name in ("cut_frac", "padding_frac", "logit_max_frac", "update_ratio_matrix"):
        assert metrics(halves, f"health/{name}") == metrics(straight, f"health/{name}"), name


def test_pretraining_counts_what_bestfit_crops_since_the_last_row(train: Train, tmp_path: Path):
    config = [*BASE, "stage.num_steps=5", "stage.sequence_len=16", "data.packing=bestfit"]
    for every in (1, 4):
        train(*config, f"trainer.log_every_steps={every}", f"run_name=every{every}")
    each, seldom = (figures(tmp_path / "base" / f"every{every}", "health/cut_frac") for every in (1, 4))
    laid = 32 * 17  # tokens that a step's rows take
    cropped = [laid * share / (1 - share) for share in each]
    assert cropped == pytest.approx([round(count) for count in cropped])
    assert sum(cropped) > 100
    assert seldom == pytest.approx([each[0], sum(cropped[1:]) / (4 * laid + sum(cropped[1:]))])


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_agree_on_the_figures_and_take_the_larger_of_maxima(world: Path, tmp_path: Path):
    config = [*BASE, "stage.num_steps=4", "data.logical_shards=2", "optim.ns_dtype=float32"]
    for devices in (1, 2):
        done = run(command(world, tmp_path, *config, f"run_name=n{devices}", f"trainer.devices={devices}"), tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "base" / "n1", tmp_path / "base" / "n2"
    assert columns(two) == columns(one) == EVERY_RUN
    for role in ROLES:
        name = f"health/update_ratio_{role}"
        assert figures(one, name) == pytest.approx(figures(two, name), rel=1e-3), role
    # of one process the first rows of the step are looked at, of two the first rows of each one's part
    pairs = zip(figures(one, "health/logit_max_frac"), figures(two, "health/logit_max_frac"), strict=True)
    assert all(of_two >= of_one - 1e-4 for of_one, of_two in pairs)
    assert all(0 <= share <= 1 for share in figures(two, "health/data_wait_frac"))
