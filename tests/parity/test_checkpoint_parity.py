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
from tests.parity.reference import checkpoints, gqa_weights, main_weights, meta_of


@pytest.fixture(scope="module")
def base(reference_root: Path) -> Path:
    return reference_root / "base"


@pytest.fixture(scope="module")
def recorded(reference_root: Path) -> dict[str, np.ndarray]:
    with np.load(reference_root / "model.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("name", "weights_of"), [("main", main_weights), ("gqa", gqa_weights)])
def test_an_opened_model_computes_the_recorded_logits(reference_root: Path, recorded, name: str, weights_of):
    loaded = load_model(weights_of(reference_root), compute_dtype=torch.float32)
    logits = loaded.model(torch.from_numpy(recorded[f"{name}_ids"]).long())
    torch.testing.assert_close(
        logits.detach(), torch.from_numpy(recorded[f"{name}_logits"]).view_as(logits), atol=1e-4, rtol=1e-5
    )
    assert loaded.format == "nanochat"


def test_stage_step_and_tokenizer_come_from_where_nanochat_keeps_them(reference_root: Path, base: Path):
    ours = Tokenizer.load(base / "tokenizer")
    stages = {"base_checkpoints": "base", "chatsft_checkpoints": "sft"}
    assert len(checkpoints(reference_root)) >= 3
    for file in checkpoints(reference_root):
        stored = read_model(file)
        assert (stored.stage, stored.step) == (stages[file.parents[1].name], int(file.stem.split("_")[1]))
        assert stored.tokenizer.fingerprint() == ours.fingerprint()


def test_folders_open_where_one_model_lies_and_list_them_where_several_do(reference_root: Path, base: Path):
    alone, several = gqa_weights(reference_root), sorted(main_weights(reference_root).parent.glob("model_*.pt"))
    assert read_model(alone.parent).step == read_model(alone.parents[1]).step == int(alone.stem.split("_")[1])
    with pytest.raises(
        ValueError, match=f"holds {len(several)} models: {', '.join(p.name for p in several)}; name one"
    ):
        read_model(several[0].parent)
    files = checkpoints(reference_root)
    with pytest.raises(ValueError, match=f"holds {len(files)} models: {files[0].relative_to(base)}"):
        read_model(base)


@pytest.mark.parametrize("module", [nanochat, sciassist])
def test_what_is_written_again_has_the_same_bytes_in_every_tensor(
    reference_root: Path, base: Path, tmp_path: Path, module
):
    for number, file in enumerate(checkpoints(reference_root)):
        stored = read_model(file)
        *others, weights = module.write(stored, tmp_path / str(number))
        theirs = torch.load(file, weights_only=True)
        ours = torch.load(weights, weights_only=True)
        assert list(ours) == [name.removeprefix("_orig_mod.") for name in theirs]
        for mine, original in zip(ours.values(), theirs.values(), strict=True):
            assert (mine.dtype, mine.shape) == (original.dtype, original.shape)
            assert torch.equal(mine.contiguous().view(torch.uint8), original.contiguous().view(torch.uint8))
        again = read_model(tmp_path / str(number))
        assert all(torch.equal(again.state[name], tensor) for name, tensor in stored.state.items())
        assert (again.config, again.step) == (stored.config, stored.step)
        tokenizer, lengths, _ = others
        assert tokenizer.read_bytes() == (base / "tokenizer" / "tokenizer.pkl").read_bytes()
        assert torch.equal(torch.load(lengths), torch.load(base / "tokenizer" / "token_bytes.pt"))


def test_metadata_have_the_names_and_values_that_nanochat_reads(reference_root: Path, tmp_path: Path):
    for number, file in enumerate(checkpoints(reference_root)):
        original = meta_of(file)
        kept = {name: value for name, value in original.items() if name not in ("step", "model_config")}
        folder = tmp_path / str(number)
        nanochat.write(read_model(file), folder, kept)
        written = meta_of(folder / file.name)
        assert written.pop("stage") in ("base", "sft")  # ours
        assert written == original


def test_the_written_tokenizer_unpickles_as_the_original_does_and_gives_equal_ids(reference_root: Path, tmp_path: Path):
    nanochat.write(read_model(main_weights(reference_root)), tmp_path)
    with (tmp_path / "tokenizer" / "tokenizer.pkl").open("rb") as file:
        encoding = pickle.load(file)
    assert type(encoding) is tiktoken.Encoding
    for case in json.loads((reference_root / "tokenizer.json").read_text())["encode"]:
        assert encoding.encode_ordinary(case["text"]) == case["ids"]
