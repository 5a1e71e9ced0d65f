"""`nanochat-pl doctor`: is this machine fit to train on? Half a minute before a job, instead of hours into it.

Each check returns a `Finding`: what was found, and, if that is a fault, what to do. A fault is what would stop a run
or spoil it; what only slows it down, or limits it, is a note.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.config.processes import this_group
from nanochat_pl.paths import worded, write_atomically
from nanochat_pl.runtime import has_fast_bf16, peak_flops, pick_device
from nanochat_pl.training.record import describe_machine

__all__ = ["Finding", "main"]

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "pyarrow")
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192, "mps": 4096}
MATMUL_TIMES = 5
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 5e-2}
"""The largest error of a product of standard normal matrices, by the root of their size; TF32 is float32 here."""
SLOW_SHARE = 0.4
"""Of the data sheet's rate: less says that a GPU is throttled or shared."""
COLLECTIVE_BYTES = 16 * 2**20
COLLECTIVE_SECONDS = 60
DISK_BYTES = 64 * 2**20
LITTLE_SPACE = 10 * 10**9
HUB_SECONDS = 5
WIDTH = 80


@dataclass
class Finding:
    """What one check found.

    Args:
        what: what was looked at.
        found: it in words.
        remedy: what to do about it; empty = nothing.
        fault: it would stop or spoil a run.
        figures: the numbers, for `--json`.
    """

    what: str
    found: str
    remedy: str = ""
    fault: bool = False
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`fault`, `note` or `ok`."""
        return "fault" if self.fault else "note" if self.remedy else "ok"


def main(arguments: list[str]) -> int:
    """Look at everything; return 0, 1 if there is a fault, 2 for a wrong command line."""
    parser = Arguments(
        prog="nanochat-pl doctor",
        description="Check whether this machine is fit to train on: versions, devices, their arithmetic and speed, "
        "compilation, a sum over all devices, the folder of the runs, the hub. The exit code is 1 if there is a fault.",
    )
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), metavar="FOLDER", help="where runs are written"
    )
    parser.add_argument("--offline", action="store_true", help="do not look for the hub")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found, with all figures")
    try:
        options = parser.parse_args(arguments)
        findings = list(examine(options))
        if options.json is not None:
            record = [{**asdict(finding), "verdict": finding.verdict} for finding in findings]
            write_atomically(options.json, json.dumps(record, indent=2) + "\n")
    except (ValueError, OSError) as error:
        return refuse(error)
    room = max(len(finding.what) for finding in findings)
    for finding in findings:
        said = f"{finding.found}; {finding.remedy}" if finding.remedy else finding.found
        first = f"{finding.verdict:<5}  {finding.what:<{room}}  "
        wrapper = textwrap.TextWrapper(WIDTH, first, " " * len(first), break_long_words=False, break_on_hyphens=False)
        print(wrapper.fill(said))  # a path is never cut: it may be copied
    faults = sum(finding.fault for finding in findings)
    print(f"{faults} {'fault' if faults == 1 else 'faults'}" if faults else "fit to train on")
    return 1 if faults else 0


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Yield the findings, the quick ones first."""
    yield versions()
    yield processes()
    yield from devices()
    device = pick_device()
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    for index in range(count):
        yield arithmetic(torch.device(device.type, index) if device.type == "cuda" else device)
    yield compilation(device)
    yield collective(device, max(count, 2) if device.type == "cpu" else count)
    yield disk(options.outputs)
    if not options.offline:
        yield hub()


