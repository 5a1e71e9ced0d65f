"""`nanochat-pl doctor`: sound machines pass, and each thing that would spoil a run is a fault with its remedy."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.cli import doctor


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of a second or two."""
    monkeypatch.setattr(doctor, "MATMUL_SIZE", {"cpu": 128, "cuda": 1024, "mps": 128})
    monkeypatch.setattr(doctor, "DISK_BYTES", 2**16)


def test_a_sound_machine_is_fit_and_says_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "doctor.json"
    assert doctor.main(["--offline", "--outputs", str(tmp_path / "runs" / "here"), "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "fit to train on"
    assert [line for line in said.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
    assert not [*tmp_path.glob("runs*"), *tmp_path.glob(".doctor*")], "nothing is left behind"
    found = {finding["what"]: finding for finding in json.loads(file.read_text())}
    assert {finding["verdict"] for finding in found.values()} <= {"ok", "note"}
    assert found["versions"]["figures"]["torch"] == torch.__version__
    assert found["products on processor"]["figures"]["float32_flops"] > 0
    assert found["sum over 2 processes"]["figures"]["right"] is True and "hub" not in found


def test_a_device_that_multiplies_wrongly_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    multiply = torch.Tensor.__matmul__

    def slip(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = multiply(a, b)
        if a.dtype == torch.bfloat16:
            product[7, 7] += 20  # one number of many
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", slip)
    finding = doctor.arithmetic(torch.device("cpu"))
    assert finding.fault and "bfloat16 wrong" in finding.found and "do not train on it" in finding.remedy


def _refuse(rank: int, count: int, backend: str, folder: str) -> None:
    if rank == 1:
        Path(folder, "error.txt").write_text("no route to the other")
        raise RuntimeError("no route to the other")


def _add_wrongly(rank: int, count: int, backend: str, folder: str) -> None:
    Path(folder, "result.json").write_text(json.dumps({"right": False, "bytes_per_s": 1e9}))


def _wait_for_ever(rank: int, count: int, backend: str, folder: str) -> None:
    import time

    time.sleep(600)


@pytest.mark.parametrize(
    ("process", "found"), [(_refuse, "no route"), (_add_wrongly, "and wrong"), (_wait_for_ever, "no answer in")]
)
def test_devices_that_cannot_add_are_a_fault(monkeypatch: pytest.MonkeyPatch, process: Any, found: str):
    monkeypatch.setattr(doctor, "_sum_with_others", process)
    monkeypatch.setattr(doctor, "COLLECTIVE_SECONDS", 2 if process is _wait_for_ever else 60)
    finding = doctor.collective(torch.device("cpu"), 2)
    assert finding.fault and found in finding.found and finding.remedy


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    finding = doctor.disk(tmp_path / "file" / "outputs")
    assert finding.fault and finding.remedy == "give another one: outputs=<folder>"


def test_gpus_that_torch_cannot_use_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: Some GPU (UUID: x)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [fault] = [finding for finding in doctor.devices() if finding.fault]
    assert "the driver has 1" in fault.found and "install the torch" in fault.remedy
    program.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert not [finding for finding in doctor.devices() if finding.fault]


def test_a_missing_compiler_and_hub_are_notes(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(doctor, "get_session", fail)
    for finding in (doctor.compilation(torch.device("cpu")), doctor.hub()):
        assert finding.verdict == "note" and not finding.fault and finding.remedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert doctor.main(["--offline", "--outputs", str(tmp_path)]) in (0, 1)
    said = capsys.readouterr().out
    assert "GPU 0" in said and "products on GPU 0" in said
