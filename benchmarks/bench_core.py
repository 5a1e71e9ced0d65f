"""Measure CORE: questions a second of `evaluate_core`, against the plain way, on the questions of a bundle.

The plain side takes one question at a time: its prompts encoded whole, all its choices in one padded forward, logits
and losses of every token. Sides take turns task by task, and ratios are medians over turns of the turns' ratios, so
that a busy machine slows both alike. Weights are random. Prints a table by task, by type and overall (or JSON), and how
far the two sides' mean losses lie apart; questions they answer differently are listed.

    python benchmarks/bench_core.py --bundle data/eval_bundle                          # d4, 12 questions of each task
    python benchmarks/bench_core.py --bundle data/eval_bundle --tasks piqa squad --items 3 --turns 1
    python benchmarks/bench_core.py --bundle data/eval_bundle --threads 1 --clock cpu  # on a machine others use, too
    python benchmarks/bench_core.py --bundle data/eval_bundle --depth 20 --vocab-size 65536 --dtype bfloat16 --json
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import CLOCKS, parse_arguments, random_model, timed

from nanochat_pl.eval.core import evaluate_core, make_rows
from nanochat_pl.eval.core_tasks import CoreTask, load_bundle, make_prompts
from nanochat_pl.model.gpt import GPT
from nanochat_pl.runtime import pick_device
from nanochat_pl.tokenizer import Tokenizer

OURS, PLAIN = "ours", "plain"

Answer = tuple[list[float], bool]
"""Mean loss of each choice, and whether the answer is right."""


@torch.inference_mode()
def answer_plainly(model: GPT, tokenizer: Tokenizer, task: CoreTask, items: int) -> list[Answer]:
    """Answer the questions of one task, one after another."""
    answers: list[Answer] = []
    sample = task.sample(items)
    for index, example in enumerate(sample):
        texts = make_prompts(task, sample, index).texts
        rows = make_rows(task.type, tokenizer.encode(texts, prepend=tokenizer.bos_id))
        ids = torch.full((len(rows), max(len(row.ids) for row in rows)), tokenizer.bos_id)
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row.ids)] = torch.tensor(row.ids)
        ids = ids.to(model.device)
        logits = model(ids)
        losses = F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten(), reduction="none").view(ids.shape)
        predictions = logits.argmax(dim=-1)
        spans = [slice(row.start - 1, len(row.ids) - 1) for row in rows]
        means = [own[span].mean().item() for own, span in zip(losses, spans, strict=True)]
        if task.type == "language_modeling":
            correct = predictions[0, spans[0]].tolist() == list(rows[0].ids)[rows[0].start :]
        else:
            correct = means.index(min(means)) == example["gold"]
        answers.append((means, correct))
    return answers


def texts_of(tasks: Sequence[CoreTask]) -> list[str]:
    """Return the texts to train a tokenizer on: every text of every example."""
    fields = [value for task in tasks for example in task.examples for value in example.values()]
    return [str(text) for value in fields for text in (value if isinstance(value, list) else [value])]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one model on all chosen tasks."""
    bundle = load_bundle(args.bundle)
    unknown = set(args.tasks or ()) - {task.label for task in bundle}
    if unknown:
        raise SystemExit(f"no {', '.join(sorted(unknown))} in the bundle; it has {', '.join(t.label for t in bundle)}")
    tasks = [task for task in bundle if not args.tasks or task.label in args.tasks]
    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else Tokenizer.train(texts_of(bundle), args.vocab_size)
    device = pick_device()
    model = random_model(args.depth, tokenizer.vocab_size, device, getattr(torch, args.dtype))
    answers: dict[str, dict[str, list[Answer]]] = {OURS: {}, PLAIN: {}}
    seconds: dict[str, dict[str, list[float]]] = {OURS: {}, PLAIN: {}}
    at_once: list[float] = []
    clock = CLOCKS[args.clock]

    def ours(chosen: Sequence[CoreTask]) -> Any:
        return evaluate_core(
            model, tokenizer, chosen, max_per_task=args.items, max_batch_tokens=args.max_batch_tokens
        ).records

    for turn in range(args.turns + 1):  # a first turn warms up
        for task in tasks:
            records, own = timed(partial(ours, [task]), device, clock)
            plain, theirs = timed(partial(answer_plainly, model, tokenizer, task, args.items), device, clock)
            answers[OURS][task.label] = [(record["losses"], record["correct"]) for record in records]
            answers[PLAIN][task.label] = plain
            if turn:
                seconds[OURS].setdefault(task.label, []).append(own)
                seconds[PLAIN].setdefault(task.label, []).append(theirs)
        if turn:
            at_once.append(timed(partial(ours, tasks), device, clock)[1])
    groups = {task.label: [task.label] for task in tasks}
    for kind in dict.fromkeys(task.type for task in tasks):
        groups[f"all {kind}"] = [task.label for task in tasks if task.type == kind]
    groups["all"] = [task.label for task in tasks]
    counts = {label: len(found) for label, found in answers[OURS].items()}
    table = {name: figures(seconds, labels, counts) for name, labels in groups.items()}
    table["all, in one call"] = figures({**seconds, OURS: {"": at_once}}, groups["all"], counts)
    return {
        "depth": args.depth,
        "vocab_size": tokenizer.vocab_size,
        "dtype": args.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "turns": args.turns,
        "clock": args.clock,
        "table": table,
        **differences(answers),
    }