def versions() -> Finding:
    """Return the versions that matter when somebody asks why a run differs."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return Finding("versions", ", ".join(f"{name} {number}" for name, number in found.items()), figures=found)


def processes() -> Finding:
    """Return who started this process, and what Slurm has given to its job."""
    group = this_group()
    names = ("JOB_ID", "JOB_NUM_NODES", "NTASKS", "CPUS_ON_NODE", "GPUS_ON_NODE")
    job = {name.lower(): value for name in names if (value := os.environ.get(f"SLURM_{name}"))}
    said = f"started by {group.launcher}: {group}" if group.size > 1 else "this process alone"
    if job:
        said += f", in job {job.get('job_id')} of Slurm"
    return Finding("processes", said, figures={"launcher": group.launcher, "per_node": group.per_node, "slurm": job})


def devices() -> Iterator[Finding]:
    """Yield the processor with its memory, and each GPU with what is free of its own."""
    machine = describe_machine()
    memory = machine["memory_bytes"]
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    yield Finding("processor", f"{machine['cpu']}, {machine['cpu_count']} cores{size}", figures=machine)
    seen = _driver_gpus()
    if seen and not torch.cuda.is_available():
        yield Finding(
            "GPUs", f"the driver has {len(seen)}, torch {torch.__version__} uses none",
            "install the torch whose CUDA version the driver supports (a wheel for CPUs has none)", fault=True,
        )  # fmt: skip
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        used = total - free > 0.1 * total
        yield Finding(
            f"GPU {index}",
            f"{torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {major}.{minor}",
            "another process uses it; wait for that one, or choose others by CUDA_VISIBLE_DEVICES" if used else "",
            figures={"free_bytes": free, "total_bytes": total, "capability": [major, minor]},
        )


def _driver_gpus() -> list[str]:
    """Return the GPUs that the driver lists; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.startswith("GPU ")] if done.returncode == 0 else []


def arithmetic(device: torch.device) -> Finding:
    """Multiply matrices in float32 and bfloat16: is the product right, and how fast does it come?"""
    name = f"GPU {device.index}" if device.type == "cuda" else {"cpu": "processor"}.get(device.type, device.type)
    size = MATMUL_SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    rows = 64  # of the product, compared with float64 on the processor
    exact = a[:rows].double() @ b.double()
    figures: dict[str, Any] = {}
    wrong = []
    for dtype, tolerance in TOLERANCE.items():
        x, y = a.to(device, dtype), b.to(device, dtype)
        seconds = _seconds(lambda x=x, y=y: x @ y, device)
        error = float(((x @ y)[:rows].cpu().double() - exact).abs().max()) / size**0.5
        short = str(dtype).removeprefix("torch.")
        figures |= {f"{short}_flops": 2 * size**3 / seconds, f"{short}_error": error}
        if not error < tolerance:
            wrong.append(short)
    rates = ", ".join(f"{short} {_rate(figures[f'{short}_flops'])}" for short in ("float32", "bfloat16"))
    what = f"products on {name}"
    if wrong:
        return Finding(what, f"{rates}; {' and '.join(wrong)} wrong", "the device computes wrongly: do not train on it",
                       fault=True, figures=figures)  # fmt: skip
    peak = peak_flops(device)
    if peak is not None:
        share = figures["bfloat16_flops"] / peak
        figures["bfloat16_share_of_peak"] = share
        slow = "slower than it should be: throttled, or shared with another process" if share < SLOW_SHARE else ""
        return Finding(what, f"{rates} ({share:.0%} of its data sheet)", slow, figures=figures)
    figures["bfloat16_in_hardware"] = has_fast_bf16(device)
    note = "" if figures["bfloat16_in_hardware"] else "no bfloat16 in hardware: trainer.compute_dtype=auto is float32"
    return Finding(what, rates, note, figures=figures)


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Return the median time of an action, after one run to warm up."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    times = []
    for _ in range(1 + MATMUL_TIMES):
        wait()
        begun = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.0f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:,.0f} GFLOP/s"


def compilation(device: torch.device) -> Finding:
    """Compile a small function, as `trainer.compile=auto` does before it decides."""
    begun = time.perf_counter()
    try:
        compiled = torch.compile(lambda x: (x.exp() * 2).sum(), dynamic=False)
        right = torch.allclose(compiled(torch.ones(64, device=device)).cpu(), torch.tensor(128 * 2.718281828))
    except Exception as error:  # whatever the compiler's tool chain raises
        first = (str(error).splitlines() or [type(error).__name__])[0][:60]
        return Finding("compilation", f"fails ({first})", "runs are slower, trainer.compile=auto trains without; a C++ "
                       "compiler and Python's headers are needed")  # fmt: skip
    seconds = time.perf_counter() - begun
    if not right:
        return Finding("compilation", "gives another result", "train with trainer.compile=false", fault=True)
    return Finding("compilation", f"works, {seconds:.1f} s", figures={"seconds": seconds})


