"""Nothing in a file that is opened can run: crafted files through every reader, with a canary that code would leave.

The first test runs the payloads the careless way, so that the others prove something.
"""

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.checkpoint import check_model, huggingface, lightning, load_model, nanochat, read_model, sciassist
from nanochat_pl.checkpoint.safe_load import read_torch
from nanochat_pl.tokenizer import Tokenizer
from tests.unit.test_checkpoint import stored_model, write_lightning


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Wakes:
    """An importable class whose state is code, as any installed package may have one."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __getstate__(self) -> str:
        return str(self.canary)

    def __setstate__(self, canary: str) -> None:
        Path(canary).touch()


PAYLOADS: dict[str, Callable[[Path], Any]] = {
    "system": lambda canary: Calls(os.system, f"touch {canary}"),
    "exec": lambda canary: Calls(exec, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
    "class": Wakes,
    "getattr": lambda canary: Calls(getattr, Path(canary), "touch"),
}
RUNNING = ["system", "exec", "class"]
"""Those whose mere loading leaves the canary; the others are refused all the same."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each format, all of them good."""
    folder = tmp_path_factory.mktemp("good")
    stored = stored_model(Tokenizer([bytes([byte]) for byte in range(256)]))
    write_lightning(stored, folder / "run" / "last.ckpt")
    nanochat.write(stored, folder / "nanochat")
    sciassist.write(stored, folder / "sciassist")
    huggingface.write(stored, folder / "huggingface")
    for name in ("run", "nanochat", "sciassist", "huggingface"):
        assert load_model(folder / name).step == 12
    return folder


def zipped(content: Any, file: Path) -> None:
    torch.save(content, file)


