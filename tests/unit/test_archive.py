"""An archive holds all of a model, opens packed and unpacked, and is the same bytes whenever it is made."""

import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.checkpoint import archive, load_model
from nanochat_pl.checkpoint.formats import is_model_archive
from nanochat_pl.checkpoint.state import ModelState
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

CARD = "# A model\n\nSmall, naïve.\n"
EVALUATION = {"evaluations": [{"name": "recall", "metrics": [{"metric": "exact_match", "value": 0.25}]}]}


@pytest.fixture(scope="module")
def stored() -> ModelState:
    tokenizer = Tokenizer.train(["Gold is a metal, and iron is a metal too."], 270)
    config = GPTConfig(
        sequence_len=64, vocab_size=270, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, pad_vocab_to=64, softcap=20.0
    )
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return ModelState(
        config=config,
        state=model.state_dict(),
        tokenizer=tokenizer,
        stage="mid",
        step=12,
        run_config={"depth": 1, "stage": {"name": "mid"}},
        file=Path("best.ckpt"),
        format="lightning",
    )


@pytest.fixture
def zip_file(stored: ModelState, tmp_path: Path) -> Path:
    file = tmp_path / "model.zip"
    archive.write(stored, file, CARD, EVALUATION)
    return file


def assert_equal(one: ModelState, other: ModelState) -> None:
    assert one.config == other.config
    assert one.tokenizer.fingerprint() == other.tokenizer.fingerprint()
    assert (one.stage, one.step, one.run_config) == (other.stage, other.step, other.run_config)
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_an_archive_gives_back_every_bit(stored: ModelState, zip_file: Path):
    assert is_model_archive(zip_file)
    assert_equal(archive.read(zip_file), stored)
    loaded = load_model(zip_file)
    assert (loaded.format, loaded.stage, loaded.step, loaded.path) == ("package", stored.stage, stored.step, zip_file)
    assert all(torch.equal(value, stored.state[name]) for name, value in loaded.model.state_dict().items())


def test_an_unpacked_archive_opens_as_well(stored: ModelState, zip_file: Path, tmp_path: Path):
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(zip_file) as opened:
        assert opened.testzip() is None
        opened.extractall(folder)
    assert is_model_archive(folder)
    assert_equal(archive.read(folder), stored)
    assert load_model(folder).path == folder / "model.safetensors"
    assert (folder / "README.md").read_text(encoding="utf-8") == CARD
    assert json.loads((folder / "evaluation.json").read_text()) == EVALUATION


def test_the_same_model_gives_the_same_bytes(
    stored: ModelState, zip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "time", lambda: 2e9)
    again = tmp_path / "elsewhere" / "another name.zip"
    archive.write(stored, again, CARD, EVALUATION)
    assert again.read_bytes() == zip_file.read_bytes()
    assert [entry.name for entry in again.parent.iterdir()] == [again.name]
    with zipfile.ZipFile(zip_file) as opened:
        assert tuple(opened.namelist()) == archive.FILES
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def rewrite(zip_file: Path, **entries: Any) -> None:
    """Replace entries (None = leave out), `.` of their names written as `_`."""
    with zipfile.ZipFile(zip_file) as opened:
        contents = {name: opened.read(name) for name in opened.namelist() if name != "SHA256SUMS"}
    for name, content in entries.items():
        key = ".".join(name.rsplit("_", 1))
        if content is None:
            del contents[key]
        else:
            contents[key] = content
    with zipfile.ZipFile(zip_file, "w") as made:
        for name, content in contents.items():
            made.writestr(name, content)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"model_safetensors": None}, r"damaged or no archive.*model\.safetensors"),
        ({"model_safetensors": b"{}"}, "damaged or no archive"),
        ({"meta_json": b"["}, "damaged or no archive"),
        ({"meta_json": b"[]"}, "no object"),
        ({"meta_json": b"[" * 100_000}, "damaged or no archive"),
        ({"meta_json": b'{"format": "other/1"}'}, r"format 'other/1', expected 'nanochat_pl\.package/1'"),
        ({"meta_json": b'{"format": "nanochat_pl.package/1"}'}, "damaged or of a later version"),
        (
            {"meta_json": b'{"format": "nanochat_pl.package/1", "model_config": {"mtp_heads": 2}}'},
            "later version.*mtp_heads",
        ),
        ({"tokenizer_json": b"{}"}, r"tokenizer\.json cannot be used"),
    ],
)
def test_a_damaged_archive_is_refused_with_the_reason(zip_file: Path, entries: dict[str, Any], reason: str):
    rewrite(zip_file, **entries)
    with pytest.raises(ValueError, match=reason):
        archive.read(zip_file)


@pytest.mark.parametrize("form", ["packed", "unpacked"])
@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "model.safetensors"])
def test_a_file_of_an_archive_that_is_not_the_one_of_its_checksum_is_refused(
    zip_file: Path, tmp_path: Path, form: str, name: str
):
    with zipfile.ZipFile(zip_file) as opened:
        contents = {entry: opened.read(entry) for entry in opened.namelist()}
    contents[name] = contents[name].replace(b'"step": 12', b'"step": 13') + b" "  # what another program wrote whole
    with zipfile.ZipFile(zip_file, "w") as made:
        for entry, content in contents.items():
            made.writestr(entry, content)
    path = zip_file
    if form == "unpacked":
        path = tmp_path / "folder"
        with zipfile.ZipFile(zip_file) as opened:
            opened.extractall(path)
    with pytest.raises(ValueError, match=rf"{name} is damaged or was changed: .*SHA256SUMS"):
        archive.read(path)


def test_a_compressed_archive_is_not_unpacked_in_memory(zip_file: Path):
    with zipfile.ZipFile(zip_file) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    contents["model.safetensors"] += bytes(10**6)
    with zipfile.ZipFile(zip_file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in contents.items():
            made.writestr(name, content)
    with pytest.raises(ValueError, match=r"would unpack to .* is compressed.*; unpack .* and give the folder"):
        load_model(zip_file)


@pytest.mark.parametrize("part", ["directory", "version", "method", "offset"])
def test_an_archive_with_a_damaged_table_of_contents_is_refused_in_words(zip_file: Path, part: str):
    data = bytearray(zip_file.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    at, value = {"directory": (0, 0), "version": (6, 255), "method": (10, 99), "offset": (42, 255)}[part]
    data[directory + at] = value
    zip_file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load_model(zip_file)


def test_other_files_and_folders_are_no_archive_of_a_model(tmp_path: Path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "last.ckpt")
    assert not is_model_archive(tmp_path / "last.ckpt")
    assert not is_model_archive(tmp_path)
    assert not is_model_archive(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no archive of a model.*meta\.json"):
        archive.read(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no"):
        archive.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no meta\.json in"):
        archive.read(tmp_path)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="no archive of a model"):
        archive.read(tmp_path / "text.zip")


def test_weights_that_do_not_fit_are_not_written(stored: ModelState, tmp_path: Path):
    with pytest.raises(ValueError, match="0 layers"):
        archive.write(replace(stored, state={}), tmp_path / "x.zip", CARD)
    assert not list(tmp_path.iterdir())
