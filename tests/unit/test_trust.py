"""A config of unknown origin makes tasks and reads plain values; whatever else it asks for is refused, and not run."""

import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat_pl.config.command_line import ConfigError
from nanochat_pl.config.compose import check_targets
from nanochat_pl.config.targets import is_module, trusted_data, trusted_tasks

FILE = Path("evil.ckpt")
JSONL = "nanochat_pl.tasks.jsonl.JSONL"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nanochat_pl", True),
        ("nanochat_pl.tasks", True),
        ("nanochat_pl.tasks.jsonl", True),
        ("lightning.pytorch.callbacks", True),
        ("nanochat_pl.paths.os", False),
        ("nanochat_pl.tasks.jsonl.JSONL", False),
        ("nanochat_pl.none.at_all", False),
        ("nowhere.at_all", False),
        ("nanochat_pl.tasks/jsonl", False),
        ("nanochat_pl..paths", False),
        ("", False),
    ],
)
def test_a_module_is_told_from_what_a_module_reaches(name: str, expected: bool):
    assert is_module(name) is expected


def test_looking_for_a_module_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "explosive_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("raise SystemExit")
    (package / "leaf.py").write_text("raise SystemExit")
    (package / "spaces" / "deeper").mkdir(parents=True)
    (package / "spaces" / "deeper" / "leaf.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_module("explosive_package.inner.leaf")
    assert is_module("explosive_package.inner.spaces.deeper.leaf"), "folders without __init__ are packages as well"
    assert not is_module("explosive_package.inner.twig")
    assert not any(name.startswith("explosive") for name in sys.modules)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", r"mine\._target_=os\.system is outside nanochat_pl\., .*plugins\.allow=\[os\]"),
        ("nanochat_pl.paths.os.system", r"there is no module nanochat_pl\.paths\.os; give"),
        ("lightning.pytorch.callbacks.os.system", r"no module lightning\.pytorch\.callbacks\.os"),
        ("json.decoder.scanner.re.compile", r"no module json\.decoder\.scanner\.re"),
    ],
)
def test_a_typed_target_leads_to_a_module_and_not_through_one(target: str, reason: str):
    check_targets({"mine": {"_target_": "lightning.pytorch.callbacks.Timer"}, "a": [{"_target_": JSONL}]}, ())
    check_targets({"mine": {"_target_": "json.JSONDecoder"}}, ("json",))
    with pytest.raises(ConfigError, match=reason):
        check_targets({"callbacks": {"mine": {"_target_": target}}}, ("json",))


COMPUTED = "${oc.create:{_target_:os.mkdir,_args_:[canary]}}"


@pytest.mark.parametrize(
    "spec",
    [
        {"_target_": JSONL, "path": COMPUTED},
        {"_target_": JSONL, "path": {"deep": [COMPUTED]}},
        {"_target_": COMPUTED},
        {"_target_": "os.mkdir", "path": COMPUTED},
    ],
)
def test_what_a_task_would_compute_is_refused(spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nanochat_pl.config.targets import make

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"mixture\.tasks\.asked of evil\.ckpt is not plain: it holds .*oc\.create"):
        trusted_tasks({"asked": spec}, ("os",), FILE)
    if spec["_target_"] == JSONL:
        with pytest.raises((ValueError, TypeError)):
            make(spec)
        assert Path("canary").exists(), "else the test proves nothing: it does run where it is not refused"


@pytest.mark.parametrize("value", [COMPUTED, {"_target_": "os.mkdir"}, [1], b"x"])
def test_data_of_a_checkpoint_are_plain_values(value: Any):
    good = {"source": "local", "root": "/data", "text_shards": 3, "fetch": False}
    assert trusted_data(good, FILE) == good
    with pytest.raises(ValueError, match=r"data\.hub_scienceqa of evil\.ckpt is no plain value .* nothing was run"):
        trusted_data(good | {"hub_scienceqa": value}, FILE)


