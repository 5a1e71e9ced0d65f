"""What several benchmarks share: clocks, the time of one piece of work, and a model with random weights."""

import argparse
import atexit
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""A program that keeps a core busy until its parent has ended, however that came."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the options on clock, threads, other work and output to those of a benchmark, and read the command line."""
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this process, on a busy machine"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--busy", type=int, default=0, help="other processes that keep a core busy each, meanwhile")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for _ in range(args.busy):
        atexit.register(subprocess.Popen([sys.executable, "-c", BUSY]).kill)
    return args


def timed(
    work: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> tuple[Any, float]:
    """Return what `work` returned and the seconds it took, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, clock() - begin


def random_model(depth: int, vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> GPT:
    """Return a random model whose logits differ."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig(sequence_len=1024, vocab_size=vocab_size, **shape_for_depth(depth)), dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.to(device)
