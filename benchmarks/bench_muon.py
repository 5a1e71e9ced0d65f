"""Measure the optimizer step: Newton-Schulz dtypes and batching, torch.optim.Muon, AdamW's implementations.

The variants take turns within each round, so that a busy machine slows all of them alike; the table has the median of
the rounds and the median ratio to the first variant of each block.  Prints Markdown.

    python benchmarks/bench_muon.py --depth 4 --rounds 15
    python benchmarks/bench_muon.py --device cuda --depth 20
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import Parameter

from nanochat_pl.optim import muon as muon_module
from nanochat_pl.optim.muon import Muon
from nanochat_pl.runtime import has_fast_bf16

Step = Callable[[], object]


def measure(variants: dict[str, Step], rounds: int, device: torch.device) -> list[tuple[str, float, float]]:
    """Return (name, median ms, median of the ratios to the first variant of the same round)."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 1):
        for name, step in variants.items():
            wait()
            start = time.perf_counter()
            step()
            wait()
            if i > 0:  # round 0 warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    first = next(iter(times.values()))
    return [
        (name, statistics.median(ms), statistics.median(a / b for a, b in zip(ms, first))) for name, ms in times.items()
    ]


def print_table(title: str, rows: list[tuple[str, float, float]]) -> None:
    print(f"\n**{title}**\n\n| variant | ms a step | ratio |\n| --- | ---: | ---: |")
    for name, ms, ratio in rows:
        print(f"| {name} | {ms:.1f} | {ratio:.2f} |")


def make_matrices(depth: int, width: int, device: torch.device) -> list[Parameter]:
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    params = [Parameter(torch.randn(shape, device=device) * 0.02) for _ in range(depth) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def one_by_one(step: Step) -> Step:
    """Run a Muon step with batches of a single matrix."""

    def run() -> None:
        whole = muon_module.MAX_BATCH_ELEMENTS
        muon_module.MAX_BATCH_ELEMENTS = 1
        try:
            step()
        finally:
            muon_module.MAX_BATCH_ELEMENTS = whole

    return run


def bench_muon(depth: int, width: int, rounds: int, device: torch.device) -> None:
    params = make_matrices(depth, width, device)
    fp32 = Muon(params, ns_dtype="float32")
    bf16 = Muon(params, ns_dtype="bfloat16")
    original = torch.optim.Muon(params, lr=0.02, weight_decay=0.0, adjust_lr_fn="original")
    variants: dict[str, Step] = {
        "ours, float32, batched": fp32.step,
        "ours, float32, one by one": one_by_one(fp32.step),
        "ours, bfloat16, batched": bf16.step,
        "ours, bfloat16, one by one": one_by_one(bf16.step),
        "torch.optim.Muon (bfloat16, one by one)": original.step,
    }
    title = f"Muon, depth {depth}, width {width}: {len(params)} matrices, {sum(p.numel() for p in params):,} parameters"
    print_table(title, measure(variants, rounds, device))


def bench_adamw(vocab: int, width: int, rounds: int, device: torch.device) -> None:
    variants: dict[str, Step] = {}
    for name, flags in (
        ("one by one", {"foreach": False}),
        ("foreach", {"foreach": True}),
        ("fused (ours)", {"fused": True}),
    ):
        params = [Parameter(torch.randn(vocab, width, device=device)) for _ in range(2)]
        for p in params:
            p.grad = torch.randn_like(p)
        variants[name] = torch.optim.AdamW(
            params, lr=1e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, **flags
        ).step
    print_table(f"AdamW, vocabulary {vocab:,}, width {width}: embedding and output", measure(variants, rounds, device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--depth", type=int, default=4, help="layers; the width is 64 times that")
    parser.add_argument("--vocab", type=int, default=65536, help="rows of embedding and output for AdamW")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds; medians are over these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    print(f"torch {torch.__version__}, {name}, {args.threads} threads, fast bfloat16: {has_fast_bf16(device)}")
    bench_muon(args.depth, 64 * args.depth, args.rounds, device)
    bench_adamw(args.vocab, 64 * args.depth, args.rounds, device)


if __name__ == "__main__":
    main()
