"""A small file never asks for more than it holds: bounds are checked before anything is laid out, in every format."""

import json
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.checkpoint import archive, check_model, huggingface, nanochat, read_model, sciassist
from nanochat_pl.checkpoint.formats import MAX_JSON_VALUES, parse_json
from nanochat_pl.checkpoint.safe_load import check_size, read_torch
from nanochat_pl.checkpoint.state import ModelState
from nanochat_pl.model.config import LIMITS, GPTConfig
from nanochat_pl.tokenizer import Tokenizer
from tests.unit.test_checkpoint import stored_model, write_lightning


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in each format, all of them good."""
    folder = tmp_path_factory.mktemp("good")
    stored = stored_model(Tokenizer([bytes([byte]) for byte in range(256)]))
    write_lightning(stored, folder / "lightning" / "last.ckpt")
    nanochat.write(stored, folder / "nanochat")
    sciassist.write(stored, folder / "sciassist")
    huggingface.write(stored, folder / "huggingface")
    archive.write(stored, folder / "package" / "model.zip", "card")
    with zipfile.ZipFile(folder / "package" / "model.zip") as opened:
        opened.extractall(folder / "unpacked")
    (folder / "unpacked" / "SHA256SUMS").unlink()  # whoever makes a file to mislead writes its sums as well
    return folder


THEIR_NAMES = {
    "sequence_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}


def with_shape(good: Path, kind: str, folder: Path, change: dict[str, Any]) -> Path:
    """Copy a good model of a format, with another shape in its metadata."""
    shutil.copytree(good / kind, folder)
    if kind == "lightning":
        content = torch.load(folder / "last.ckpt", weights_only=True)
        content["nanochat_pl"]["model_config"] |= change
        torch.save(content, folder / "last.ckpt")
        return folder / "last.ckpt"
    if kind == "package":
        with zipfile.ZipFile(good / kind / "model.zip") as before, zipfile.ZipFile(folder / "model.zip", "w") as after:
            for name in before.namelist():
                data = before.read(name)
                if name == "SHA256SUMS":
                    continue  # as above
                if name == "meta.json":
                    meta = json.loads(data)
                    meta["model_config"] |= change
                    data = json.dumps(meta).encode()
                after.writestr(name, data)
        return folder / "model.zip"
    file = {
        "nanochat": "meta_000012.json",
        "sciassist": "meta_finetuned.json",
        "huggingface": "config.json",
        "unpacked": "meta.json",
    }[kind]
    meta = json.loads((folder / file).read_text())
    if kind == "huggingface":
        meta |= {THEIR_NAMES[name]: value for name, value in change.items()}
        if "n_embd" in change:
            meta["intermediate_size"] = 4 * change["n_embd"]
    else:
        meta["model_config"] |= change
    (folder / file).write_text(json.dumps(meta))
    return folder


HUGE = 10**5000
"""More digits than Python writes."""
KINDS = ["lightning", "nanochat", "sciassist", "huggingface", "package", "unpacked"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_len", 10**7),
        ("sequence_len", 10**30),
        ("sequence_len", HUGE),
        ("sequence_len", 1e30),
        ("n_layer", 10**8),
        ("n_head", 10**30),
        ("vocab_size", 10**12),
        ("n_embd", 10**12),
    ],
    ids=lambda value: "huge" if value == HUGE else str(value),
)
def test_a_shape_beyond_all_bounds_is_refused_at_once(good: Path, tmp_path: Path, kind: str, field: str, value: Any):
    if value == HUGE and kind != "lightning":
        value = 10**4000  # the most that JSON writes and reads
    path = with_shape(good, kind, tmp_path / kind, {field: value})
    begin = time.perf_counter()
    with pytest.raises(ValueError) as error:
        read_model(path)
    assert time.perf_counter() - begin < 2
    text = str(error.value)
    assert field in text or (value == HUGE and "not a plain checkpoint" in text)
    assert "\n" not in text and len(text) < 600


def test_every_number_of_a_shape_has_a_limit():
    for name, limit in LIMITS.items():
        with pytest.raises(ValueError, match=f"model.{name}=.*must be at most"):
            GPTConfig(**{name: limit + 1})
    with pytest.raises(ValueError, match=r"model.sequence_len=1000000 must be at most 131072 with 128 channels"):
        GPTConfig(sequence_len=10**6)
    assert GPTConfig(sequence_len=2**17).head_dim == 128


@pytest.mark.parametrize("kind", ["lightning", "nanochat", "sciassist"])
def test_a_tensor_of_one_number_asks_for_no_memory(good: Path, tmp_path: Path, kind: str):
    folder = shutil.copytree(good / kind, tmp_path / kind)
    file = folder / {"lightning": "last.ckpt", "nanochat": "model_000012.pt", "sciassist": "model_finetuned.pt"}[kind]
    content = torch.load(file, weights_only=True)
    state = content["state_dict"] if kind == "lightning" else content
    state[next(iter(state))] = torch.zeros(1, dtype=torch.bfloat16).expand(4_000_000, 4000)
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"a tensor of shape \(4000000, 4000\) with fewer numbers"):
        read_model(file)


def test_weights_that_share_their_numbers_are_refused(good: Path, tmp_path: Path):
    folder = shutil.copytree(good / "nanochat", tmp_path / "nanochat")
    file = folder / "model_000012.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"lm_head.weight": state["transformer.wte.weight"]}, file)
    with pytest.raises(ValueError, match="its tensors share their numbers"):
        read_model(file)


def nested(levels: int) -> list[Any]:
    """Give a list that is a few bytes long and has 2**levels ends."""
    value: list[Any] = [0]
    for _ in range(levels):
        value = [value, value]
    return value


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [nested(60), itself(), deep(150), {"a": {1: nested(30)}}], ids=["2**60", "itself", "deep", "dict"]
)
@pytest.mark.parametrize("key", ["nanochat_pl", "callbacks", "hyper_parameters", "loops"])
def test_a_pickle_of_repeated_or_nested_lists_is_refused_within_two_seconds(
    good: Path, tmp_path: Path, value: Any, key: str
):
    content = torch.load(good / "lightning" / "last.ckpt", weights_only=True)
    if key == "nanochat_pl":
        content[key]["config"]["x"] = value
    else:
        content[key] = {"x": value}
    torch.save(content, tmp_path / "last.ckpt")
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="it is no checkpoint"):
        read_model(tmp_path / "last.ckpt")
    assert time.perf_counter() - begin < 2


def test_what_checkpoints_hold_is_within_the_bounds(good: Path):
    states = [{"torch": torch.zeros(5056), "python": [3, list(range(625)), None]} for _ in range(64)]
    shared = {"a": 1.0}
    check_size({"random": states, "again": [shared] * 1000, "cursor": {"deep": deep(50)}}, Path("x"))
    assert read_torch(good / "lightning" / "last.ckpt")["global_step"] == 12


@pytest.mark.parametrize("kind", ["lightning", "nanochat", "package"])
def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(good: Path, tmp_path: Path, kind: str):
    name = {"lightning": "last.ckpt", "nanochat": "model_000012.pt", "package": "model.zip"}[kind]
    folder = shutil.copytree(good / kind, tmp_path / kind)
    with zipfile.ZipFile(good / kind / name) as before:
        entries = {entry: before.read(entry) for entry in before.namelist()}
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as after:
        for entry, data in entries.items():
            after.writestr(entry, data)
        after.writestr("zeros", bytes(50_000_000))
    assert (folder / name).stat().st_size < 2_000_000
    with pytest.raises(ValueError, match=r"would unpack to [\d,]+ bytes \(\S+ is compressed\), as no model is saved"):
        read_model(folder / name)


def test_entries_that_share_their_bytes_are_refused(good: Path, tmp_path: Path):
    file = tmp_path / "last.ckpt"
    shutil.copy(good / "lightning" / "last.ckpt", file)
    with zipfile.ZipFile(file, "a") as opened:
        largest = max(opened.infolist(), key=lambda entry: entry.file_size)
        opened.filelist.extend([largest] * 50)
        opened._didModify = True
    with pytest.raises(ValueError, match="its entries share their bytes"):
        read_model(file)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["lightning", "nanochat", "package"])
def test_an_archive_with_two_entries_of_one_name_is_refused(good: Path, tmp_path: Path, kind: str):
    name = {"lightning": "last.ckpt", "nanochat": "model_000012.pt", "package": "model.zip"}[kind]
    folder = shutil.copytree(good / kind, tmp_path / kind)
    with zipfile.ZipFile(folder / name, "a") as opened:
        entry = opened.namelist()[-1]
        opened.writestr(entry, opened.read(entry))
    with pytest.raises(ValueError, match=r"holds 2 entries named '\S+', as no model is saved") as error:
        read_model(folder / name)
    assert "\n" not in str(error.value)


def test_json_of_millions_of_values_is_refused_before_it_is_parsed(good: Path, tmp_path: Path):
    folder = shutil.copytree(good / "nanochat", tmp_path / "nanochat")
    meta = folder / "meta_000012.json"
    text = meta.read_text().rstrip().removesuffix("}")
    meta.write_text(f'{text}, "more": [{"[]," * (MAX_JSON_VALUES // 2)} []]}}')
    for look in (check_model, read_model):
        with pytest.raises(ValueError, match=r"meta_000012.json is no JSON .*it has more than [\d,]+ values"):
            look(folder)
    assert parse_json(b"[1, {}]") == [1, {}]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.pkl"])
def test_a_vocabulary_is_not_read_where_it_is_too_large(tmp_path: Path, name: str):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match="1,073,741,824 bytes, too many for a vocabulary"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "stage", ["../../x", "/abs", "", ".", "..", "a/b", "a\\b", "sft\0", "sft\n", "x" * 100, "-rf /"]
)
@pytest.mark.parametrize("kind", ["lightning", "nanochat", "huggingface", "package"])
def test_a_stage_in_a_file_is_a_plain_name(good: Path, tmp_path: Path, kind: str, stage: str):
    folder = shutil.copytree(good / kind, tmp_path / kind)
    if kind == "lightning":
        content = torch.load(folder / "last.ckpt", weights_only=True)
        content["nanochat_pl"]["stage"] = stage
        torch.save(content, folder / "last.ckpt")
    elif kind == "package":
        with zipfile.ZipFile(good / kind / "model.zip") as before:
            entries = {name: before.read(name) for name in before.namelist() if name != "SHA256SUMS"}
        entries["meta.json"] = json.dumps(json.loads(entries["meta.json"]) | {"stage": stage}).encode()
        with zipfile.ZipFile(folder / "model.zip", "w") as after:
            for name, data in entries.items():
                after.writestr(name, data)
        folder = folder / "model.zip"
    else:
        file = folder / {"nanochat": "meta_000012.json", "huggingface": "nanochat_pl.json"}[kind]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"stage": stage}))
    with pytest.raises(ValueError, match="expected a plain name such as sft"):
        read_model(folder)


@pytest.mark.parametrize("kind", ["huggingface", "unpacked"])
def test_a_config_in_json_is_not_nested_without_end(good: Path, tmp_path: Path, kind: str):
    folder = shutil.copytree(good / kind, tmp_path / kind)
    file = folder / {"huggingface": "nanochat_pl.json", "unpacked": "meta.json"}[kind]
    meta = json.loads(file.read_text())
    for levels, fault in ((90, None), (150, "nested more than 100 levels deep"), (100_000, "is no JSON")):
        text = json.dumps(meta | {"run_config": {"x": "HERE"}}).replace('"HERE"', "[" * levels + "]" * levels)
        file.write_text(text)
        if fault is None:
            assert read_model(folder).run_config["x"]
            continue
        with pytest.raises(ValueError, match=fault):
            read_model(folder)


@pytest.mark.parametrize("step", [-1, 2**63, HUGE], ids=["below", "above", "huge"])
def test_a_step_in_a_file_is_one_that_a_run_can_reach(step: int):
    good: dict[str, Any] = {
        "config": GPTConfig(),
        "state": {},
        "tokenizer": None,
        "run_config": {},
        "format": "lightning",
    }
    with pytest.raises(ValueError, match="of a step below 0 or above"):
        ModelState(**good, stage="sft", step=step, file=Path("x.ckpt"))


def test_an_export_stays_in_its_folder_whatever_the_file_says(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from nanochat_pl.cli.export import main

    run = tmp_path / "run" / "one" / "checkpoints"
    shutil.copytree(good / "lightning", run)
    content = torch.load(run / "last.ckpt", weights_only=True)
    content["nanochat_pl"]["stage"] = "../../escaped"
    torch.save(content, run / "last.ckpt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    for form in ("zip", "huggingface", "nanochat"):
        assert main([str(run.parent), "--format", form]) == 2
    assert sorted(tmp_path.rglob("*")) == before
