"""Measure chat evaluation: questions a second of `evaluate_chat`, against one question at a time.

Letters (MMLU, ARC): the plain side reads each question by itself and makes the logits of every token. Answers (GSM8K):
the plain side gives the same engine one question after another. Sides take turns task by task, and ratios are medians
over turns of the turns' ratios, so that a busy machine slows both alike. Ours includes grading, intervals and records,
the plain side stops at the answers. Weights are random and an answer ends by chance, after 64 tokens on average; both
sides draw it from the same random stream. Prints a table (or JSON), and how many questions the sides answer differently
(rounding differs with the shape of a batch, and random weights make many choices close). Letters are scored in batches
of like length, so a few questions hold more padding than a whole task: at least 256 tell what a whole one would take.

    python benchmarks/bench_chat_eval.py --data data                                # d4, 64 questions of each task
    python benchmarks/bench_chat_eval.py --data data --threads 1 --clock cpu        # on a machine others use, too
    python benchmarks/bench_chat_eval.py --data data --depth 20 --vocab-size 65536 --dtype bfloat16 --items 512
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import CLOCKS, parse_arguments, timed

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.engine import Engine, Request
from nanochat_pl.eval.ask import render_prompts
from nanochat_pl.eval.chat import evaluate_chat, with_ids
from nanochat_pl.eval.multiple_choice import letter_tokens
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.runtime import pick_device
from nanochat_pl.tasks.arc import ARC
from nanochat_pl.tasks.base import Task
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tokenizer import Tokenizer

MEAN_ANSWER_TOKENS = 64
VOCABULARY_QUESTIONS = 4000
"""Questions of each task on which a tokenizer is trained."""
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_k": 50}
TASKS: dict[str, tuple[str, Callable[[Path], Task]]] = {
    "MMLU": ("categorical", lambda root: MMLU(root / "mmlu", "test")),
    "ARC-Easy": ("categorical", lambda root: ARC(root / "arc", "ARC-Easy", "test")),
    "ARC-Challenge": ("categorical", lambda root: ARC(root / "arc", "ARC-Challenge", "test")),
    "GSM8K": ("generative", lambda root: GSM8K(root / "gsm8k", "test")),
}
"""Name -> kind, and how its questions are read below --data."""


class Bench:
    """One random model, asked the same questions in two ways."""

    def __init__(self, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.device = pick_device()
        generator = torch.Generator().manual_seed(0)
        config = GPTConfig(sequence_len=2048, vocab_size=tokenizer.vocab_size, **shape_for_depth(args.depth))
        model = GPT(config, getattr(torch, args.dtype))
        model.init_weights(generator)
        # nearly uniform, and another top k at every token
        torch.nn.init.normal_(model.lm_head.weight, std=0.02, generator=generator)
        self.model = model.to(self.device)
        self.engine = Engine(self.model, range(0, tokenizer.vocab_size, MEAN_ANSWER_TOKENS), dtype=args.dtype)
        self.limits = {"max_new_tokens": args.tokens, "max_prompt_tokens": 2048 - args.tokens}

    def ours(self, name: str, kind: Any, task: Task, questions: Sequence[Any]) -> list[str]:
        """Answer all questions as `evaluate.py` does."""
        options: dict[str, Any] = self.limits
        if kind == "generative":
            options = options | SAMPLING | {"grade": task.grade, "batch_size": self.args.batch_size}
        elif self.args.max_batch_tokens:
            options = options | {"max_batch_tokens": self.args.max_batch_tokens}
        found = evaluate_chat(self.model, self.tokenizer, self.engine, questions, task=name, kind=kind, **options)
        return [record["output"] for record in found.records]

    @torch.inference_mode()
    def plain(self, name: str, kind: str, task: Task, questions: Sequence[Any]) -> list[str]:
        """Answer one question after another."""
        outputs = []
        for question in with_ids(questions):
            most = self.limits if kind == "generative" else self.limits | {"max_new_tokens": 1}
            [prompt] = render_prompts(self.tokenizer, [question], context_tokens=2048, **most)
            if kind == "categorical":
                ids = letter_tokens(self.tokenizer, question["letters"], stem="").ids
                logits = self.model(torch.tensor([prompt.ids], device=self.device))[0, -1].tolist()
                outputs.append(max(question["letters"], key=lambda letter: logits[ids[letter]]))
            else:
                request = Request(prompt.ids, self.args.tokens, **SAMPLING, seed=f"0/{question['id']}/0")
                [completion] = self.engine.run([request], batch_size=1)
                outputs.append(self.tokenizer.decode(completion.tokens))
        return outputs


def train_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """Train a tokenizer on questions of all tasks, whichever are asked."""
    tasks = [read(Path(args.data)) for _, read in TASKS.values()]
    questions = (question for task in tasks for question in task[:VOCABULARY_QUESTIONS])
    texts = [str(message["content"]) for question in questions for message in question["messages"]]
    return Tokenizer.train(texts, args.vocab_size)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one model on all chosen tasks."""
    chosen = {name: (kind, read(Path(args.data))) for name, (kind, read) in TASKS.items() if name in args.tasks}
    questions = {name: task[: args.items] for name, (_, task) in chosen.items()}
    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else train_tokenizer(args)
    bench = Bench(args, tokenizer)
    table, clock = {}, CLOCKS[args.clock]
    for name, (kind, task) in chosen.items():
        own_questions = questions[name]
        seconds: list[tuple[float, float]] = []
        differently = 0
        for turn in range(args.turns + 1):  # a first turn warms up
            own, ours = timed(partial(bench.ours, name, kind, task, own_questions), bench.device, clock)
            theirs, plain = timed(partial(bench.plain, name, kind, task, own_questions), bench.device, clock)
            differently = sum(one != other for one, other in zip(own, theirs, strict=True))
            if turn:
                seconds.append((ours, plain))
        table[name] = {
            "kind": kind,
            "questions": len(own_questions),
            "plain_per_s": len(own_questions) / statistics.median(plain for _, plain in seconds),
            "ours_per_s": len(own_questions) / statistics.median(ours for ours, _ in seconds),
            "ratio": statistics.median(plain / ours for ours, plain in seconds),
            "answered_differently": differently,
        }
    return {
        "depth": args.depth,
        "vocab_size": tokenizer.vocab_size,
        "dtype": args.dtype,
        "device": str(bench.device),
        "threads": torch.get_num_threads(),
        "turns": args.turns,
        "clock": args.clock,
        "table": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with mmlu, arc and gsm8k")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--items", type=int, default=64, help="questions of each task")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192, help="of a tokenizer trained on the questions")
    parser.add_argument("--tokenizer", help="folder of a tokenizer to use instead")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    parser.add_argument("--batch-size", type=int, default=32, help="answers generated at once")
    parser.add_argument("--max-batch-tokens", type=int, help="of questions read at once for their letters")
    parser.add_argument("--turns", type=int, default=3)
    args = parse_arguments(parser)
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"\nd{result['depth']}, V={result['vocab_size']:,}, {result['dtype']}, {result['device']}, "
          f"{result['threads']} threads, {result['turns']} turns, {result['clock']} clock\n")  # fmt: skip
    print("| task | kind | questions | one at a time, 1/s | ours, 1/s | ratio | answered differently |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, row in result["table"].items():
        print(f"| {name} | {row['kind']} | {row['questions']} | {row['plain_per_s']:.1f} | {row['ours_per_s']:.1f} "
              f"| {row['ratio']:.2f} | {row['answered_differently']} |")  # fmt: skip


if __name__ == "__main__":
    main()
