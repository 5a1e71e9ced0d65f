"""Measure supervised tokens a second of fine-tuning: conversations packed into rows against one padded row each.

All sides take whole optimizer steps on the very same conversations, in turns within one process; a ratio is the median
of the rounds' ratios, so that a busy machine slows all of them. "padded" is `stage.packed=false`, rows as long as the
longest of the step; "padded, trimmed" makes each micro-batch only as long as its own longest, as nanochat (2025-11).
Real questions with `--data FOLDER` (ScienceQA's parquet files), else the embedded world's. Prints Markdown.

    python benchmarks/bench_sft.py
    python benchmarks/bench_sft.py --data "$NANOCHAT_DATA/scienceqa" --depth 4 --sequence-len 2048
"""

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.data.batch import IGNORE, Batch
from nanochat_pl.data.conversations import ConversationBatches
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, set_schedule
from nanochat_pl.runtime import pick_compute_dtype, pick_device
from nanochat_pl.tasks.scienceqa import ScienceQA
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.world.write import write_microworld

SIDES = ["packed", "padded", "padded, trimmed"]


class Side:
    """One layout: a model with its optimizers and an endless iterator of batches."""

    def __init__(self, batches: ConversationBatches, config: GPTConfig, trimmed: bool) -> None:
        self.trimmed = trimmed
        self.device = pick_device()
        torch.manual_seed(42)
        self.model = GPT(config, pick_compute_dtype("auto", self.device))
        self.model.init_weights()
        self.model.to(self.device)
        self.optim = OptimConfig(init_lr_frac=0.02)
        self.optimizers = build_optimizers(self.model.param_roles(), config.n_embd, self.optim)
        self.batches = iter(batches)
        self.count = self.computed = 0

    def __call__(self) -> tuple[float, Batch]:
        """Take one optimizer step; return its seconds (rendering happens in another thread) and its batch."""
        begin_s = time.perf_counter()
        batch = next(self.batches).to(self.device)
        set_schedule(self.optimizers, self.count, 1000, self.optim)
        for a in range(len(batch.inputs)):
            positions = None if batch.positions is None else batch.positions[a]
            inputs, targets = batch.inputs[a], batch.targets[a]
            if self.trimmed:  # a conversation's last target is supervised
                longest = int((targets != IGNORE).any(dim=0).nonzero().max()) + 1
                inputs, targets = inputs[:, :longest], targets[:, :longest]
            self.computed += inputs.numel()
            loss = self.model(inputs, targets, positions, reduction="sum")
            (loss / max(batch.supervised_tokens, 1)).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.count += 1
        return time.perf_counter() - begin_s, batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with ScienceQA's train.parquet")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--sequence-len", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=32, help="conversations of a step")
    parser.add_argument("--device-batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            write_microworld(Path(folder))
        rows = ScienceQA(args.data or Path(folder) / "scienceqa", "train")
    texts = [message["content"] for row in itertools.islice(rows, 2000) for message in row["messages"]]
    tokenizer = Tokenizer.train(texts, args.vocab_size)
    config = GPTConfig(sequence_len=args.sequence_len, vocab_size=tokenizer.vocab_size, **shape_for_depth(args.depth))
    sides = {}
    for name in SIDES:
        batches = ConversationBatches(
            rows,
            tokenizer,
            total_batch_rows=args.rows,
            batch_rows=args.device_batch,
            sequence_len=args.sequence_len,
            rank=0,
            world_size=1,
            packed=name == "packed",
            seed=0,
        )
        sides[name] = Side(batches, config, trimmed=name == "padded, trimmed")
        sides[name]()  # the first step allocates
        sides[name].computed = 0
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    supervised = dict.fromkeys(sides, 0)
    for number in range(args.rounds):
        for name in SIDES[:: -1 if number % 2 else 1]:
            took_s, batch = sides[name]()
            seconds[name].append(took_s)
            supervised[name] += batch.supervised_tokens
    assert len(set(supervised.values())) == 1, "all sides hold the same targets"

    source = args.data.name if args.data else "embedded world"
    print(
        f"{source}, depth {args.depth}, vocabulary {tokenizer.vocab_size:,}, {args.rows} conversations a step, "
        f"device_batch {args.device_batch}, sequence_len {args.sequence_len}, {args.rounds} rounds; "
        f"{sides['packed'].device}, {platform.machine()}, torch {torch.__version__}\n"
    )
    print(
        "| layout | supervised tok/s | tokens computed for one supervised | s a step (median) | packed is faster by |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in sides:
        rate = supervised[name] / sum(seconds[name])
        share = sides[name].computed / supervised[name]
        ratio = statistics.median(slow / fast for slow, fast in zip(seconds[name], seconds["packed"]))
        print(f"| {name} | {rate:,.0f} | {share:.1f} | {statistics.median(seconds[name]):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
