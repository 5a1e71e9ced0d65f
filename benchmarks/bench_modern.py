"""Measure what the tricks of 2026 cost: an optimizer step with each alone and with all, and attention with a window.

A step of each variant comes right after one of the classic recipe, and ratios are medians over rounds of its time over
that one's, so that a busy machine slows both. Weights are random, rows are whole documents, everything is eager. Prints
Markdown or JSON.

    python benchmarks/bench_modern.py                                  # d4, 4 rows of 512 tokens, vocabulary 8,192
    python benchmarks/bench_modern.py --threads 1 --clock cpu          # on a machine that others use, too
    python benchmarks/bench_modern.py --only windows --dtype bfloat16
    python benchmarks/bench_modern.py --sweep ablation --threads 1 --json > seconds.json   # each variant of a sweep
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timing import CLOCKS, parse_arguments, timed

from nanochat_pl.config.checks import model_config
from nanochat_pl.config.command_line import CommandLine
from nanochat_pl.config.compose import compose_jobs
from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.model.attention import causal_attention
from nanochat_pl.model.config import MODERN, GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, clip_gradients, set_schedule
from nanochat_pl.runtime import pick_device

OPTIMIZERS = {
    "orthogonalizer=polar_express": {"orthogonalizer": "polar_express"},
    "row_equilibration": {"row_equilibration": True},
    "frobenius_snap": {"frobenius_snap": True},
    "second_moment_beta": {"second_moment_beta": 0.9},
    "cautious weight decay": {"matrix_weight_decay": 0.1, "cautious_weight_decay": True},
}
ALL_OPTIMIZERS = {name: value for settings in OPTIMIZERS.values() for name, value in settings.items()}


def training_step(args: argparse.Namespace, config: GPTConfig, cfg: OptimConfig) -> Callable[[], None]:
    """Return one whole step: forward, backward, clipping, optimizers."""
    device = pick_device(args.device)
    model = GPT(config, getattr(torch, args.dtype)).to(device)
    model.init_weights()
    optimizers = build_optimizers(model.param_roles(), config.n_embd, cfg)
    ids = torch.randint(config.vocab_size, (args.rows, config.sequence_len + 1), device=device)

    def step() -> None:
        set_schedule(optimizers, 10, 100, cfg)
        model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).backward()
        clip_gradients(model.parameters(), cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def tricks(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return a step of the classic recipe, of each trick alone, and of all."""
    shape = {"sequence_len": args.sequence_len, "vocab_size": args.vocab_size, **shape_for_depth(args.depth)}

    def step(model: Mapping[str, Any], optim: Mapping[str, Any]) -> Callable[[], None]:
        return training_step(args, GPTConfig(**shape, **model), OptimConfig(**optim))

    return {
        "classic": step({}, {}),
        **{f"model.{name}={value}": step({name: value}, {}) for name, value in (MODERN | {"short_conv": 4}).items()},
        **{f"optim: {name}": step({}, settings) for name, settings in OPTIMIZERS.items()},
        "model: all of 2026": step(MODERN, {}),
        "model and optim: all of 2026": step(MODERN, ALL_OPTIMIZERS),
    }


def variants(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return a step of each variant of a sweep, `classic` among them, with the shapes and settings of its runs."""
    runs = {
        job.run.variant: job.checked
        for job in compose_jobs("train", CommandLine.parse([f"sweep={args.sweep}", "seed=1"]))
    }
    args.rows = runs["classic"].stage.device_batch
    return {
        name: training_step(args, model_config(cfg, args.vocab_size), cfg.optim)
        for name, cfg in sorted(runs.items(), key=lambda item: item[0] != "classic")
    }


def attention(args: argparse.Namespace, window: int | None) -> Callable[[], None]:
    """Return forward and backward of one attention."""
    shape = (args.rows, args.depth // 2, args.sequence_len, 128)
    q, k, v = (
        torch.randn(shape, device=pick_device(args.device), dtype=getattr(torch, args.dtype), requires_grad=True)
        for _ in range(3)
    )
    return lambda: causal_attention(q, k, v, window).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("steps", "windows"))
    parser.add_argument("--sweep", help="time the variants of this sweep, in place of the tricks")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--sequence-len", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    args = parse_arguments(parser)
    work: dict[str, Callable[[], None]] = {}
    if args.only != "windows":
        work = variants(args) if args.sweep else tricks(args)
    groups = {"a step": list(work)} if work else {}
    if args.only != "steps" and not args.sweep:
        short = -(-args.sequence_len // 512) * 128
        work |= {"every token": attention(args, None), f"window of {short}": attention(args, short)}
        groups["attention alone"] = list(work)[-2:]
    seconds: dict[str, list[float]] = {name: [] for name in work}
    ratios: dict[str, list[float]] = {name: [] for name in work}
    device, clock = pick_device(args.device), CLOCKS[args.clock]
    for round_number in range(args.rounds + 1):
        for base, *others in groups.values():
            for name in others:
                before, took = (timed(work[which], device, clock)[1] for which in (base, name))
                if round_number:  # the first warms up
                    seconds[base].append(before)
                    seconds[name].append(took)
                    ratios[name].append(took / before)
    found = {
        name: {"ms": 1000 * statistics.median(seconds[name]), "ratio": statistics.median(ratios[name] or [1.0])}
        for name in work
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    size = f"d{args.depth}, V={args.vocab_size:,}, {args.rows} rows of {args.sequence_len}"
    if args.sweep:
        size = f"sweep={args.sweep}, V={args.vocab_size:,}, {args.rows} rows"
    print(f"{size}, {args.dtype}, {args.clock} clock\n")
    for title, names in groups.items():
        print(f"| {title} | ms, median | ratio |\n|---|---:|---:|")
        for name in names:
            print(f"| {name} | {found[name]['ms']:.1f} | {found[name]['ratio']:.2f} |")
        print()


if __name__ == "__main__":
    main()
