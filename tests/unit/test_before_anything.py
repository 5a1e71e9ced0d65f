"""What can be refused is refused before a run has a folder: nothing is left behind, and no earlier run is lost."""

import logging
import re
import sys
from pathlib import Path

import pytest

from nanochat_pl.cli import evaluate as evaluate_command
from nanochat_pl.cli import train as train_command
from nanochat_pl.config.run_folder import forget_run
from nanochat_pl.config.targets import arguments_of, defined_names
from nanochat_pl.training.record import write_log

SFT = ["stage=sft", "data=local", "data.root=data", "init_from=start"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "data").mkdir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=hub", "data.val_shard=shard_00009.parquet", "offline=true"], r"offline=true forbids fetching"),
        (
            ["stage=tokenizer", "data=hub", "data.val_shard=shard_00009.parquet", "offline=true"],
            r"offline=true forbids",
        ),
        ([*SFT, "data.fetch=true", "offline=true"], r"mixture\.tasks\.\w+ reads and offline=true forbids fetching"),
        (SFT, r"there is no data/\w+, which mixture\.tasks\.\w+ reads and nothing fetches"),
        (["stage=sft", "init_from=start", "+mixture.tasks.pirate=pirate.jsonl"], r"there is no pirate\.jsonl"),
        (
            ["stage=sft", "+mixture.tasks.x._target_=nanochat_pl.tasks.arithmetic.Aritmetic"],
            r"nanochat_pl\.tasks\.arithmetic has no Aritmetic; did you mean Arithmetic\?",
        ),
        (
            ["stage=sft", "+mixture.tasks.x={_target_: nanochat_pl.tasks.arithmetic.Arithmetic, sise: 3}"],
            r"mean size\?",
        ),
        (["+callbacks.x=3"], r"callbacks\.x=3: give \{_target_"),
        (["+logger.x={project: y}"], r"logger\.x=.*_target_"),
        (["stage=sft", "+mixture.tasks.x={a: 1}"], r"mixture\.tasks\.x has no _target_"),
        (["+callbacks.x={_target_: nanochat_pl.training.callbacks.diagnostics.Helth}"], r"did you mean Health\?"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    before = sorted(Path().rglob("*"))
    assert train_command.main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["eval=core", "data=microworld"],
            r"no core\.yaml in the .* outputs/data/microworld-0/eval_bundle",
        ),
        (["eval=core", "eval.bundle=data"], r"no core\.yaml in the evaluation bundle data;"),
        (["eval=lm_eval", "eval.tasks=[arc_easy]"], "which is not installed; it is the extra lm-eval"),
        (["eval=lm_eval"], "eval=lm_eval needs tasks"),
        (["eval=checks", "eval.checks=gone.yaml"], r"eval\.checks=gone\.yaml is no file"),
        (["eval=bpb", "data=microworld", "+eval.texts.own=gone.txt"], r"eval\.texts\.own=gone\.txt does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_what_an_evaluation_lacks_is_said_before_torch_is_loaded(
    command: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("nanochat_pl.config.checks.is_module", lambda name: False)
    monkeypatch.setattr(f"nanochat_pl.cli.{command}.run_hydra", None)  # loads it
    monkeypatch.setattr("nanochat_pl.cli.evaluate.check_model", lambda *_: None)
    before = sorted(Path().rglob("*"))
    main = evaluate_command.main
    if command == "evaluate":
        arguments = ["ckpt=hf://a/b", *arguments]
    else:
        main = train_command.main
        arguments = [argument for argument in arguments if argument != "data=microworld"]
        arguments = ["stage=base", "stage.eval_every_steps=1", *arguments]
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval=core", r"no core\.yaml in the evaluation bundle outputs/data/microworld-0/eval_bundle"),
        ("eval=lm_eval", "eval=lm_eval needs tasks"),
        ("eval.checks=gone.yaml", r"eval\.checks=gone\.yaml is no file"),
    ],
)
def test_what_an_evaluation_lacks_is_said_before_a_chain_trains(
    override: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nanochat_pl.cli.chain.run_command", None)
    assert train_command.main(["chain=[base,evaluate]", f"chain_overrides.evaluate.{override}"]) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not Path("outputs").exists()


def test_names_and_arguments_are_read_from_source_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loud.py").write_text(
        "raise SystemExit('ran')\nfrom math import pi as tau\nx = 1\n"
        "def f(a, *, b=2): ...\nclass C:\n    def __init__(self, c, **more): ...\n"
    )
    (tmp_path / "open_ended.py").write_text("from math import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"tau", "x", "f", "C"} <= (defined_names("loud") or set())
    assert arguments_of("loud.f") == {"a", "b"}
    assert arguments_of("loud.C") is None, "a class that takes any argument"
    assert defined_names("open_ended") is None, "what a star brings along is not known"
    assert defined_names("math") is None, "no source"


def test_a_refused_run_leaves_no_folder_and_an_earlier_one_stays(tmp_path: Path):
    refused, earlier = tmp_path / "outputs/base/a", tmp_path / "outputs/base/b"
    for folder in (refused, earlier):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".lock").touch()
    (earlier / "metrics.csv").touch()
    forget_run(refused)
    forget_run(earlier)
    assert not refused.exists()
    assert (earlier / "metrics.csv").exists()
    assert (earlier / ".hydra").exists()


def test_lines_that_were_held_stand_first_in_the_log(tmp_path: Path):
    log = logging.getLogger("nanochat_pl.test")
    write_log(None, first=True, hold=True)
    log.info("before")
    write_log(tmp_path / "log.txt", first=True)
    log.info("after")
    write_log(None, first=True)
    assert (tmp_path / "log.txt").read_text() == "before\nafter\n"
