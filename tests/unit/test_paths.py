"""Artefacts are found by rule or listed, and written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from nanochat_pl.checkpoint import check_model
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.paths import (
    atomic_file,
    checkpoint_file,
    link_or_copy,
    reason,
    run_dir,
    run_folder,
    write_atomically,
)

# ---------------------------------------------------------------------------------------------------- names


def test_run_dir_is_root_stage_name(tmp_path):
    assert run_dir("base", "d4") == Path("outputs/base/d4")
    assert run_dir("sft_scienceqa", "lr=0.1,seed=3", root=tmp_path) == tmp_path / "sft_scienceqa" / "lr=0.1,seed=3"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc", "a/b", "a\\b"])
def test_a_run_name_cannot_lead_out_of_its_folder(name):
    with pytest.raises(ValueError, match=r"run_name=.* plain folder name"):
        run_dir("base", name)


def test_checkpoint_is_the_file_itself_else_best_else_last(tmp_path):
    run = tmp_path / "run=1, d4"
    folder = run / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("step_000300.ckpt", "last.ckpt", "best.ckpt"):
        (folder / name).touch()
    assert checkpoint_file(folder / "step_000300.ckpt") == folder / "step_000300.ckpt"
    assert checkpoint_file(run) == checkpoint_file(str(folder)) == folder / "best.ckpt"
    (folder / "best.ckpt").unlink()
    assert checkpoint_file(run) == folder / "last.ckpt"
    (folder / "last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither best.ckpt nor last.ckpt .* holds step_000300.ckpt; name one"):
        checkpoint_file(run)


def test_a_missing_checkpoint_lists_what_the_nearest_folder_holds(tmp_path):
    (tmp_path / "d4").mkdir()
    for i in range(20):
        (tmp_path / f"run{i:02d}").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no such path; .* holds d4/, run00/, .* and 9 more"):
        checkpoint_file(tmp_path / "d8" / "checkpoints" / "best.ckpt")
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        checkpoint_file(tmp_path / "d4")


# ---------------------------------------------------------------------------------------------------- whole files


def test_the_run_of_a_checkpoint_is_the_folder_above_checkpoints():
    assert run_folder("outputs/sft/d4/checkpoints/best.ckpt") == Path("outputs/sft/d4")
    assert run_folder(Path("elsewhere/model_000012.pt")) == Path("elsewhere")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_replaces_what_had_it_and_shares_the_bytes_where_it_can(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError("no links here")

    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    last.write_bytes(b"new")
    best.write_bytes(b"old")
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):  # the second time both are names of one file already
        link_or_copy(last, best)
        assert best.read_bytes() == b"new" and best.samefile(last) == has_links
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_write_atomically_writes_bytes_and_text_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    write_atomically(path, "naïve\r\n")
    assert path.read_bytes() == "naïve\r\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["x.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "x.ckpt"
    write_atomically(path, "old")

    def write_half():
        with atomic_file(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_a_file_written_under_the_temporary_name_is_invisible_until_the_end(tmp_path):
    path = tmp_path / "x.ckpt"
    with atomic_file(path) as temporary:
        temporary.write_text("all")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "all"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: json.loads("{x"), "it is no JSON, at character 1"),
        (lambda: b"\xff".decode(), "it holds bytes that are no text"),
        (lambda: {}["stage"], "it has no stage"),
        (lambda: int("x"), "it holds something of another kind than expected"),
        (lambda: dict("x"), "it holds something of another kind than expected"),
        (lambda: 3 > "x", "it holds something of another kind than expected"),
        (lambda: GPTConfig(heads=3), "it has the unknown heads"),
        (lambda: GPTConfig(n_layer="four"), "model.n_layer='four' must be a number"),
        (lambda: GPTConfig(n_layer=True), "model.n_layer='True' must be a number"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_the_insides_of_a_library(fault, said):
    with pytest.raises(Exception) as caught:
        fault()
    assert reason(caught.value) == said


def test_a_link_that_leads_to_itself_is_a_missing_file(tmp_path):
    (tmp_path / "model_000001.pt").symlink_to(tmp_path / "model_000001.pt")
    (tmp_path / "meta_000001.json").write_text("{}")
    with pytest.raises((ValueError, FileNotFoundError)):
        check_model(str(tmp_path))
