"""Measure what decoding multiplies: the matrices of a model by few rows, in three ways.

This is what `model/inference.py` decides by (fp32 on a CPU): `F.linear` on a matrix row by row and column by column,
and the matrix on the left of the product. Copies of each matrix take turns, more of them than a cache holds.
Microseconds, medians. Prints Markdown or JSON.

    python benchmarks/bench_products.py --depth 4 --vocab-size 8192
    python benchmarks/bench_products.py --depth 12 --vocab-size 65536 --rows 1 8
"""

import argparse
import itertools
import json
import statistics

import torch
import torch.nn.functional as F
from timing import CLOCKS, parse_arguments, timed
from torch import Tensor

from nanochat_pl.config.sizing import shape_for_depth


def by_rows(x: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
    """Multiply x (rows, inputs) by a matrix (outputs, inputs) as a model does."""
    return F.linear(x, matrix)


def by_columns(x: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
    """Compute the same by the copy of the matrix in which its columns lie in one piece each."""
    return F.linear(x, columns)


def on_the_left(x: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
    """Compute the same as the transpose of matrix times x^T."""
    return (matrix @ x.t()).t()


WAYS = {"by rows": by_rows, "by columns": by_columns, "on the left": on_the_left}


def shapes(depth: int, vocab_size: int) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of the matrices of a model by what they are."""
    shape = shape_for_depth(depth)
    width = shape["n_embd"]
    queries = width + 2 * shape["n_kv_head"] * (width // shape["n_head"])
    return {
        "queries, keys and values": (queries, width),
        "out of attention": (width, width),
        "into the MLP": (4 * width, width),
        "out of the MLP": (width, 4 * width),
        "unembedding": (vocab_size, width),
    }


@torch.inference_mode()
def measure(args: argparse.Namespace, outputs: int, inputs: int, rows: int) -> dict[str, float]:
    """Return the microseconds of each way, the ways by turns."""
    copies = max(2, round(args.megabytes * 1e6 / (4 * outputs * inputs)))
    matrices = [torch.randn(outputs, inputs) for _ in range(copies)]
    pairs = itertools.cycle([(matrix, matrix.t().contiguous().t()) for matrix in matrices])
    x, device = torch.randn(rows, inputs), torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(args.turns + 1):
        for name, way in WAYS.items():
            _, took = timed(lambda way=way: [way(x, *next(pairs)) for _ in range(copies)], device, CLOCKS[args.clock])
            if turn:
                seconds[name].append(took / copies)
    return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 16])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--megabytes", type=float, default=50, help="of copies that take turns")
    args = parse_arguments(parser)
    title = {
        "depth": args.depth,
        "vocab_size": args.vocab_size,
        "threads": torch.get_num_threads(),
        "turns": args.turns,
    }
    if not args.json:
        print(", ".join(f"{key} {value:,}" for key, value in title.items()), "\n")
        print(f"| matrix | outputs x inputs | rows | {' | '.join(WAYS)} |\n|---|---|---:|{'---:|' * len(WAYS)}")
    for name, (outputs, inputs) in shapes(args.depth, args.vocab_size).items():
        for rows in args.rows:
            times = measure(args, outputs, inputs, rows)
            if args.json:
                found = {"matrix": name, "shape": [outputs, inputs], "rows": rows, "microseconds": times}
                print(json.dumps(title | found), flush=True)
            else:
                cells = " | ".join(f"{time:,.0f}" for time in times.values())
                print(f"| {name} | {outputs} x {inputs} | {rows} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
