"""Measure the loaders alone and print a Markdown table: `python benchmarks/bench_loader.py --text FOLDER`.

FOLDER holds parquet shards with a `text` column (default: fineweb_like below $NANOCHAT_DATA). A tokenizer is trained
on it first. Each line is one pass of `--tokens` tokens; "CPU cores" is the process's CPU time over wall time, so a
machine shared with others shows in it, and "tok/s a core" is what the code costs regardless of the neighbours.
"""

import argparse
import itertools
import os
import platform
import time
from pathlib import Path

import torch

from nanochat_pl.data.conversations import ConversationBatches
from nanochat_pl.data.packing import TokenBatches
from nanochat_pl.data.parquet import list_shards, read_documents
from nanochat_pl.tokenizer import Tokenizer, training_texts


def measure(name: str, batches, tokens: int, reads: str) -> None:
    """Print the throughput of `batches` once it runs evenly."""
    iterator = iter(batches)
    next(iterator)
    wall_s, cpu_s, done = time.perf_counter(), time.process_time(), 0
    while done < tokens:
        done += next(iterator).supervised_tokens
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    iterator.close()
    print(f"| {name} | {reads} | {done / wall_s:,.0f} | {cpu_s / wall_s:.2f} | {done / cpu_s:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ["NANOCHAT_DATA"]) / "fineweb_like" if "NANOCHAT_DATA" in os.environ else None
    parser.add_argument("--text", type=Path, default=default, required=default is None)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=16_000_000)
    args = parser.parse_args()

    shards = list_shards(args.text)
    texts = training_texts(read_documents(shards.train), max_chars=50_000_000, doc_cap_chars=10_000)
    begin_s = time.perf_counter()
    tokenizer = Tokenizer.train(texts, args.vocab_size)
    documents = list(itertools.islice(read_documents(shards.train), 2000))
    print(
        f"Text: {args.text.name}; vocabulary {args.vocab_size:,}, trained in {time.perf_counter() - begin_s:.1f} s; "
        f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores "
        f"({platform.machine()}), torch {torch.__version__}\n"
    )
    print("| loader | threads | tok/s | CPU cores | tok/s a core |\n| --- | --- | ---: | ---: | ---: |")

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    count = sum(len(tokenizer.encode(text)) for text in documents)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    line = f"| {count / wall_s:,.0f} | {cpu_s / wall_s:.2f} | {count / cpu_s:,.0f} |"
    print(f"| the tokenizer alone (to lists) | 1 {line}", flush=True)

    for packing, num_workers in itertools.product(("stream", "bestfit"), (0, 1, 2)):
        batches = TokenBatches(
            shards.train,
            tokenizer,
            batch_rows=16,
            sequence_len=2048,
            micro_batches=2,
            logical_shards=1,
            rank=0,
            world_size=1,
            num_workers=num_workers,
            packing=packing,
        )
        reads = "in the consumer" if num_workers == 0 else f"{num_workers} encode + 1 packs"
        measure(f"TokenBatches {packing}, 2 x (16, 2048)", batches, args.tokens, reads)

    # conversations made of the same text, 1,200 characters each
    rows = [
        {"messages": [{"role": "user", "content": text[:200]}, {"role": "assistant", "content": text[200:1200]}]}
        for text in documents
    ]
    for packed in (True, False):
        batches = ConversationBatches(
            rows,
            tokenizer,
            total_batch_rows=64,
            batch_rows=8,
            sequence_len=2048,
            rank=0,
            world_size=1,
            packed=packed,
            seed=0,
        )
        name = "packed" if packed else "padded"
        measure(
            f"ConversationBatches {name}, 64 rows a step (supervised tokens)", batches, args.tokens // 8, "1 renders"
        )


if __name__ == "__main__":
    main()
