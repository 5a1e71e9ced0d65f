"""Measure a forward and backward pass of our model against a plain textbook one: speed, chunk sizes, peak memory.

`PlainGPT` is what one writes on a first day: nn.Linear, the logits of the whole batch, softcap, F.cross_entropy. Its
parameters bear the same names, so that both sides run on equal weights, and their losses are compared before anything
is timed. Sides take turns within one process and ratios are medians of the turns' ratios, so that a busy machine slows
both; peak memory is the resident set of a process that runs one side alone. Prints Markdown.

    python benchmarks/bench_loss.py                        # speed at both vocabularies, then memory
    python benchmarks/bench_loss.py --only chunks          # the chunk sizes behind loss.CHUNK_ELEMENTS
    python benchmarks/bench_loss.py --threads 1 --clock cpu    # ratios on a machine that others use, too
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import CLOCKS
from torch import Tensor, nn

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.loss import chunked_cross_entropy
from nanochat_pl.runtime import has_fast_bf16, pick_device

Side = Callable[[Tensor, Tensor], Tensor]
clock = time.perf_counter  # set by --clock


class PlainAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.n_head
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            setattr(self, name, nn.Linear(config.n_embd, config.n_embd, bias=False))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)

        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.c_q, self.c_k, self.c_v))
        q, k = (F.rms_norm(rotate(y), (y.size(-1),)) for y in (q, k))
        y = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)), is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class PlainMLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class PlainBlock(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn, self.mlp = PlainAttention(config), PlainMLP(config)


class PlainGPT(nn.Module):
    """The classic model without any of our care for memory."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(config.vocab_size, config.n_embd), "h": blocks})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        ours = GPT(config)
        self.cos, self.sin = ours.cos[:, : config.sequence_len], ours.sin[:, : config.sequence_len]

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        def norm(y: Tensor) -> Tensor:
            return F.rms_norm(y, (y.size(-1),))

        x = norm(self.transformer["wte"](idx))
        for block in self.transformer["h"]:
            x = x + block.attn(norm(x), self.cos, self.sin)
            x = x + block.mlp(norm(x))
        logits = self.lm_head(norm(x))
        logits = 15 * torch.tanh(logits / 15)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten(), ignore_index=-1)


def make_config(args: argparse.Namespace, vocab_size: int) -> GPTConfig:
    return GPTConfig(sequence_len=args.sequence_len, vocab_size=vocab_size, **shape_for_depth(args.depth))


def make_side(name: str, config: GPTConfig) -> Side:
    """Build one side: `plain` or `ours`, then `eager` or `compiled`, then `fp32` or `bf16`."""
    kind, mode, precision = name.split()
    device = pick_device()
    torch.manual_seed(42)
    ours = GPT(config, torch.bfloat16 if precision == "bf16" else torch.float32).to(device)
    ours.init_weights()
    with torch.no_grad():  # away from the zeros of the start, where many products would be zero
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model: nn.Module = ours
    if kind == "plain":
        model = PlainGPT(config).to(device)
        model.load_state_dict(ours.state_dict())
        model.cos, model.sin = model.cos.to(device), model.sin.to(device)
    if mode == "compiled":
        model.compile(dynamic=False)
    return model