def figures(
    seconds: dict[str, dict[str, list[float]]], labels: Sequence[str], counts: dict[str, int]
) -> dict[str, float]:
    """Return the questions a second of both sides and their ratio, medians over turns of sums over tasks."""
    questions = sum(counts[label] for label in labels)
    ours, plain = (
        [sum(turn) for turn in zip(*(by_task[label] for label in labels if label in by_task), strict=True)]
        or by_task[""]
        for by_task in (seconds[OURS], seconds[PLAIN])
    )
    return {
        "questions": questions,
        "plain_per_s": questions / statistics.median(plain),
        "ours_per_s": questions / statistics.median(ours),
        "ratio": statistics.median(theirs / own for own, theirs in zip(ours, plain, strict=True)),
    }


def differences(answers: dict[str, dict[str, list[Answer]]]) -> dict[str, Any]:
    """Compare what the two sides found."""
    apart, other = 0.0, []
    for label, found in answers[OURS].items():
        for index, ((own, right), (theirs, also)) in enumerate(zip(found, answers[PLAIN][label], strict=True)):
            # None: a choice without a token of its own, whose mean is NaN on the plain side
            apart = max([apart, *(abs(a - b) for a, b in zip(own, theirs, strict=True) if a is not None)])
            if right != also:
                other.append(f"{label}/{index}: {own} against {theirs}")
    return {"largest_loss_difference": apart, "answered_differently": other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="folder with core.yaml")
    parser.add_argument("--tasks", nargs="+", help="labels; default: all")
    parser.add_argument("--items", type=int, default=12, help="questions of each task")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192, help="of a tokenizer trained on the bundle's texts")
    parser.add_argument("--tokenizer", help="folder of a tokenizer to use instead")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--turns", type=int, default=3)
    args = parse_arguments(parser)
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"\nd{result['depth']}, V={result['vocab_size']:,}, {result['dtype']}, {result['device']}, "
          f"{result['threads']} threads, {result['turns']} turns, {result['clock']} clock\n")  # fmt: skip
    print("| tasks | questions | plain, 1/s | ours, 1/s | ratio |\n|---|---:|---:|---:|---:|")
    for name, row in result["table"].items():
        print(f"| {name} | {row['questions']} | {row['plain_per_s']:.1f} | {row['ours_per_s']:.1f} "
              f"| {row['ratio']:.2f} |")  # fmt: skip
    print(f"\nlargest difference of a mean loss: {result['largest_loss_difference']:.1e}; answered differently: "
          f"{len(result['answered_differently'])}")  # fmt: skip
    print("\n".join(result["answered_differently"]))


if __name__ == "__main__":
    main()
