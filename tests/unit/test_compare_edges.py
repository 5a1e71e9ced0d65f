"""Runs that went wrong, were broken off, or are the same: a comparison says so, and counts none of them twice."""

import csv
import json
import os
from pathlib import Path

import pytest
import yaml

from nanochat_pl.cli.power import main as power
from nanochat_pl.report.evaluated import record_fault
from nanochat_pl.report.read import read_metrics
from tests.unit.evaluated import write
from tests.unit.test_efficiency import STEPS, recipes, said, trained


def last_loss(run: str, text: str) -> None:
    """Write another last validation into a run's metrics.csv."""
    file = Path(run) / "metrics.csv"
    head, last, end = file.read_text().rpartition(f"\n{STEPS[-1]},")
    assert end.count("\n") == 1
    file.write_text(f"{head}{last}{text},,,\n")


@pytest.mark.parametrize("loss", ["nan", "inf", "2.4O", "-1", "1e308"])
def test_a_run_without_a_possible_last_loss_leaves_its_recipe_without_a_verdict(tmp_path, capsys, loss: str):
    runs = recipes(tmp_path, 0.9)
    last_loss(runs[5], loss)
    text = " ".join(said(capsys, *runs, "--seeds").split())
    assert f"base/b2: its last validation, at step {STEPS[-1]}, is" in text and "which no model has" in text
    assert "no verdict: base/b2 has no value" in text and "is better than" not in text


def test_a_run_that_was_broken_off_is_in_no_mean_and_is_named(tmp_path, capsys):
    runs = recipes(tmp_path, 0.9)
    settings = {"status": "running", "num_steps": STEPS[-1], "optim": {"lr": 0.9}}
    broken = trained(tmp_path, "base/broken", times=0.9, seed=7, steps=STEPS[:2], **settings)
    whole, text = (said(capsys, *runs, *more, "--seeds") for more in ([], [broken]))
    assert "base/broken was not validated at the same steps as its other seeds: left out" in " ".join(text.split())
    means = [[line for line in out.splitlines() if "±" in line] for out in (whole, text)]
    assert means[0] and [line.split("±")[1:] for line in means[0]] == [line.split("±")[1:] for line in means[1]]


def test_one_run_by_two_names_is_refused(tmp_path, capsys):
    first, *_, other = recipes(tmp_path, 0.9)
    (tmp_path / "link").symlink_to(first)
    for again in (f"{first}/", os.path.relpath(first), tmp_path / "link"):
        assert "are the same run; name each checkpoint once" in said(capsys, first, other, again, code=2)


def test_the_groups_of_seeds_are_called_by_what_is_common_to_their_runs(tmp_path, capsys):
    for recipe, times in (("a", 1.0), ("b", 0.8)):
        for seed in range(3):
            trained(tmp_path, f"{recipe}/seed={seed}", times=times, seed=seed, optim={"lr": times})
    text = said(capsys, *sorted(map(str, tmp_path.glob("[ab]/*"))), "--seeds")
    assert "a is better than b by" in text and "a takes" in text and "of b to reach its" in text


def test_settings_that_change_nothing_do_not_split_a_group(tmp_path, capsys):
    runs = recipes(tmp_path, 0.9)
    other = trained(tmp_path, "base/a3", seed=3, optim={"lr": 1.0}, logger={"csv": None}, resume="auto")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["num_workers"] = 7
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert "n = 4 and 3 seeds" in said(capsys, *runs, other, "--seeds")


def test_equal_seeds_have_no_interval(tmp_path, capsys):
    runs = [
        trained(tmp_path, f"base/{name}{seed}", [3, 2 * times], seed=seed, steps=(6, 12), optim={"lr": times})
        for name, times in (("a", 1.0), ("b", 0.98))
        for seed in range(3)
    ]
    said(capsys, *runs, "--seeds", f"--json={tmp_path / 'json'}")
    [seeds] = json.loads((tmp_path / "json").read_text())["seeds"]
    found = [(spread["mean"], spread["std"], spread["interval"]) for spread in seeds["spreads"]]
    assert found == [(2.0, 0.0, None), (1.96, 0.0, None)]


def test_damaged_metrics_are_read_as_far_as_they_go(tmp_path):
    for text in ("\ufeffstep,val/bpb\n1,3\n2,2\n", "step,val/bpb\r1,3\r2,2\r", 'step,val/bpb\n1,3\n1","\n2,2\n'):
        (tmp_path / "metrics.csv").write_bytes(text.encode())
        assert read_metrics(tmp_path / "metrics.csv", [])["val/bpb"] == ((1, 3.0), (2, 2.0))
    (tmp_path / "metrics.csv").write_text(f"step,val/bpb\n1,3\n2,{'9' * 200_000}\n3,1\n")
    problems: list[str] = []
    before = csv.field_size_limit(2**17)  # which other readers raise
    try:
        assert read_metrics(tmp_path / "metrics.csv", problems)["val/bpb"] == ((1, 3.0),)
    finally:
        csv.field_size_limit(before)
    assert problems == ["metrics.csv is damaged in line 3; what follows was left out"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"correct": None}, "correct is None, expected true, false or a score"),
        ({"answer_bits": "abc", "answer_bytes": 3}, "answer_bits of 'abc' in answer_bytes of 3 are no measure"),
        ({"answer_bits": 1.0, "answer_bytes": 0}, "are no measure of the answer"),
        ({"wrong_bits": None, "wrong_bytes": [1]}, "wrong_bits and wrong_bytes are no measures"),
        ({"wrong_bits": [1.0, 2.0], "wrong_bytes": [0, 0]}, "wrong_bits and wrong_bytes are no measures"),
        ({"id": 0}, "holds a question twice"),
    ],
)
def test_a_damaged_record_is_refused_with_its_line(tmp_path, capsys, change: dict, fault: str):
    runs = [write(tmp_path, f"sft/{name}", [True, False, True]) for name in "ab"]
    file = runs[0] / "eval" / next((runs[0] / "eval").iterdir()).name / "best" / "examples.jsonl"
    if not file.is_file():
        [file] = runs[0].rglob("examples.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    if change == {"id": 0}:
        change = {"id": records[0]["id"]}
    records[1] |= change
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    error = said(capsys, *runs, code=2)
    assert fault in error and "eval.fresh=true" in error
    assert record_fault(records[2]) == ""
    del records[2]["id"]
    assert record_fault(records[2]) == "the answer has no id"


def test_a_sweep_of_one_folder_teaches_power(tmp_path, capsys):
    for seed in range(3):
        folder = trained(tmp_path, f"swept/seed={seed}", seed=seed)
        (folder / "job.json").write_text("{}")
    assert power([str(tmp_path / "swept"), "--effect", "0.01"]) == 0
    assert "std 0." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", ["--std 0.01 --power 0.04", "--disagree 0.3 --power 0.01", "--std 1 --alpha 0.9"])
def test_a_power_that_chance_has_is_refused_at_once(arguments: str, capsys):
    assert power(arguments.split()) == 2
    assert "so often chance alone finds a difference" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--std 0.01 --seeds 3", "--disagree 0.3 --effect 0.2"])
def test_the_smallest_alpha_has_an_answer(arguments: str, capsys):
    assert power([*arguments.split(), "--alpha", "1e-17"]) == 0 and "alpha 1e-17" in capsys.readouterr().out
