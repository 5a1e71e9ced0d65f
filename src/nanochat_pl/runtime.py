"""The hardware: device, compute dtype, rank, peak speed.

This is the only module that chooses by the hardware; all others get the results as arguments, but for `training.record`
and `cli.doctor`, which describe it. Nothing is cached, so that a process group that is started later is seen.
"""

import platform
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = [
    "check_fp8",
    "gather",
    "has_fast_bf16",
    "peak_flops",
    "pick_compute_dtype",
    "pick_device",
    "rank",
    "world_size",
]

PEAK_BF16_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s with fp32 accumulation, from the makers' data sheets; a device takes the longest name found in its
own."""


def pick_device(accelerator: str = "auto") -> torch.device:
    """Choose the device by auto, cpu, cuda (or gpu) or mps: `auto` takes cuda, then mps, then cpu.

    Raises:
        ValueError: when the accelerator is unknown or not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [name for name, is_present in available.items() if is_present]
    if accelerator == "auto":
        return torch.device(present[0])
    name = "cuda" if accelerator == "gpu" else accelerator
    if name not in available:
        raise ValueError(f"trainer.accelerator={accelerator!r} is unknown; set it to auto, cpu, cuda, gpu or mps")
    if name not in present:
        raise ValueError(
            f"trainer.accelerator={accelerator!r} was asked for, but this machine and torch {torch.__version__} offer "
            f"only {', '.join(present)}; set trainer.accelerator=auto"
        )
    return torch.device(name)


def has_fast_bf16(device: torch.device | str) -> bool:
    """Return whether matrix products in bfloat16 run in hardware: CUDA from SM80 on, CPUs with AVX512-bf16 or AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    if platform.system() != "Linux":
        return set()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def pick_compute_dtype(name: str, device: torch.device | str, key: str = "trainer.compute_dtype") -> torch.dtype:
    """Choose a dtype of computation: `auto` is bfloat16 where `has_fast_bf16`, else float32.

    Raises:
        ValueError: when the name is not auto, float32 or bfloat16; the error names the config's `key`.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"{key}={name!r} is unknown; set it to auto, float32 or bfloat16")
    is_bfloat16 = name == "bfloat16" or (name == "auto" and has_fast_bf16(device))
    return torch.bfloat16 if is_bfloat16 else torch.float32


def check_fp8(device: torch.device | str, compute_dtype: torch.dtype) -> None:
    """Check that a device multiplies in FP8: CUDA from SM89 on (Ada, Hopper), with activations in bfloat16.

    Raises:
        ValueError: it does not, or this torch has no public function for it.
    """
    device = torch.device(device)
    found = f"the device is {device.type}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < (8, 9):
            found = f"this is {torch.cuda.get_device_name(device)} of {major}.{minor}"
        elif not hasattr(torch.nn.functional, "scaled_mm"):
            found = f"torch {torch.__version__} lacks torch.nn.functional.scaled_mm, which 2.13 has"
        elif compute_dtype != torch.bfloat16:
            found = "trainer.compute_dtype is float32"
        else:
            return
    raise ValueError(
        "trainer.fp8=true needs a GPU of compute capability 8.9 or higher (Ada, Hopper) and computation in bfloat16, "
        f"but {found}; set trainer.fp8=false"
    )


def rank() -> int:
    """Return this process's number among the ranks; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """Return the values that all ranks pass, by rank; they are pickled. All ranks must call this together."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def peak_flops(device: torch.device | str) -> float | None:
    """Return the device's peak dense bf16 FLOP/s, or None where unknown (every CPU)."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return _peak_of_name(torch.cuda.get_device_name(device))


def _peak_of_name(device_name: str) -> float | None:
    known = [name for name in PEAK_BF16_FLOPS if name.lower() in device_name.lower()]
    return PEAK_BF16_FLOPS[max(known, key=len)] if known else None
