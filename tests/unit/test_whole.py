"""A checkpoint or archive that is not what was written is refused, whatever byte of it changed."""

import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

from nanochat_pl.checkpoint import archive, nanochat, read_model
from nanochat_pl.checkpoint.state import ModelState
from nanochat_pl.checkpoint.whole import fault, newest_checkpoint, other_checkpoints, stored_step
from nanochat_pl.tokenizer import Tokenizer
from tests.unit.test_checkpoint import stored_model, write_lightning


@pytest.fixture(scope="module")
def stored() -> ModelState:
    return stored_model(Tokenizer([bytes([byte]) for byte in range(256)]))


def write(stored: ModelState, kind: str, folder: Path) -> Path:
    """Write a model in one format; return the file to damage."""
    if kind == "lightning":
        return write_lightning(stored, folder / "last.ckpt")
    if kind == "nanochat":
        return nanochat.write(stored, folder)[-1]
    archive.write(stored, folder / "model.zip", "# A model")
    if kind == "folder":
        with zipfile.ZipFile(folder / "model.zip") as opened:
            opened.extractall(folder / "model")
        return folder / "model" / "model.safetensors"
    return folder / "model.zip"


def assert_refused_or_equal(file: Path, stored: ModelState, what: str) -> bool:
    """Open a damaged model; return whether it was refused, with a single line of moderate length."""
    try:
        again = read_model(file.parent if file.name == "model.safetensors" else file)
    except (ValueError, FileNotFoundError) as refused:
        message = str(refused)
    else:
        message = ""
    if message:
        assert "\n" not in message and len(message) < 700, what
        return True
    assert (again.config, again.stage, again.step) == (stored.config, stored.stage, stored.step), what
    assert again.tokenizer.fingerprint() == stored.tokenizer.fingerprint(), what
    assert all(torch.equal(again.state[name], tensor) for name, tensor in stored.state.items()), what
    return False


@pytest.mark.parametrize("kind", ["lightning", "package", "folder"])
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(stored: ModelState, tmp_path: Path, kind: str):
    file = write(stored, kind, tmp_path)
    whole, rng = file.read_bytes(), random.Random(11)
    places = [*rng.sample(range(len(whole)), 120), *range(64), *range(len(whole) - 160, len(whole))]
    refused = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        refused += assert_refused_or_equal(file, stored, f"byte {place} of {len(whole)}")
    assert refused > 100
    file.write_bytes(whole)
    assert not assert_refused_or_equal(file, stored, "restored")


@pytest.mark.parametrize("kind", ["lightning", "nanochat", "package", "folder"])
def test_a_flipped_bit_in_a_weight_is_named_as_damage(stored: ModelState, tmp_path: Path, kind: str):
    file = write(stored, kind, tmp_path)
    data = file.read_bytes()
    place = data.index(stored.state["lm_head.weight"].numpy().tobytes()) + 101
    file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    with pytest.raises(ValueError, match=r"damaged") as refused:
        read_model(file.parent if kind in ("nanochat", "folder") else file)
    assert str(file) in str(refused.value)


def test_files_without_checksums_open_as_before(stored: ModelState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(stored, "folder", tmp_path / "old").parent
    (folder / "SHA256SUMS").unlink()  # as earlier versions exported
    assert not assert_refused_or_equal(folder / "model.safetensors", stored, "folder")
    torch.serialization.set_crc32_options(False)
    try:
        file = write(stored, "lightning", tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert not assert_refused_or_equal(file, stored, "no CRC")


def test_a_file_changed_in_the_same_moment_is_checked_anew(stored: ModelState, tmp_path: Path):
    file = write(stored, "lightning", tmp_path)
    status, whole = file.stat(), file.read_bytes()
    assert fault(file) is None
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fault(file) is not None


def test_a_damaged_checkpoint_names_the_newest_whole_one_beside_it(stored: ModelState, tmp_path: Path):
    for step, name in ((100, "step_000100"), (250, "best"), (200, "step_000200"), (300, "last")):
        write_lightning(stored_model(stored.tokenizer, step=step), tmp_path / f"{name}.ckpt")
        assert stored_step(tmp_path / f"{name}.ckpt") == step
    last = tmp_path / "last.ckpt"
    assert newest_checkpoint(tmp_path) == last
    (tmp_path / "step_000300.ckpt").hardlink_to(last)  # the same bytes under another name are no way out
    os.truncate(last, last.stat().st_size // 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "best.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt .*truncated.*use .*best\.ckpt \(step 250\)"):
        read_model(last)
    last.unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "best.ckpt"
    for file in tmp_path.glob("*.ckpt"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: best\.ckpt .*; step_000100\.ckpt"):
        newest_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="no whole checkpoint lies beside it"):
        read_model(tmp_path / "best.ckpt")


def test_a_link_that_leads_nowhere_is_a_missing_checkpoint_not_the_end(stored: ModelState, tmp_path: Path):
    folder = write(stored, "lightning", tmp_path).parent
    whole = next(folder.glob("*.ckpt")).rename(folder / "best.ckpt")
    (folder / "last.ckpt").symlink_to("nowhere")
    (folder / "step_000001.ckpt").mkdir()
    assert newest_checkpoint(folder) == whole
    assert "cannot be read" in str(fault(folder / "last.ckpt"))
    assert str(whole) in other_checkpoints(folder / "last.ckpt")
    whole.unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: last\.ckpt cannot be read \(no such file"):
        newest_checkpoint(folder)