def test_tasks_of_this_project_are_kept_and_others_left_out(caplog: pytest.LogCaptureFixture):
    own = {"_target_": JSONL, "path": "x.jsonl", "nested": [{"_target_": "nanochat_pl.tasks.recall.Recall"}]}
    tasks = {"own": own, "off": None, "other": {"_target_": "os.mkdir"}, "base": {"_target_": "nanochat_pl.paths.Path"}}
    assert trusted_tasks(tasks, (), FILE) == {"own": own, "off": None}
    assert "plugins.allow=[os]" in caplog.text and "nanochat_pl.paths.Path" in caplog.text


def test_an_allowed_package_lends_its_own_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "riddle_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("from os import mkdir\nfrom riddle_tasks.one import Riddles\n")
    (package / "one.py").write_text("import os\n\nclass Riddles:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("Riddles", "one.Riddles", "mkdir", "one.os.mkdir", "none.Riddles", "one.None")
    tasks = {name: {"_target_": f"riddle_tasks.{name}"} for name in names}
    assert [*trusted_tasks(tasks, ("riddle_tasks",), FILE)] == ["Riddles", "one.Riddles"]
    assert trusted_tasks(tasks, (), FILE) == {}


@pytest.mark.parametrize("source", ["microworld", "hub"])
@pytest.mark.parametrize("place", ["/abs", "../../x", "outputs/data/../../x", "outputs/sft", "~/x", "\0"])
def test_a_file_chooses_no_place_for_data_that_are_made_or_fetched(
    source: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    data = {"source": source, "root": place, "fetch": True, "formatted_dir": "/abs"}
    settled = trusted_data(data, FILE)
    assert settled["root"].startswith("outputs/data/") and "formatted_dir" not in settled
    assert "is not written to" in caplog.text and not any(tmp_path.iterdir())


def test_runs_keep_the_places_of_their_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "big" / "sft" / "d4" / "checkpoints" / "last.ckpt"
    world = {"source": "microworld", "root": "outputs/data/microworld-0", "seed": 0}
    beside = world | {"root": str(tmp_path / "big" / "data" / "w")}
    assert trusted_data(world, FILE) == world
    assert trusted_data(beside, run) == beside
    assert trusted_data(beside, tmp_path / "big" / "a" / "b" / "checkpoints" / "x.ckpt")["root"] != beside["root"]
    typed = {"root": "/abs"}
    assert trusted_data(beside, FILE, "outputs", typed) | typed == beside | typed
    local = {"source": "local", "root": "/abs", "text": "../t", "fetch": False}
    assert trusted_data(local, FILE) == local, "reading is no writing"


def test_data_fetched_to_another_place_are_read_there_and_nothing_is_fetched(tmp_path: Path):
    data = {"source": "hub", "root": str(tmp_path), "fetch": True, "hub_scienceqa": "a/b"}
    expected = {"source": "local", "root": str(tmp_path), "fetch": False, "hub_scienceqa": None}
    assert trusted_data(data, FILE) == expected


@pytest.mark.parametrize("key", ["text", "scienceqa", "val_shard"])
@pytest.mark.parametrize("name", ["../x", "/abs", "a/../../x", 5])
def test_names_of_a_file_stay_below_the_root_of_its_data(key: str, name: Any):
    with pytest.raises(ValueError, match=rf"data\.{key}=.* of evil\.ckpt leads out of data\.root"):
        trusted_data({"source": "hub", "root": "outputs/data/hub", key: name}, FILE)


def test_a_seed_that_is_a_path_makes_no_folder():
    with pytest.raises(ValueError, match=r"data\.seed='../../x'"):
        trusted_data({"source": "microworld", "root": "/abs", "seed": "../../x"}, FILE)


def test_tasks_of_a_file_write_nowhere():
    target = "nanochat_pl.tasks.scienceqa.ScienceQA"
    spec = {"_target_": target, "path": "/abs", "hub": "a/b", "formatted_dir": "/abs", "inner": [{"fetch": True}]}
    asked = trusted_tasks({"asked": spec}, (), FILE)["asked"]
    assert asked == {"_target_": target, "path": "/abs", "hub": None, "inner": [{"fetch": False}]}
    kept = {"_target_": "nanochat_pl.tasks.mmlu.MMLU", "path": "outputs/data/hub/mmlu", "fetch": True}
    assert trusted_tasks({"asked": kept}, (), FILE)["asked"] == kept
