"""`nanochat-pl export` and `import`: what goes out comes back, nothing is lost on the way or by the way."""

import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nanochat_pl import load_model
from nanochat_pl.checkpoint.state import ModelState, float16_notes
from nanochat_pl.cli import export, import_
from nanochat_pl.eval.results import Evaluation, proportion_row, results_document
from nanochat_pl.model.config import MODERN, GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.report.card import model_card, results_of
from nanochat_pl.report.read import read_run
from nanochat_pl.tokenizer import Tokenizer
from tests.unit.tricks import TRICKS

CONFIG = {
    "seed": 3,
    "run_name": "small",
    "depth": 1,
    "data": {"source": "local", "root": "/somewhere/private/texts", "text": "text"},
    "stage": {"name": "sft", "sequence_len": 64, "total_batch_rows": 4},
    "mixture": {"tasks": {"riddles": {"_target_": "nanochat_pl.tasks.jsonl.JSONL", "split": "train"}}},
}


def make_stored(**settings: Any) -> ModelState:
    tokenizer = Tokenizer.train(["Gold is a metal, and iron is a metal too."], 270)
    shape = {"sequence_len": 64, "vocab_size": 270, "n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(**(shape | settings)))
    model.init_weights(torch.Generator().manual_seed(0))
    return ModelState(
        config=model.config,
        state=model.state_dict(),
        tokenizer=tokenizer,
        stage="sft",
        step=12,
        run_config=CONFIG,
        file=Path("last.ckpt"),
        format="lightning",
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with one evaluation of its last checkpoint, and one of an earlier state of it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "sft" / "small"
    folder.mkdir(parents=True)
    import_.write_run(make_stored(), folder, "small", "a test")
    for name, step, correct in (("recall", 12, 30), ("scienceqa", 6, 99)):
        row = proportion_row(name, "exact_match", [True] * correct + [False] * 20, baseline={"chance": 0.25})
        content = results_document(
            Evaluation(records=[], rows=[row], seconds=1.0, num_answered=50),
            name=name,
            checkpoint={"path": "last.ckpt", "hash": "0", "step": step},
            config={},
        )
        place = folder / "eval" / name / "last"
        place.mkdir(parents=True)
        (place / "results.json").write_text(json.dumps(content))
    return folder


def test_what_float16_cannot_hold_is_noted_with_every_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert float16_notes(make_stored()) == ()
    for name, trick in TRICKS.items():
        drifts = {"residual_lambdas", "input_lambdas"} & {*trick}
        assert len(float16_notes(make_stored(**trick))) == bool(drifts), name
    modern = make_stored(**MODERN)
    modern.state["x0_lambdas"][0] = 7e4
    import_.write_run(modern, tmp_path / "run", "modern", "a test")
    for form, out in (("nanochat", "folder"), ("zip", "model.zip")):
        assert export.main(["run", "--format", form, "--out", out]) == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: not for float16")]
        assert "x0_lambdas hold numbers up to 7e+04; use bfloat16 or float32" in notes[0] and "drift" in notes[1]
    assert "not for float16" in zipfile.ZipFile("model.zip").read("README.md").decode()


def assert_same_model(one: str | Path, other: str | Path) -> None:
    first, second = load_model(one), load_model(other)
    assert first.model.config == second.model.config
    assert first.tokenizer.fingerprint() == second.tokenizer.fingerprint()
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("form", list(export.FORMATS))
def test_every_format_comes_back_as_it_went(run: Path, form: str, capsys: pytest.CaptureFixture[str]):
    assert export.main([str(run), "--format", form]) == 0
    out = Path("outputs/export") / ("sft-small.zip" if form == "zip" else f"sft-small-{form}")
    assert f"exported: {out} ({form}, " in capsys.readouterr().out
    assert import_.main([str(out), "outputs/imported/small"]) == 0
    said = capsys.readouterr().out
    assert "imported: outputs/imported/small" in said and "step 12" in said
    assert_same_model(run, "outputs/imported/small")
    assert not list(Path("outputs").rglob(".*")), "nothing half done may stay behind"


@pytest.mark.skipif(os.name != "posix", reason="files have such modes on POSIX only")
@pytest.mark.parametrize("form", list(export.FORMATS))
def test_exported_files_have_the_permissions_of_the_umask(run: Path, form: str):
    before = os.umask(0o027)
    try:
        out, _ = export.export_model(run, form)
    finally:
        os.umask(before)
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o640" for path in files}


def test_an_imported_run_says_where_it_is_from(run: Path):
    export.export_model(run, "huggingface", Path("hf"))
    import_.import_model("hf", Path("runs/again"))
    assert yaml.safe_load(Path("runs/again/config.yaml").read_text()) == CONFIG
    read = read_run(Path("runs/again"))
    assert (read.stage, read.name, read.step, read.status) == ("sft", "again", 12, "imported")
    assert read.record["imported_from"] == "hf" and read.record["format"] == "huggingface"
    loaded = load_model("runs/again")
    assert (loaded.stage, loaded.step, loaded.config) == ("sft", 12, CONFIG)


def test_the_stage_option_of_import_names_an_unknown_stage(run: Path, capsys: pytest.CaptureFixture[str]):
    export.export_model(run, "huggingface", Path("hf"))
    Path("hf/nanochat_pl.json").unlink()  # as transformers saves it
    assert import_.main(["hf", "one"]) == 0
    assert "--stage says so" in capsys.readouterr().out
    assert load_model("one").stage == "unknown"
    assert load_model("one").config == {}, "what was not recorded must not look as if it had been"
    assert import_.main(["hf", "two", "--stage", "mid"]) == 0
    assert "--stage" not in capsys.readouterr().out
    assert load_model("two").stage == "mid"
    config = yaml.safe_load(Path("two/config.yaml").read_text())
    assert (config["depth"], config["stage"]["name"], config["model"]["n_embd"]) == (1, "mid", 32)


def test_the_rope_tables_option_of_import_sets_the_rounding(run: Path, capsys: pytest.CaptureFixture[str]):
    export.export_model(run, "huggingface", Path("hf"))
    Path("hf/nanochat_pl.json").unlink()
    assert import_.main(["hf", "one"]) == 0
    assert "--rope-tables bfloat16" in capsys.readouterr().out
    assert load_model("one").model.config.rope_table_dtype == "float32"
    assert import_.main(["hf", "two", "--rope-tables", "bfloat16"]) == 0
    assert "--rope-tables" not in capsys.readouterr().out
    assert load_model("two").model.config.rope_table_dtype == "bfloat16"
    assert_same_model(run, "two")


def test_an_export_says_which_checkpoint_it_took(run: Path, capsys: pytest.CaptureFixture[str]):
    assert export.main([str(run), "--format", "zip"]) == 0
    assert f"exporting: {run / 'checkpoints' / 'last.ckpt'}, step 12\n" in capsys.readouterr().out
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    assert export.main([str(run), "--format", "zip", "--force"]) == 0
    assert "best.ckpt, step 12\n" in capsys.readouterr().out


def test_a_destination_is_replaced_only_when_asked_and_only_if_it_was_an_export(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    command = [str(run), "--format", "huggingface", "--out", "hf"]
    assert export.main(command) == 0
    Path("hf/config.json").write_text("{}")
    assert export.main(command) == 2
    assert capsys.readouterr().err == "error: hf exists already; give another name, or --force to replace it\n"
    assert Path("hf/config.json").read_text() == "{}"
    assert export.main([*command, "--force"]) == 0
    assert len(Path("hf/config.json").read_text()) > 100
    Path("hf/thesis.tex").write_text("years of work")
    assert export.main([*command, "--force"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert Path("hf/thesis.tex").exists()


def test_a_destination_that_is_a_link_to_a_folder_stays_one(run: Path):
    Path("disk").mkdir()
    Path("link").symlink_to("disk")
    export.export_model(run, "nanochat", Path("link"))
    assert Path("link").is_symlink() and len(list(Path("disk").iterdir())) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["disk", "link", "outputs"]


def test_only_an_archive_of_ours_is_replaced_by_one(run: Path, capsys: pytest.CaptureFixture[str]):
    command = [str(run), "--format", "zip", "--out", "model.zip", "--force"]
    assert export.main(command) == 0
    assert export.main(command) == 0
    with zipfile.ZipFile("model.zip", "w") as other:
        other.writestr("thesis.tex", "years of work")
    assert export.main(command) == 2
    assert "model.zip is no earlier export" in capsys.readouterr().err
    with zipfile.ZipFile("model.zip") as other:
        assert other.namelist() == ["thesis.tex"]


def test_a_trained_run_is_never_replaced_by_an_import(run: Path, capsys: pytest.CaptureFixture[str]):
    archive, _ = export.export_model(run, "zip")
    assert import_.main([str(archive), str(run), "--force"]) == 0, "an import may be replaced"
    (run / "metrics.csv").write_text("step\n")
    assert import_.main([str(archive), str(run), "--force"]) == 2
    assert "metrics.csv" in capsys.readouterr().err
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_a_failed_export_leaves_the_destination_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch):
    export.export_model(run, "huggingface", Path("hf"))
    before = {path.name: path.read_bytes() for path in Path("hf").iterdir()}

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("nanochat_pl.checkpoint.huggingface.to_tokenizer_json", fail)
    with pytest.raises(OSError, match="disk full"):
        export.export_model(run, "huggingface", Path("hf"), force=True)
    with pytest.raises(OSError, match="disk full"):
        export.export_model(run, "huggingface", Path("elsewhere"))
    assert {path.name: path.read_bytes() for path in Path("hf").iterdir()} == before
    assert sorted(path.name for path in Path().iterdir()) == ["hf", "outputs"]


@pytest.mark.parametrize("form", ["nanochat", "sciassist"])
def test_a_format_that_cannot_hold_a_model_refuses_with_the_list(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    folder.mkdir()
    import_.write_run(make_stored(softcap=20.0, rope_base=1e5), folder, "run", "a test")
    assert export.main([str(folder), "--format", form, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "softcap=20.0" in said and "rope_base=100000.0" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere", "--format", "zip"], "nowhere"),
        (["outputs/sft/small", "--format", "gguf"], "gguf"),
        (["outputs/sft/small"], "--format"),
        (["outputs/sft/small", "--format", "zip", "--out", "model"], "must end in .zip"),
        (["outputs/sft/small", "--format", "zip", "--out", "folder.zip"], "is a folder already"),
        (["outputs/sft/small", "--format", "nanochat", "--out", "file"], "is a file already"),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(
    run: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    Path("folder.zip").mkdir()
    Path("file").write_text("")
    assert export.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and reason in said


def test_an_archive_holds_the_results_of_its_weights_and_no_others(run: Path):
    archive, _ = export.export_model(run, "zip")
    with zipfile.ZipFile(archive) as opened:
        evaluation = json.loads(opened.read("evaluation.json"))
        card = opened.read("README.md").decode()
    assert [entry["name"] for entry in evaluation["evaluations"]] == ["recall"]
    assert evaluation["evaluations"][0]["metrics"][0]["value"] == 0.6
    assert "60.0% \\[46.2, 72.4\\]" in card and "chance 25.0%" in card
    assert "scienceqa" not in card, "that evaluation is of other weights"


def test_an_archive_of_the_same_run_is_the_same_bytes_wherever_the_run_lies(run: Path):
    export.export_model(run, "zip", Path("one.zip"))
    moved = Path("elsewhere") / "sft" / "small"
    shutil.copytree(run, moved)
    export.export_model(moved, "zip", Path("two.zip"))
    assert Path("one.zip").read_bytes() == Path("two.zip").read_bytes()


def test_the_card_says_what_is_known_and_what_is_not(run: Path):
    out, said = export.export_model(run, "huggingface")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    for part in ("# sft-small", "## Data", "riddles", "## Settings", "## Results", "## Limits", "64 tokens"):
        assert part in card, part
    assert all(" ".join(note.split())[:40] in card for note in said)
    assert "/somewhere" not in card, "folders of this machine are nobody's business"
    bare = make_stored()
    card = model_card(
        name="foreign",
        stage="unknown",
        step=0,
        model=vars(bare.config),
        num_parameters=1000,
        run_config={},
        run=None,
        notes=(),
        opening="Somehow.",
        made_from="nanochat",
    )
    assert card.count("Not recorded") == 2 and "have not been evaluated" in card
    assert card.startswith("# foreign") and "files of | nanochat" in card


def test_results_are_of_the_same_step_whatever_the_file_is_called(run: Path):
    read = read_run(run)
    assert [result.name for result in results_of(read, "best", 12)] == ["recall"]
    assert [result.name for result in results_of(read, "last", 6)] == ["scienceqa"]
    assert results_of(read, "last", 7) == ()
    undated = replace(read, results=tuple(replace(result, checkpoint={}) for result in read.results))
    assert [result.name for result in results_of(undated, "last", 7)] == ["recall", "scienceqa"]
    assert results_of(undated, "best", 7) == ()