def make_batch(config: GPTConfig, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, config.sequence_len + 1), generator=generator).to(pick_device())
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def pass_seconds(side: Side, batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Run one forward and backward; return its time in seconds and its loss."""
    begin = clock()
    loss = side(*batch)
    loss.backward()
    value = loss.item()
    if loss.is_cuda:
        torch.cuda.synchronize()
    seconds = clock() - begin
    side.zero_grad(set_to_none=True)  # type: ignore[attr-defined]
    return seconds, value


def take_turns(sides: dict[str, Side], batch: tuple[Tensor, Tensor], turns: int) -> dict[str, list[float]]:
    """Time every side `turns` times, one after the other; all losses must equal the first side's."""
    losses = {name: [pass_seconds(side, batch)[1] for _ in range(2)][-1] for name, side in sides.items()}
    expected = next(iter(losses.values()))
    for name, value in losses.items():
        if abs(value - expected) > (5e-2 if "bf16" in name else 1e-3):
            raise SystemExit(f"{name} has loss {value}, {next(iter(sides))} has {expected}: not the same computation")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            times[name].append(pass_seconds(side, batch)[0])
    return times


def print_times(times: dict[str, list[float]], tokens: int) -> None:
    base = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        print(
            f"| {name} | {statistics.median(seconds) * 1e3:,.0f} | {tokens / statistics.median(seconds):,.0f} ", end=""
        )
        print(f"| {ratio:.2f} |", flush=True)


def bench_speed(args: argparse.Namespace) -> None:
    for vocab_size in args.vocab_sizes:
        config = make_config(args, vocab_size)
        tokens = args.rows * args.sequence_len
        print(f"\nd{args.depth}, {args.rows} x {args.sequence_len} tokens, vocabulary {vocab_size:,}, ", end="")
        print(f"{torch.get_num_threads()} threads, {args.clock} time, torch {torch.__version__}\n")
        print("| forward + backward | ms | tok/s | ratio |\n| --- | ---: | ---: | ---: |")
        names = ["plain eager fp32", "ours eager fp32", "plain compiled fp32", "ours compiled fp32"]
        if has_fast_bf16(pick_device()):
            names += ["ours eager bf16", "ours compiled bf16"]
        names = args.sides or [name for name in names if args.compiled or "compiled" not in name]
        sides = {name: make_side(name, config) for name in names}
        print_times(take_turns(sides, make_batch(config, args.rows), args.turns), tokens)
        torch.compiler.reset()


def bench_chunks(args: argparse.Namespace) -> None:
    """Time the loss alone, on hidden states, for several chunk sizes."""
    device = pick_device()
    dtypes = [torch.float32] + ([torch.bfloat16] if has_fast_bf16(device) else [])
    for vocab_size in args.vocab_sizes:
        config = make_config(args, vocab_size)
        _, targets = make_batch(config, args.rows)
        weight = torch.randn(vocab_size, config.n_embd, device=device).requires_grad_()
        for dtype in dtypes:
            hidden = torch.randn(*targets.shape, config.n_embd, device=device, dtype=dtype).requires_grad_()

            def measure(chunk: int, hidden: Tensor = hidden, weight: Tensor = weight, targets: Tensor = targets):
                begin = clock()
                chunked_cross_entropy(
                    hidden, weight, targets, vocab_size=weight.size(0), softcap=15.0, chunk_tokens=chunk
                ).backward()
                if weight.is_cuda:
                    torch.cuda.synchronize()
                hidden.grad = weight.grad = None
                return clock() - begin

            times: dict[str, list[float]] = {f"{chunk} tokens": [] for chunk in [targets.numel(), *args.chunks]}
            for turn in range(args.turns + 1):
                for name, seconds in times.items():
                    elapsed = measure(int(name.split()[0]))
                    if turn:
                        seconds.append(elapsed)
            print(f"\nLoss alone, vocabulary {vocab_size:,}, {dtype}, eager\n")
            print("| chunk | ms | tok/s | ratio |\n| --- | ---: | ---: | ---: |")
            print_times(times, targets.numel())


def bench_memory(args: argparse.Namespace) -> None:
    vocab_size, rows = max(args.vocab_sizes), args.memory_rows
    print(f"\nPeak memory, d{args.depth}, {rows} x {args.sequence_len} tokens, vocabulary {vocab_size:,}\n")
    print("| forward + backward | peak MB | of this the pass | ratio |\n| --- | ---: | ---: | ---: |", flush=True)
    first = None
    names = ["plain eager fp32", "ours eager fp32"] + (["ours compiled fp32"] if args.compiled else [])
    names += ["ours eager bf16"] if has_fast_bf16(pick_device()) else []
    for name in names:
        command = [sys.executable, __file__, "--side", name, "--depth", args.depth, "--rows", rows]
        command += ["--sequence-len", args.sequence_len, "--vocab-sizes", vocab_size]
        output = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
        before, peak = (float(number) for number in output.split()[-2:])
        first = first or peak
        print(f"| {name} | {peak:,.0f} | {peak - before:,.0f} | {peak / first:.2f} |", flush=True)


def run_side_alone(args: argparse.Namespace) -> None:
    """Run one side twice and print the peak memory in MB before the first pass and after the last."""

    def peak_mb() -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # kilobytes on Linux

    config = make_config(args, args.vocab_sizes[0])
    side, batch = make_side(args.side, config), make_batch(config, args.rows)
    before = peak_mb()
    for _ in range(2):
        pass_seconds(side, batch)
    print(before, peak_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=["speed", "chunks", "memory"], help="measure one thing; default speed, memory"
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch (default 4)")
    parser.add_argument("--sequence-len", type=int, default=512)
    parser.add_argument("--memory-rows", type=int, default=8, help="rows when measuring memory (default 8)")
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[8192, 65536])
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--turns", type=int, default=11, help="timed passes of each side (default 11)")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--sides", nargs="+", help="only these, such as 'ours compiled bf16'; the first is ratio 1.00")
    parser.add_argument("--threads", type=int, help="threads torch uses (default: its own choice)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or processor time of all threads")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side:
        return run_side_alone(args)
    if args.only in (None, "speed"):
        bench_speed(args)
    if args.only == "chunks":
        bench_chunks(args)
    if args.only in (None, "memory"):
        bench_memory(args)
    return None


if __name__ == "__main__":
    main()
