"""Models of other programs and of the hub: trained on, evaluated and refused on the commands' own paths."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from nanochat_pl import downloads
from nanochat_pl.checkpoint import archive, huggingface, nanochat, read_model, sciassist
from nanochat_pl.checkpoint import hub as hub_module
from nanochat_pl.cli import evaluate as evaluate_command
from nanochat_pl.cli import train as train_command
from nanochat_pl.cli.import_ import import_model
from nanochat_pl.config.provenance import run_inputs
from tests.integration.conftest import BASE, SFT, compose, metrics, train_below
from tests.unit.test_checkpoint_hub import Shelf
from tests.unit.test_downloads import Hub, hub  # noqa: F401  (fixture)

FORMATS = {"nanochat": nanochat, "sciassist": sciassist, "huggingface": huggingface}
OPENED = [*FORMATS, "model.zip"]
TUTOR = [*SFT, "stage.num_steps=2", "stage.val_every_steps=null"]


@pytest.fixture(scope="module")
def models(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base run, and its model in every other format."""
    folder = tmp_path_factory.mktemp("models")
    train_below(folder, world, *BASE, "stage.num_steps=3", "stage.val_every_steps=null")
    stored = read_model(folder / "base" / "tiny")
    for name, module in FORMATS.items():
        module.write(stored, folder / name)
    archive.write(stored, folder / "model.zip", "# a card")
    return folder


