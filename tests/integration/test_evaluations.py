"""Every evaluation on `evaluate.py`'s own path, then compare, failures and report over what it wrote."""

import csv
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat_pl.checkpoint import load_model
from nanochat_pl.cli import main as command
from nanochat_pl.config.command_line import CommandLine
from nanochat_pl.config.compose import check, compose_checked, config_dir
from nanochat_pl.config.evaluations import EvalName
from nanochat_pl.config.schema import EvaluateConfig
from nanochat_pl.eval.runner import evaluate
from tests.integration.conftest import BASE, Train, metrics, train_below

CORE_YAML = """icl_tasks:
- {label: colors, dataset_uri: colors.jsonl, num_fewshot: [2], icl_task_type: multiple_choice}
- {label: endings, dataset_uri: endings.jsonl, num_fewshot: [0], icl_task_type: language_modeling}
"""


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two base runs that differ in their seed."""
    outputs = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        train_below(outputs, world, *BASE, "stage.num_steps=4", f"seed={seed}", f"run_name=seed{seed}")
    return outputs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CORE bundle of two small tasks."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "core.yaml").write_text(CORE_YAML)
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncolors,50\nendings,0\n")
    (folder / "eval_data").mkdir()
    colors = [{"query": f"Snow {i} is", "choices": ["white", "black"], "gold": i % 2} for i in range(5)]
    endings = [{"context": f"one, two, {i},", "continuation": "and on"} for i in range(4)]
    for name, rows in (("colors", colors), ("endings", endings)):
        (folder / "eval_data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def measure(
    runs: Path, *overrides: str, names: Sequence[str] = ("seed1",), data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Evaluate runs as `evaluate.py` does and return the results of the first."""
    arguments = ["trainer.accelerator=cpu", "trainer.compute_dtype=float32", *overrides]
    cfg = check(compose_checked("evaluate", CommandLine(arguments, False, config_dir()))[0], EvaluateConfig)
    folders = evaluate(cfg, [str(runs / "base" / name) for name in names], data or {}, None)
    assert all((folder / "results.json").is_file() for folder in folders)
    [file] = (runs / "base" / names[0] / "eval" / str(cfg.eval.name)).glob("*/results.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_a_text_shorter_than_asked_is_measured_once_and_counted(runs: Path, tmp_path: Path):
    """What a text holds in whole rows, however small it is; never a second time."""
    sizes = {}
    for documents in (2, 40):
        table = pa.table({"text": [f"Snow {i} is white, and the sea is wide. " * 8 for i in range(documents)]})
        pq.write_table(table, tmp_path / f"{documents}.parquet")
        results = measure(
            runs, "eval=bpb", f"+eval.texts.own={tmp_path / f'{documents}.parquet'}", "eval.val_tokens=50000"
        )
        sizes[documents] = {row["task"]: row["n"] for row in results["metrics"]}["own"]
        tokens = load_model(runs / "base" / "seed1").tokenizer.encode(table["text"].to_pylist())
        held = sum(len(ids) + 1 for ids in tokens)  # a BOS before each
        assert held - 64 * 2 - 8 < sizes[documents] <= held
    assert sizes[40] > 15 * sizes[2]
    pq.write_table(pa.table({"text": ["Snow is white.", "So is ice."]}), tmp_path / "short.parquet")
    results = measure(runs, "eval=bpb", f"+eval.texts.own={tmp_path / 'short.parquet'}")
    [row] = [row for row in results["metrics"] if row["task"] == "own"]
    model = load_model(runs / "base" / "seed1", torch.device("cpu"), torch.float32)
    ids = [
        i for text in ("Snow is white.", "So is ice.") for i in [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    ]
    losses = model.model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), reduction="none").reshape(-1)
    spelled = [bool(length) for length in model.tokenizer.token_bytes()[ids[1:]]]
    assert row["n"] == len(ids) - 1
    assert row["value"] == pytest.approx(losses[torch.tensor(spelled)].sum().item() / math.log(2) / 24, rel=1e-4)
    pq.write_table(pa.table({"text": ["", ""]}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="the text own holds nothing but empty documents"):
        measure(runs, "eval=bpb", f"+eval.texts.own={tmp_path / 'empty.parquet'}")


@pytest.mark.slow
def test_a_text_is_measured_alike_in_every_form_that_training_reads(runs: Path, tmp_path: Path):
    texts = [f"Snow {i} is white, and the sea is wide." for i in range(9)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "a folder #1").mkdir()
    (tmp_path / "a folder #1" / "a.csv").write_text("".join(f'"{text}"\n' for text in ["text", *texts]))
    forms = {"parquet": "a.parquet", "jsonl": "a.jsonl", "txt": "a.txt", "folder": "a folder #1"}
    results = measure(
        runs,
        "eval=bpb",
        f"outputs={tmp_path / 'out'}",
        *(f"+eval.texts.{k}='{tmp_path / v}'" for k, v in forms.items()),
    )
    figures = {row["task"]: (row["value"], row["n"]) for row in results["metrics"] if row["task"] in forms}
    assert len(figures) == 4 and len(set(figures.values())) == 1
    for name, message in (("a.pdf", "no file of text"), ("b.jsonl", r"has no column 'text' \(it has: body\)")):
        (tmp_path / name).write_text('{"body": "x"}\n')
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            measure(runs, "eval=bpb", f"outputs={tmp_path / 'out'}", f"+eval.texts.own={tmp_path / name}")


def test_core_writes_a_figure_for_each_task_and_their_mean(runs: Path, bundle: Path):
    results = measure(runs, "eval=core", f"eval.bundle={bundle}")
    found = {(row["task"], row["metric"]): row for row in results["metrics"]}
    assert found["colors", "accuracy"]["n"] == 5
    centered = [found[task, "centered"]["value"] for task in ("colors", "endings")]
    assert found["CORE", "core_metric"]["value"] == pytest.approx(sum(centered) / 2)
    table = runs / "base" / "seed1" / "eval" / "core" / "best" / "core.csv"
    lines = list(csv.reader(table.read_text().splitlines()))
    assert [line[0].strip() for line in lines] == ["Task", "colors", "endings", "CORE"]


def test_an_edited_bundle_is_asked_anew(runs: Path, bundle: Path):
    before = measure(runs, "eval=core", f"eval.bundle={bundle}", "eval.max_questions=3")
    again = measure(runs, "eval=core", f"eval.bundle={bundle}", "eval.max_questions=3")
    assert (before["config_hash"], again["examples_answered"]) == (again["config_hash"], 0)
    file = bundle / "eval_data" / "colors.jsonl"
    file.write_text(file.read_text().replace("Snow", "Soot"))
    assert measure(runs, "eval=core", f"eval.bundle={bundle}", "eval.max_questions=3")["examples_answered"] == 6


def test_chat_asks_all_tasks_into_one_log_and_draws_chatcore(runs: Path):
    results = measure(runs, "eval=chat", "eval.max_questions=3", "eval.max_new_tokens=4")
    chatcore = [row for row in results["metrics"] if row["task"] == "ChatCORE"]
    assert [row["metric"] for row in chatcore] == ["chatcore_metric"]
    log = runs / "base" / "seed1" / "eval" / "chat" / "best" / "examples.jsonl"
    tasks = [json.loads(line)["task"] for line in log.read_text().splitlines()]
    assert tasks == [name for name in chatcore[0]["baseline"] for _ in range(3)]


def test_five_tasks_make_another_chatcore(runs: Path):
    five = "[ARC-Easy,ARC-Challenge,MMLU,GSM8K,HumanEval]"
    results = measure(runs, "eval=chat", "eval.max_questions=2", "eval.max_new_tokens=2", f"eval.tasks={five}")
    assert results["metrics"][-1]["task"] == "ChatCORE-5"


def test_a_task_that_is_not_there_is_named(runs: Path):
    with pytest.raises(ValueError, match=r"eval\.tasks names Foo; eval=chat has ARC-Easy"):
        measure(runs, "eval=chat", "eval.tasks=[Foo]")


def test_a_missing_bundle_comes_with_the_command_that_brings_it(runs: Path):
    with pytest.raises(FileNotFoundError, match=r"eval_bundle\.zip"):
        measure(runs, "eval=core")


@pytest.mark.parametrize("name", sorted(set(EvalName) - {"auto", "core", "chat", "lm_eval"}))
def test_every_other_evaluation_measures_something(runs: Path, name: str):
    results = measure(runs, f"eval={name}", "eval.max_questions=4", "eval.max_new_tokens=4", "eval.val_tokens=512")
    assert results["name"] == name
    assert any(row["value"] is not None for row in results["metrics"])


@pytest.mark.parametrize("name", ["core", "chat", "scienceqa", "arc", "recall"])
def test_answers_are_measured_unless_they_are_not_to_be(runs: Path, bundle: Path, name: str, tmp_path: Path):
    shutil.copytree(runs / "base" / "seed2", tmp_path / "base" / "seed2", ignore=shutil.ignore_patterns("eval"))
    asked = [f"eval={name}", "eval.max_questions=2", "eval.max_new_tokens=2", f"eval.bundle={bundle}"]
    without = measure(tmp_path, *asked, "eval.answer_bpb=false", names=["seed2"])
    results = measure(tmp_path, *asked, names=["seed2"])
    assert (without["config"] | {"answer_bpb": True}) == results["config"]
    shown = {row["task"]: row for row in results["metrics"] if row["metric"] == "answer_bpb"}
    tasks = {row["task"] for row in results["metrics"]} - {"ChatCORE"}
    assert shown.keys() == tasks
    assert all(row["value"] > 0 and row["n"] > 1 for row in shown.values())
    assert not any("answer_" in row["metric"] for row in without["metrics"])
    [log] = (tmp_path / "base" / "seed2" / "eval" / name).glob("*/examples.jsonl")
    fields = {"answer_bits", "answer_bytes", "wrong_bits", "wrong_bytes"}
    assert all(fields <= json.loads(line).keys() for line in log.read_text().splitlines())
    assert measure(tmp_path, *asked, names=["seed2"])["examples_answered"] == 0


def test_mended_questions_are_asked_anew_and_earlier_results_are_kept(
    runs: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(next(world.rglob("recall")), tmp_path / "recall")
    arguments = ["eval=recall", "eval.max_questions=4", "eval.max_new_tokens=4"]
    data = {"source": "local", "root": str(tmp_path)}
    folder = runs / "base" / "seed2" / "eval" / "recall" / "best"
    before = measure(runs, *arguments, names=["seed2"], data=data)
    assert measure(runs, *arguments, names=["seed2"], data=data)["examples_answered"] == 0
    file = tmp_path / "recall" / "test.parquet"
    rows = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"question": f"Say: {row['question']}"} for row in rows]), file)
    capsys.readouterr()
    after = measure(runs, *arguments, names=["seed2"], data=data)
    assert after["examples_answered"] == 4 and after["config_hash"] != before["config_hash"]
    kept = folder / f"results.{before['config_hash']}.json"
    assert json.loads(kept.read_text()) == before | {"examples_answered": 0, "examples_per_s": None} | {
        "seconds": json.loads(kept.read_text())["seconds"]
    }
    assert f"earlier results, of other questions, are kept as {kept}" in capsys.readouterr().out


