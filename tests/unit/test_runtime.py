"""What the machine is asked, and how its lacks are reported."""

import pytest
import torch

from nanochat_pl import runtime


def test_auto_takes_the_best_device_there_is():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert runtime.pick_device().type == best
    assert runtime.pick_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
def test_an_absent_accelerator_is_refused(accelerator):
    with pytest.raises(ValueError, match=rf"trainer.accelerator='{accelerator}'.*only .*cpu; set trainer.accelerator"):
        runtime.pick_device(accelerator)


def test_an_unknown_accelerator_is_refused():
    with pytest.raises(ValueError, match=r"trainer.accelerator='tpu' is unknown"):
        runtime.pick_device("tpu")


def test_compute_dtype_follows_the_hardware(monkeypatch):
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(runtime, "has_fast_bf16", lambda device, fast=fast: fast)
        assert runtime.pick_compute_dtype("auto", "cpu") == expected
        assert runtime.pick_compute_dtype("float32", "cpu") == torch.float32
        assert runtime.pick_compute_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(ValueError, match=r"trainer.compute_dtype='half'"):
        runtime.pick_compute_dtype("half", "cpu")


@pytest.mark.parametrize(("flags", "fast"), [({"avx2"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)])
def test_fast_bf16_on_a_cpu_is_read_from_its_flags(monkeypatch, flags, fast):
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: flags)
    assert runtime.has_fast_bf16("cpu") is fast
    assert runtime.has_fast_bf16("mps") is False


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_fast_bf16_on_cuda_begins_with_sm80(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runtime.has_fast_bf16("cuda") is fast


def test_without_a_process_group_there_is_one_rank():
    assert (runtime.rank(), runtime.world_size()) == (0, 1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", None),
    ],
)
def test_peak_flops_are_found_by_the_longest_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert runtime.peak_flops("cuda") == peak


def test_the_peak_of_a_cpu_is_unknown():
    assert runtime.peak_flops("cpu") is None