def legacy(content: Any, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def bare(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def textual(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=0))


def by_hand(content: Any, file: Path) -> None:
    """Write torch's zip with the payload also where other readers look first."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("archive/data.pkl", "archive/constants.pkl", "data.pkl"):
            archive.writestr(name, pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")


def tarred(content: Any, file: Path) -> None:
    """Write the oldest form, a tar of pickles."""
    with tarfile.open(file, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


FORMS = [zipped, legacy, bare, textual, by_hand, tarred]


def refused(canary: Path, *readers: Callable[[], Any]) -> None:
    """Check that every reader refuses in words, and that nothing ran."""
    for reader in readers:
        with pytest.raises(ValueError) as error:
            reader()
        assert len(str(error.value)) > 20
        assert not canary.exists(), "code in the file was run"


@pytest.mark.parametrize("payload", RUNNING)
def test_the_payloads_do_run_where_a_file_is_trusted(canary: Path, tmp_path: Path, payload: str):
    for form, load in ((bare, lambda file: pickle.loads(file.read_bytes())), (zipped, careless), (legacy, careless)):
        form({"weight": PAYLOADS[payload](canary)}, tmp_path / "trusted")
        load(tmp_path / "trusted")
        assert canary.exists()
        canary.unlink()


def careless(file: Path) -> Any:
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_file_of_weights_runs(good: Path, canary: Path, tmp_path: Path, form, payload: str):
    evil = PAYLOADS[payload](canary)
    for kind, name, reader in (
        ("nanochat", "model_000012.pt", nanochat.read),
        ("sciassist", "model_finetuned.pt", sciassist.read),
    ):
        folder = shutil.copytree(good / kind, tmp_path / kind)
        for content in (evil, {"lm_head.weight": evil}, {evil: 1} if payload != "class" else [evil]):
            form(content, folder / name)
            refused(
                canary,
                lambda f=folder: load_model(f),
                lambda f=folder, n=name: load_model(f / n),
                lambda f=folder, n=name, r=reader: r(f / n),
                lambda f=folder, n=name: read_torch(f / n),
            )
        check_model(folder)  # looks, but does not touch
        assert not canary.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_checkpoint_runs(good: Path, canary: Path, tmp_path: Path, form, payload: str):
    evil = PAYLOADS[payload](canary)
    content = torch.load(good / "run" / "last.ckpt", weights_only=True)
    for key in ("hyper_parameters", "callbacks", "state_dict", "nanochat_pl"):
        folder = tmp_path / key / "checkpoints"
        folder.mkdir(parents=True)
        form(content | {key: {"x": evil} if key == "callbacks" else evil}, folder / "last.ckpt")
        refused(
            canary,
            lambda f=folder: load_model(f.parent),
            lambda f=folder: read_model(f / "last.ckpt"),
            lambda f=folder: lightning.read_checkpoint(f / "last.ckpt"),
        )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_tokenizer_runs(good: Path, canary: Path, tmp_path: Path, payload: str, protocol: int):
    data = pickle.dumps(PAYLOADS[payload](canary), protocol=protocol)
    for kind in ("nanochat", "sciassist"):
        folder = shutil.copytree(good / kind, tmp_path / kind)
        (folder / "tokenizer" / "tokenizer.pkl").write_bytes(data)
        refused(canary, lambda f=folder: load_model(f), lambda f=folder: Tokenizer.load(f / "tokenizer"))
        (folder / "tokenizer" / "tokenizer.pkl").rename(folder / "tokenizer.pkl")
        refused(canary, lambda f=folder: load_model(f))
    folder = shutil.copytree(good / "huggingface", tmp_path / "huggingface")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.pkl").write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError)):
        load_model(folder)
    assert not canary.exists()


def test_a_vocabulary_that_hides_a_call_does_not_run(good: Path, canary: Path, tmp_path: Path):
    """The honest pickle with one instruction more: the state is right, and something would run on the way."""
    folder = shutil.copytree(good / "nanochat", tmp_path / "nanochat")
    file = folder / "tokenizer" / "tokenizer.pkl"
    honest = file.read_bytes()
    call = pickle.dumps(PAYLOADS["system"](canary), protocol=4)
    body = call[2 + 9 : -1]  # without PROTO, FRAME and STOP
    file.write_bytes(honest[:2] + body + b"0" + honest[11:])  # POP what the call left, then go on
    pickle.loads(file.read_bytes())
    assert canary.exists(), "the crafted file is well-formed and runs where it is trusted"
    canary.unlink()
    refused(canary, lambda: load_model(folder))


def test_lengths_of_tokens_and_optimizer_files_are_never_opened(good: Path, canary: Path, tmp_path: Path):
    folder = shutil.copytree(good / "nanochat", tmp_path / "nanochat")
    evil = PAYLOADS["system"](canary)
    zipped(evil, folder / "tokenizer" / "token_bytes.pt")
    zipped(evil, folder / "optim_000012_rank0.pt")
    assert load_model(folder).step == 12
    assert not canary.exists()


def test_an_optimizer_state_beside_the_weights_is_noted_as_not_taken_over(good: Path, tmp_path: Path):
    folder = shutil.copytree(good / "nanochat", tmp_path / "nanochat")
    assert read_model(folder).notes == ()
    (folder / "optim_000011_rank0.pt").touch()
    assert read_model(folder).notes == (), "of another step"
    for name, shown in (
        ("optim_000012.pt", "optim_000012.pt"),
        ("optim_000012_rank0.pt", "optim_000012.pt and 1 more"),
    ):
        (folder / name).touch()
        expected = f"its optimizer state ({shown}) is not taken over: training starts from these weights with a new one"
        assert read_model(folder).notes == (expected,)


def test_code_beside_safetensors_is_never_imported(good: Path, canary: Path, tmp_path: Path):
    folder = shutil.copytree(good / "huggingface", tmp_path / "huggingface")
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()\n"
    for name in ("modeling_nanochat.py", "configuration_nanochat.py", "tokenization_nanochat.py", "conftest.py"):
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoModelForCausalLM": "modeling_nanochat.NanoChat",
        "AutoConfig": "configuration_nanochat.C",
    }
    (folder / "config.json").write_text(json.dumps(config))
    bare(PAYLOADS["system"](canary), folder / "pytorch_model.bin")
    load_model(folder)
    assert not canary.exists()
    assert not any(name.endswith("modeling_nanochat") and "transformers_modules" in name for name in sys.modules)
    bare(PAYLOADS["system"](canary), folder / "model.safetensors")  # a pickle under that name
    refused(canary, lambda: load_model(folder), lambda: huggingface.read(folder))


def test_a_refusal_says_that_nothing_was_executed(good: Path, canary: Path, tmp_path: Path):
    folder = shutil.copytree(good / "nanochat", tmp_path / "nanochat")
    zipped(PAYLOADS["system"](canary), folder / "model_000012.pt")
    with pytest.raises(
        ValueError, match=r"beyond tensors.*may run code \(it asks for \w+\.system\); nothing was"
    ) as error:
        load_model(folder)
    assert "\n" not in str(error.value) and "trusted" not in str(error.value)