def test_arc_is_asked_as_a_tutor_is_asked_and_counted_by_subset(runs: Path):
    results = measure(runs, "eval=arc", "eval.max_questions=3", "eval.max_new_tokens=4")
    rows = [row for row in results["metrics"] if row["metric"] == "loglikelihood/accuracy" and row["group"] is None]
    assert [(row["task"], row["n"]) for row in rows] == [("ARC-Easy", 3), ("ARC-Challenge", 3)]
    log = runs / "base" / "seed1" / "eval" / "arc" / "best" / "examples.jsonl"
    record = json.loads(log.read_text().splitlines()[0])
    assert "\nA. " in record["prompt"] and record["letters"][0] == "A"


def test_penalties_reach_every_written_answer_and_are_refused_where_none_is_written(runs: Path):
    plain, _ = answers(runs, "eval.fresh=true")
    off, config = answers(runs, "eval.repetition_penalty=1", "eval.presence_penalty=0")
    assert off == plain and not any("penalty" in key for key in config)
    other, config = answers(runs, "eval.repetition_penalty=0.1")
    assert other != plain and config["repetition_penalty"] == 0.1
    with pytest.raises(ValueError, match=r"eval\.frequency_penalty has no effect on eval=bpb"):
        measure(runs, "eval=bpb", "eval.frequency_penalty=1", names=("seed1",))
    with pytest.raises(ValueError, match=r"eval\.presence_penalty=3\.0 must lie between -2 and 2"):
        measure(runs, "eval=recall", "eval.presence_penalty=3", names=("seed1",))