def collective(device: torch.device, count: int) -> Finding:
    """Sum over all devices, a process each, as gradients are; on a CPU over two processes."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    what = f"sum over {count} {'GPUs' if device.type == 'cuda' else 'processes'}"
    if count < 2:
        return Finding("sum over devices", "there is one")
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _sum_with_others, (count, backend, folder), nprocs=count, join=False, start_method="spawn"
        )
        assert context is not None
        ended, deadline = False, time.monotonic() + 2 * COLLECTIVE_SECONDS
        try:
            while not ended and time.monotonic() < deadline:
                ended = context.join(timeout=1)
        except Exception as error:  # one of them failed, and has said why in a file or not at all
            said = Path(folder) / "error.txt"
            why = said.read_text() if said.exists() else str(error).splitlines()[0]
            return Finding(what, f"fails ({why[:80]})", f"no run of several devices works; {backend} must connect them",
                           fault=True)  # fmt: skip
        if not ended:
            for process in context.processes:
                process.kill()
            return Finding(what, f"no answer in {2 * COLLECTIVE_SECONDS} s", f"no run of several devices works; "
                           f"{backend} must connect them", fault=True)  # fmt: skip
        result = json.loads((Path(folder) / "result.json").read_text())
    rate = f"{result['bytes_per_s'] / 1e9:.2f} GB/s"
    if not result["right"]:
        return Finding(what, f"{rate}, and wrong", "the connection of the devices is broken: do not train on it",
                       fault=True, figures=result)  # fmt: skip
    return Finding(what, f"{rate} by {backend}", figures=result)


def _sum_with_others(rank: int, count: int, backend: str, folder: str) -> None:
    """Take part in the sum as one process; the first writes what came out."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    torch.set_num_threads(1)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        wait = timedelta(seconds=COLLECTIVE_SECONDS)
        dist.init_process_group(backend, f"file://{folder}/meet", rank=rank, world_size=count, timeout=wait)
        values = torch.full((COLLECTIVE_BYTES // 4,), float(rank + 1), device=device)
        dist.all_reduce(values)
        right = bool((values == count * (count + 1) / 2).all())
        seconds = _seconds(lambda: dist.all_reduce(values), device)
        # Each process sends and receives 2 (n - 1) / n of the tensor, whatever the algorithm.
        rate = 2 * (count - 1) / count * COLLECTIVE_BYTES / seconds
        answers: list[Any] = [None] * count
        dist.all_gather_object(answers, right)
        if rank == 0:
            Path(folder, "result.json").write_text(json.dumps({"right": all(answers), "bytes_per_s": rate}))
        dist.destroy_process_group()
    except Exception as error:
        Path(folder, "error.txt").write_text((str(error).splitlines() or [type(error).__name__])[0])
        raise


def disk(folder: Path) -> Finding:
    """Write a file where runs would be written, and read it back."""
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    content = os.urandom(DISK_BYTES)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor") as file:
            begun = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter() - begun
            file.seek(0)
            right = file.read() == content
        free = shutil.disk_usage(existing).free
    except OSError as error:
        why = worded(error, str(existing)) or error.strerror or "it cannot be written"
        return Finding("folder of runs", f"{folder}: {why}", "give another one: outputs=<folder>", fault=True)
    figures = {"write_bytes_per_s": DISK_BYTES / written, "free_bytes": free}
    found = f"{folder}: writes {figures['write_bytes_per_s'] / 1e6:,.0f} MB/s, {free / 1e9:,.0f} GB free"
    if not right:
        return Finding("folder of runs", f"{found}; gives back something else", "use another disk", True, figures)
    little = (
        "little space for checkpoints; stage.keep_checkpoints says how many a run keeps" if free < LITTLE_SPACE else ""
    )
    return Finding("folder of runs", found, little, figures=figures)


def hub() -> Finding:
    """Ask the hub for a sign of life."""
    begun = time.perf_counter()
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:  # whatever its client raises
        return Finding("hub", "not reached", "bring data and models before the job, and run it with offline=true")
    return Finding("hub", f"answers, {time.perf_counter() - begun:.1f} s")