@pytest.fixture(scope="module")
def losses(models: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The losses of a fine-tuning from the run itself."""
    outputs = tmp_path_factory.mktemp("own")
    train_below(outputs, world, *TUTOR, f"init_from={models / 'base' / 'tiny'}")
    return metrics(outputs / "sft_scienceqa" / "tiny", "train/loss")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPENED)
def test_fine_tuning_goes_on_from_any_format_as_from_the_run_itself(
    models: Path, world: Path, losses: dict[int, str], tmp_path: Path, name: str
):
    summary = train_below(tmp_path, world, *TUTOR, f"init_from={models / name}")
    assert metrics(tmp_path / "sft_scienceqa" / "tiny", "train/loss") == losses
    assert str(models / name) in summary["init_from"]
    again = read_model(tmp_path / "sft_scienceqa" / "tiny")
    assert again.format == "lightning" and again.run_config["init_from"] == str(models / name)


def test_an_imported_run_starts_others_but_cannot_be_resumed(models: Path, world: Path, tmp_path: Path):
    import_model(models / "model.zip", tmp_path / "base" / "tiny")
    with pytest.raises(ValueError, match=r"weights only, no optimizer state.*resume=null init_from="):
        train_below(tmp_path, world, *BASE, "stage.num_steps=9", "resume=auto")
    summary = train_below(tmp_path, world, *TUTOR)
    assert str(tmp_path / "base" / "tiny") in summary["init_from"]


def test_a_changed_start_changes_what_a_run_is_made_from(models: Path, world: Path, tmp_path: Path):
    folder = shutil.copytree(models / "nanochat", tmp_path / "nanochat")
    cfg = compose([*TUTOR, f"data.root={world / 'data'}", f"outputs={tmp_path}", f"init_from={folder}"])
    before = run_inputs(cfg)["start"]
    assert run_inputs(cfg)["start"] == before
    meta = next(folder.glob("meta_*.json"))
    meta.write_text(meta.read_text() + "\n")
    assert run_inputs(cfg)["start"] != before


def test_a_model_of_the_hub_is_trained_on_and_then_needs_no_hub(
    models: Path,
    world: Path,
    losses: dict[int, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub: Hub,  # noqa: F811
):
    for name in ("fetch_hub_files", "list_hub_files"):
        monkeypatch.setattr(hub_module, name, partial(getattr(downloads, name), endpoint=hub.endpoint))
    Shelf(hub).put(models / "nanochat")
    train_below(tmp_path, world, *TUTOR, "init_from=hf://owner/repo")
    assert metrics(tmp_path / "sft_scienceqa" / "tiny", "train/loss") == losses
    hub.files.clear()
    summary = train_below(tmp_path, world, *TUTOR, "init_from=hf://owner/repo", "offline=true", "run_name=again")
    assert str(tmp_path / "hub" / "owner" / "repo" / "model_000003.pt") in summary["init_from"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init_from={models}"], "holds 2 models: nanochat/model_000003.pt, sciassist/model_finetuned.pt; name one"),
        (["init_from={models}/nanochat/tokenizer"], "expected one of: a .ckpt"),
        (["init_from={models}/nanochat/meta_000003.json"], "no file of weights; give the model beside it"),
        (["init_from=hf://owner/repo", "offline=true"], "offline=true forbids fetching it"),
        (["init_from=hf://owner"], "give hf://owner/repo"),
        (
            ["resume={models}/nanochat/model_000003.pt"],
            "takes over no optimizer state to go on with; to start from its weights",
        ),
        (["init_from={models}/base/tiny/worst"], "does not exist; give a checkpoint file"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].rpartition("/")[2],
)
def test_what_cannot_be_started_from_is_one_line(
    models: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(models=models) for argument in arguments]
    assert train_command.main([*TUTOR, f"data.root={world / 'data'}", *given]) == 1
    said = capfd.readouterr().err.strip()
    assert words in said.splitlines()[-1] and said.splitlines()[-1].startswith("error: ")


def evaluate(folder: Path, *arguments: str) -> int:
    return evaluate_command.main(["trainer.accelerator=cpu", "trainer.compute_dtype=float32", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_any_format_is_evaluated_as_the_run_itself_and_its_folder_stays_as_it_was(
    models: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str
):
    monkeypatch.chdir(tmp_path)
    root = f"data.root={world / 'data'}"
    before = sorted(models.joinpath(name).rglob("*"))
    own = [f"output={tmp_path / 'own'}", f"ckpt={models / 'base' / 'tiny'}"]
    assert evaluate(tmp_path, "eval=bpb", "eval.val_tokens=2048", *own) == 0
    data = ["data=microworld", root]
    assert evaluate(tmp_path, "eval=bpb", "eval.val_tokens=2048", *data, f"ckpt={models / name}") == 0
    assert name in capsys.readouterr().out
    files = [next((tmp_path / folder).rglob("results.json")) for folder in ("own", "outputs/eval")]
    values = [json.loads(file.read_text())["metrics"][0]["value"] for file in files]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert sorted(models.joinpath(name).rglob("*")) == before
    assert files[1].relative_to(tmp_path / "outputs" / "eval").parts[1:3] == ("eval", "bpb")


def test_without_data_the_error_names_the_key_to_set(models: Path, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert evaluate(tmp_path, "eval=bpb", f"ckpt={models / 'nanochat'}") == 1
    assert "give data=local data.root=<folder with data sets>" in capfd.readouterr().err
    assert not (tmp_path / "outputs").exists()
    import_model(models / "nanochat", tmp_path / "imported")
    monkeypatch.setattr(evaluate_command, "run_hydra", None)  # it is known before anything is loaded
    assert evaluate(tmp_path, "eval=bpb", f"ckpt={tmp_path / 'imported'}") == 1
    assert "give data=local data.root=<folder with data sets>" in capfd.readouterr().err


def test_a_run_lends_its_data_to_the_model_it_is_compared_with(models: Path, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    both = f"ckpt=[{models / 'nanochat'},{models / 'base' / 'tiny'}]"
    assert evaluate(tmp_path, "eval=bpb", "eval.val_tokens=2048", f"output={tmp_path / 'both'}", both) == 0
    assert len(list((tmp_path / "both").rglob("results.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    ["os.mkdir", "nanochat_pl.paths.os.mkdir", "nanochat_pl.tasks.scienceqa.os.mkdir", "nanochat_pl.tasks.none.None"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_tasks_named_in_a_checkpoint_run_nothing_else(
    models: Path, world: Path, tmp_path: Path, monkeypatch, capfd, target: str, nested: bool
):
    monkeypatch.chdir(tmp_path)
    content = torch.load(models / "base" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    evil = {"_target_": target, "_args_": [str(tmp_path / "canary")]}
    own = {"_target_": "nanochat_pl.tasks.scienceqa.ScienceQA", "persona": [evil]}
    tasks = {"asked": own if nested else evil | {"_target_": f"{target}.scienceqa.ScienceQA"}}
    content["nanochat_pl"]["config"] |= {"mixture": {"tasks": tasks}}
    torch.save(content, tmp_path / "evil.ckpt")
    evaluate(tmp_path, "eval=scienceqa", "eval.max_questions=1", f"ckpt={tmp_path / 'evil.ckpt'}")
    said = "".join(capfd.readouterr())
    assert (f"would make {target}, which is no task; nothing was run" if nested else f"is {target}.scienceqa") in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value", ["${oc.create:{_target_:os.mkdir,_args_:[canary]}}", {"_target_": "os.mkdir", "_args_": ["canary"]}]
)
@pytest.mark.parametrize("key", ["data", "mixture"])
def test_values_named_in_a_checkpoint_run_nothing_either(
    models: Path, tmp_path: Path, monkeypatch, capfd, key: str, value
):
    monkeypatch.chdir(tmp_path)
    content = torch.load(models / "base" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    config = content["nanochat_pl"]["config"]
    task = {"_target_": "nanochat_pl.tasks.scienceqa.ScienceQA", "persona": value}
    config |= (
        {"data": config["data"] | {"hub_scienceqa": value}} if key == "data" else {"mixture": {"tasks": {"a": task}}}
    )
    torch.save(content, tmp_path / "evil.ckpt")
    assert evaluate(tmp_path, "eval=scienceqa", "eval.max_questions=1", f"ckpt={tmp_path / 'evil.ckpt'}") == 1
    assert "nothing was run" in "".join(capfd.readouterr())
    assert not (tmp_path / "canary").exists()


def test_without_a_stage_auto_asks_which_evaluation(models: Path, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(models / "nanochat", tmp_path / "model")
    meta = next(folder.glob("meta_*.json"))
    meta.write_text(json.dumps({key: value for key, value in json.loads(meta.read_text()).items() if key != "stage"}))
    assert evaluate(tmp_path, "data=microworld", f"ckpt={folder}") == 1
    assert "does not say its stage; give eval=bpb" in capfd.readouterr().err