def answers(runs: Path, *settings: str) -> tuple[list[str], dict]:
    """Return what a model writes to the questions of recall, and the configuration that its results name."""
    measure(runs, "eval=recall", "eval.max_questions=4", "eval.max_new_tokens=16", *settings, names=("seed1",))
    folder = next((runs / "base" / "seed1").glob("eval/recall/*"))
    lines = (folder / "examples.jsonl").read_text().splitlines()
    return [json.loads(line)["output"] for line in lines], json.loads((folder / "results.json").read_text())["config"]


def test_bpb_measures_further_texts_by_name(runs: Path, world: Path, capsys: pytest.CaptureFixture[str]):
    text = world / "data" / "text"
    results = measure(runs, "eval=bpb", "eval.val_tokens=512", f"+eval.texts.all={text}")
    by_name = {row["task"]: row["value"] for row in results["metrics"]}
    assert len(by_name) == 2 and by_name["all"] > 0
    shown = capsys.readouterr().out
    assert all(f"{name} bpb" in shown for name in by_name), "a figure that was measured is shown"
    with pytest.raises(FileNotFoundError, match=r"eval\.texts\.gone"):
        measure(runs, "eval=bpb", f"+eval.texts.gone={text / 'gone'}")


def test_compare_failures_and_report_read_what_was_written(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    measure(runs, "eval=recall", "eval.max_questions=4", "eval.max_new_tokens=4", names=("seed1", "seed2"))
    evaluated = capsys.readouterr().out

    def say(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["nanochat-pl", *arguments])
        assert command.main() == 0
        return capsys.readouterr().out

    first, second = (str(runs / "base" / name) for name in ("seed1", "seed2"))
    [verdict] = [line for line in say("compare", first, second).splitlines() if "recall exact_match: " in line]
    assert verdict.endswith("recall exact_match: not distinguishable (p = 1.000, Holm over 2 tests, n = 4)")
    assert verdict in evaluated.splitlines(), "evaluate and compare say the same"
    assert "4 of 4" in say("failures", first)
    say("report", first, "--out", str(tmp_path))
    assert "recall" in (tmp_path / "report.html").read_text()


def test_evaluations_during_training_are_those_of_evaluate(train: Train, tmp_path: Path, bundle: Path):
    asked = ["eval=core", f"eval.bundle={bundle}"]
    plain = train(*BASE, "stage.num_steps=4", "run_name=plain")
    train(*BASE, "stage.num_steps=4", "run_name=asked", *asked, "stage.eval_every_steps=2")
    found = metrics(tmp_path / "base" / "asked", "core_metric")
    assert list(found) == [2, 4]
    after = measure(tmp_path, *asked, names=("asked",))
    assert float(found[4]) == pytest.approx(after["metrics"][-1]["value"])
    [bits] = [row["value"] for row in after["metrics"] if (row["task"], row["metric"]) == ("CORE", "answer_bpb")]
    assert float(metrics(tmp_path / "base" / "asked", "core/CORE/answer_bpb")[4]) == pytest.approx(bits)
    losses = [metrics(tmp_path / "base" / name, "train/loss") for name in ("plain", "asked")]
    assert losses[0] == losses[1], "evaluating must not change training"
    assert plain["step"] == 4
