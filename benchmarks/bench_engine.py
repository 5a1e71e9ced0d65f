"""Measure generation: tokens a second of the engine for one and many prompts, against plain cached decoding.

The plain side is what one writes on a first day: fp32 weights, a rectangular cache, `scaled_dot_product_attention`,
one `multinomial` a step. It can decode samples of one prompt or prompts one after another, not different ones at once.
Sides take turns within each round, and ratios are medians over rounds of the rounds' ratios, so that a busy machine
slows all alike. Weights are random, prompts have 20 to 120 tokens, rows are greedy unless said. Prints a table or JSON.

    python benchmarks/bench_engine.py                                                # d4 and d12, both vocabularies
    python benchmarks/bench_engine.py --depth 4 --vocab-size 8192 --rows 8 64 --dtype bfloat16
    python benchmarks/bench_engine.py --threads 1 --clock cpu --turns 3              # on a machine that others use, too
    python benchmarks/bench_engine.py --depth 20 --vocab-size 65536 --rows 1 64 256 --json   # CUDA where present
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timing import CLOCKS, parse_arguments, random_model, timed
from torch import Tensor

from nanochat_pl.engine import Engine
from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.inference import InferenceCopy
from nanochat_pl.runtime import pick_device


class PlainDecoder:
    """Textbook cached decoding of samples of one prompt, with the weights of a GPT."""

    def __init__(self, model: GPT):
        self.model, self.config = model, model.config

    def read(self, idx: Tensor, start: int) -> Tensor:
        """Return the logits (B, V) after tokens (B, T) that continue what the cache holds."""
        config, end = self.config, start + idx.size(1)
        cos, sin = self.model.cos[:, start:end], self.model.sin[:, start:end]

        def norm(x: Tensor) -> Tensor:
            return F.rms_norm(x, (x.size(-1),))

        def rotate(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)

        x = norm(self.model.transformer.wte(idx))
        for layer, block in enumerate(self.model.transformer.h):
            y = norm(x)
            q, k, v = (
                c(y).unflatten(-1, (-1, config.head_dim)) for c in (block.attn.c_q, block.attn.c_k, block.attn.c_v)
            )
            q, k = norm(rotate(q)), norm(rotate(k))
            self.cache[layer, 0, :, :, start:end], self.cache[layer, 1, :, :, start:end] = (
                k.transpose(1, 2),
                v.transpose(1, 2),
            )
            keys, values = self.cache[layer, 0, :, :, :end], self.cache[layer, 1, :, :, :end]
            y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, is_causal=start == 0)
            x = x + block.attn.c_proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp.c_proj(F.relu(block.mlp.c_fc(norm(x))).square())
        return config.softcap * torch.tanh(self.model.lm_head(norm(x)[:, -1]) / config.softcap)

    @torch.inference_mode()
    def generate(
        self, prompt: Sequence[int], samples: int, new_tokens: int, temperature: float, top_k: int | None
    ) -> None:
        config, n, device = self.config, len(prompt), self.model.device
        shape = (config.n_layer, 2, samples, config.n_kv_head, n + new_tokens, config.head_dim)
        self.cache = torch.empty((*shape[:2], 1, *shape[3:]), device=device)
        logits = self.read(torch.tensor([prompt], device=device), 0).expand(samples, -1)
        self.cache = self.cache.repeat(1, 1, samples, 1, 1, 1)
        for step in range(new_tokens):
            if temperature == 0:
                token = logits.argmax(dim=-1, keepdim=True)
            else:
                values, tokens = logits.topk(top_k or config.vocab_size)
                token = tokens.gather(1, torch.multinomial((values / temperature).softmax(-1), 1))
            token.tolist()
            if step < new_tokens - 1:
                logits = self.read(token, n + step)


def time_in_turns(
    sides: dict[str, tuple[int, Callable[[], Any]]], turns: int, clock: Callable[[], float], device: torch.device
) -> dict[str, list[float]]:
    """Return the tokens a second of each side in each turn; a first turn warms up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, (tokens, work) in sides.items():
            _, seconds = timed(work, device, clock)
            if turn:
                rates[name].append(tokens / seconds)
    return rates


