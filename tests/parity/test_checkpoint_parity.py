"""nanochat's own files open here and compute what was recorded; what is written from them is, to the byte, theirs."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from nanochat_pl.checkpoint import load_model, nanochat, read_model, sciassist
from nanochat_pl.tokenizer import Tokenizer

FILES = [
    "base_checkpoints/d4/model_000000.pt",
    "base_checkpoints/d4/model_000006.pt",
    "base_checkpoints/init_d1/model_000000.pt",
    "chatsft_checkpoints/d2/model_000007.pt",
]


@pytest.fixture(scope="module")
def base(reference_root: Path) -> Path:
    return reference_root / "base"


@pytest.fixture(scope="module")
def recorded(reference_root: Path) -> dict[str, np.ndarray]:
    with np.load(reference_root / "model.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("name", "file"), [("main", FILES[0]), ("gqa", FILES[3])])
def test_an_opened_model_computes_the_recorded_logits(base: Path, recorded, name: str, file: str):
    loaded = load_model(base / file, compute_dtype=torch.float32)
    logits = loaded.model(torch.from_numpy(recorded[f"{name}_ids"]).long())
    torch.testing.assert_close(
        logits.detach(), torch.from_numpy(recorded[f"{name}_logits"]).view_as(logits), atol=1e-4, rtol=1e-5
    )
    assert loaded.format == "nanochat"


def test_stage_step_and_tokenizer_come_from_where_nanochat_keeps_them(base: Path):
    found = [(read_model(base / file).stage, read_model(base / file).step) for file in FILES]
    assert found == [("base", 0), ("base", 6), ("base", 0), ("sft", 7)]
    ours = Tokenizer.load(base / "tokenizer")
    assert {read_model(base / file).tokenizer.fingerprint() for file in FILES} == {ours.fingerprint()}


def test_folders_open_where_one_model_lies_and_list_them_where_several_do(base: Path):
    assert read_model(base / "chatsft_checkpoints" / "d2").step == read_model(base / "chatsft_checkpoints").step == 7
    with pytest.raises(ValueError, match=r"holds 2 models: model_000000.pt, model_000006.pt; name one"):
        read_model(base / "base_checkpoints" / "d4")
    with pytest.raises(ValueError, match=r"holds 4 models: base_checkpoints/d4/model_000000.pt"):
        read_model(base)


@pytest.mark.parametrize("module", [nanochat, sciassist])
@pytest.mark.parametrize("file", FILES)
def test_what_is_written_again_has_the_same_bytes_in_every_tensor(base: Path, tmp_path: Path, file: str, module):
    stored = read_model(base / file)
    *others, weights = module.write(stored, tmp_path)
    theirs = torch.load(base / file, weights_only=True)
    ours = torch.load(weights, weights_only=True)
    assert list(ours) == [name.removeprefix("_orig_mod.") for name in theirs]
    for mine, original in zip(ours.values(), theirs.values(), strict=True):
        assert (mine.dtype, mine.shape) == (original.dtype, original.shape)
        assert torch.equal(mine.contiguous().view(torch.uint8), original.contiguous().view(torch.uint8))
    again = read_model(tmp_path)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in stored.state.items())
    assert (again.config, again.step) == (stored.config, stored.step)
    tokenizer, lengths, _ = others
    assert tokenizer.read_bytes() == (base / "tokenizer" / "tokenizer.pkl").read_bytes()
    assert torch.equal(torch.load(lengths), torch.load(base / "tokenizer" / "token_bytes.pt"))


@pytest.mark.parametrize("file", FILES)
def test_metadata_have_the_names_and_values_that_nanochat_reads(base: Path, tmp_path: Path, file: str):
    original = json.loads((base / file.replace("model_", "meta_").replace(".pt", ".json")).read_text())
    kept = {name: value for name, value in original.items() if name not in ("step", "model_config")}
    nanochat.write(read_model(base / file), tmp_path, kept)
    written = json.loads((tmp_path / Path(file).name.replace("model_", "meta_").replace(".pt", ".json")).read_text())
    assert written.pop("stage") in ("base", "sft")  # ours
    assert written == original


def test_the_written_tokenizer_unpickles_as_the_original_does_and_gives_equal_ids(
    reference_root: Path, base: Path, tmp_path: Path
):
    nanochat.write(read_model(base / FILES[1]), tmp_path)
    with (tmp_path / "tokenizer" / "tokenizer.pkl").open("rb") as file:
        encoding = pickle.load(file)
    assert type(encoding) is tiktoken.Encoding
    for case in json.loads((reference_root / "tokenizer.json").read_text())["encode"]:
        assert encoding.encode_ordinary(case["text"]) == case["ids"]