def measure(args: argparse.Namespace, depth: int, vocab_size: int) -> dict[str, Any]:
    """Measure one model."""
    device, new = pick_device(), args.tokens
    model, chance = random_model(depth, vocab_size, device), random.Random(0)
    prompts = [[chance.randrange(vocab_size) for _ in range(chance.randint(20, 120))] for _ in range(max(args.rows))]
    plain = PlainDecoder(model)
    sampled = {"temperature": 1.0, "top_k": 50}
    sides: dict[str, tuple[int, Callable[[], Any]]] = {}
    for rows in args.rows:
        if "plain" in args.dtype:
            sides[f"plain, {rows} of one prompt"] = (
                rows * new,
                lambda n=rows: plain.generate(prompts[0], n, new, 0.0, None),
            )
        for dtype in (dtype for dtype in args.dtype if dtype != "plain"):
            engine = Engine(model, (), dtype=dtype)
            ask = engine.generate
            sides[f"{dtype}, {rows} prompts"] = (
                rows * new,
                lambda n=rows, ask=ask: ask(prompts[:n], new, batch_size=n),
            )
            if rows > 1:
                sides[f"{dtype}, {rows} prompts, temperature 1"] = (
                    rows * new,
                    lambda n=rows, ask=ask: ask(prompts[:n], new, 1.0, batch_size=n),
                )
    if args.rollouts:
        if "plain" in args.dtype:
            sides["plain, rollouts: 8 x 128 of one prompt, top 50"] = (
                1024,
                lambda: plain.generate(prompts[0], 8, 128, *sampled.values()),
            )
            sides["plain, 8 prompts one after another"] = (
                8 * new,
                lambda: [plain.generate(prompt, 1, new, 0.0, None) for prompt in (prompts * 8)[:8]],
            )
        for dtype in (dtype for dtype in args.dtype if dtype != "plain"):
            ask = Engine(model, (), dtype=dtype).generate
            sides[f"{dtype}, rollouts: 8 x 128 of one prompt, top 50"] = (
                1024,
                lambda ask=ask: ask(prompts[:1], 128, num_samples=8, **sampled),
            )
            sides[f"{dtype}, 8 prompts one after another"] = (
                8 * new,
                lambda ask=ask: [ask([prompt], new) for prompt in (prompts * 8)[:8]],
            )
    rates = time_in_turns(sides, args.turns, CLOCKS[args.clock], device)
    return {
        "depth": depth,
        "vocab_size": vocab_size,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "tokens_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio_to_plain": ratios(rates),
        "bf16_greedy_agreement": agreement(model, prompts[:8]),
    }


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return each side's rate over that of the plain side with as many rows, as the median over turns."""
    result = {}
    for name, values in rates.items():
        dtype, _, what = name.partition(", ")
        rows = what.partition(" ")[0]
        base = f"plain, {what}" if f"plain, {what}" in rates else f"plain, {rows} of one prompt"
        if dtype != "plain" and base in rates:
            result[name] = statistics.median(ours / theirs for ours, theirs in zip(values, rates[base], strict=True))
    return result


@torch.inference_mode()
def agreement(model: GPT, prompts: Sequence[Sequence[int]]) -> float:
    """Return the share of positions at which bf16 and fp32 predict the same token, on what fp32 generates."""
    exact, rounded = (InferenceCopy(model, dtype).follow() for dtype in (torch.float32, torch.bfloat16))
    rows = Engine(model, (), dtype="float32").generate(prompts, 64)
    same = positions = 0
    for prompt, row in zip(prompts, rows, strict=True):
        idx = torch.tensor([[*prompt, *row.tokens]], device=model.device)[:, :-1]
        equal = (exact(idx).argmax(dim=-1) == rounded(idx).argmax(dim=-1))[0, len(prompt) - 1 :]
        same, positions = same + int(equal.sum()), positions + equal.numel()
    return same / positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[8192, 65536])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dtype", nargs="+", default=["plain", "float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a row")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-rollouts", dest="rollouts", action="store_false")
    args = parse_arguments(parser)
    for depth in args.depth:
        for vocab_size in args.vocab_size:
            result = measure(args, depth, vocab_size)
            if args.json:
                print(json.dumps(result), flush=True)
                continue
            print(f"\nd{depth}, V={vocab_size:,}, {result['device']}, {result['threads']} threads, {args.turns} turns, "
                  f"{args.clock} clock; bf16 greedy agreement {result['bf16_greedy_agreement']:.1%}\n")  # fmt: skip
            print("| side | tok/s, median | ratio to plain |\n|---|---:|---:|")
            for name, rate in result["tokens_per_s"].items():
                ratio = result["ratio_to_plain"].get(name)
                print(f"| {name} | {rate:,.0f} | {'' if ratio is None else f'{ratio:.2f}'} |", flush=True)


if __name__ == "__main__":
    main()
