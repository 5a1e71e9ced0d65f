"""Show what keeps a small model from looking a letter up: made-up lists of labelled words, from random weights.

Each row is a list of 2 to 5 words, each behind its label, and four questions for the label of one of them, such as
`A . iron \\n B . salt \\n ? salt is B`; the labels that answer are supervised, 48 rows a step, at constant rates. The
model is the quickstart's (4 blocks, 256 channels, 2 heads) in three kinds, and the loop is `LanguageModel` in
Lightning's Trainer. Right is the first answer to each of 384 lists that no step trains on; chance is 32%.

    python benchmarks/lookup.py --csv lookup.csv                               # all forms, three seeds: hours
    python benchmarks/lookup.py --forms next --models short_conv --seeds 0     # one line of it: minutes

Rows that --csv already holds are not run again. Prints Markdown.
"""

import argparse
import csv
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from nanochat_pl.data.batch import IGNORE, Batch
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.runtime import pick_compute_dtype
from nanochat_pl.training.module import LanguageModel
from nanochat_pl.training.run import quiet_lightning

BOS, ASK, BETWEEN, NEWLINE, IS, *LABELS = range(10)
QUESTIONS, ROWS, LISTS_TO_JUDGE = 4, 48, 384
WORDS, FACTS = 2000, 100
MODELS: dict[str, dict[str, Any]] = {"plain": {}, "smear": {"smear": True}, "short_conv": {"short_conv": 4}}
LEARNED = 0.97
"""A run ends once this share is right."""


@dataclass(frozen=True)
class Form:
    """How a list and its questions are written."""

    says: str
    between: int = 0
    """Tokens between a label and its word."""
    before_answer: int = 0
    """Tokens between the asked word and the answer."""
    word_tokens: int = 1
    """The most tokens of a word; each has one to so many."""
    facts: bool = False
    """In half of the rows a question asks in place of the word, by a token that the list does not hold: which word it
    means, the weights must know. The word then follows the answer, supervised, and is so learned."""


FORMS = {
    "next": Form("label, word; asked: word, answer"),
    "between": Form("a token between label and word", between=1),
    "before": Form("a token between asked word and answer", before_answer=1),
    "both": Form("a token at both places", between=1, before_answer=1),
    "pieces": Form("words of 1 to 3 tokens, two between, one before the answer", 2, 1, word_tokens=3),
    "facts": Form("a token at both places, half of the rows ask for facts", 1, 1, facts=True),
}


class Lists(IterableDataset):
    """Endless batches of rows; the same words and facts for every seed."""

    def __init__(self, form: Form, seed: int) -> None:
        self.form, self.random = form, random.Random(seed)
        fixed = random.Random(5)
        pieces = 800 if form.word_tokens > 1 else WORDS
        first = 1 + max(LABELS)
        words: dict[tuple[int, ...], None] = {}  # each once, in the order of drawing
        while len(words) < WORDS:
            length = fixed.randint(1, form.word_tokens)
            words[tuple(first + fixed.randrange(pieces) for _ in range(length))] = None
        self.words = list(words)
        self.facts = fixed.sample(range(WORDS), FACTS)  # question -> number of the word that it means
        self.first_question = first + pieces
        self.vocab_size = self.first_question + FACTS
        listed = 5 * (2 + form.between + form.word_tokens)
        asked = QUESTIONS * (3 + form.before_answer + max(form.word_tokens, 2 + form.between if form.facts else 0))
        self.sequence_len = 1 + listed + asked

    def row(self, facts: bool) -> tuple[list[int], list[bool]]:
        """Return the tokens of one row, and for each whether it is supervised."""
        form, count = self.form, self.random.randint(2, 5)
        questions = self.random.sample(range(FACTS), count)
        listed = [self.facts[question] for question in questions]
        if not facts:
            listed = self.random.sample(range(WORDS), count)
        ids = [BOS]
        for label, word in zip(LABELS, listed):
            ids += [label, *[BETWEEN] * form.between, *self.words[word], NEWLINE]
        supervised = [False] * len(ids)
        for _ in range(QUESTIONS):
            at = self.random.randrange(count)
            asked = [self.first_question + questions[at]] if facts else self.words[listed[at]]
            question = [ASK, *asked, *[IS] * form.before_answer]
            answer = [LABELS[at], *([BETWEEN] * form.between + list(self.words[listed[at]]) if facts else [])]
            ids += [*question, *answer, NEWLINE]
            supervised += [False] * len(question) + [True] * len(answer) + [False]
        return ids, supervised

    def batch(self, rows: int, facts: list[bool]) -> Batch:
        """Return rows padded by line ends; target t is token t + 1 where that is supervised."""
        ids = torch.full((rows, self.sequence_len + 1), NEWLINE)
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        for number, ask_facts in zip(range(rows), facts):
            tokens, supervised = self.row(ask_facts)
            ids[number, : len(tokens)] = torch.tensor(tokens)
            wanted[number, : len(tokens)] = torch.tensor(supervised)
        targets = torch.where(wanted, ids, IGNORE)[:, 1:]
        return Batch(ids[None, :, :-1].contiguous(), targets[None].contiguous(), tokens=rows * self.sequence_len)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch(ROWS, [self.form.facts and self.random.random() < 0.5 for _ in range(ROWS)])


class Judge(L.Callback):
    """Ask fresh lists every so many steps; end the run once it is learned."""

    def __init__(self, gpt: GPT, form: Form, every: int) -> None:
        lists = Lists(form, seed=-1)
        self.gpt, self.every = gpt, every
        self.asked = {kind: lists.batch(LISTS_TO_JUDGE, [kind] * LISTS_TO_JUDGE) for kind in {False, form.facts}}
        self.right: dict[int, dict[bool, float]] = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        if trainer.global_step % self.every:
            return
        shares = {}
        for kind, batch in self.asked.items():
            chosen = self.gpt(batch.inputs[0]).argmax(-1)  # (rows, T)
            first = (batch.targets[0] != IGNORE).int().argmax(dim=1, keepdim=True)
            shares[kind] = (chosen.gather(1, first) == batch.targets[0].gather(1, first)).float().mean().item()
        self.right[trainer.global_step] = shares
        trainer.should_stop = min(shares.values()) >= LEARNED


def train(form: Form, model: str, seed: int, steps: int, every: int) -> dict[int, dict[bool, float]]:
    """Train from random weights; return the shares right by step, of words (False) and of facts (True)."""
    lists = Lists(form, seed)
    config = GPTConfig(
        sequence_len=lists.sequence_len, vocab_size=lists.vocab_size, n_layer=4, n_head=2, n_kv_head=2, n_embd=256,
        **MODELS[model],
    )  # fmt: skip
    torch.manual_seed(seed)
    gpt = GPT(config, pick_compute_dtype("auto", "cpu"))
    gpt.init_weights()
    judge = Judge(gpt, form, every)
    quiet_lightning()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[judge],
    )  # fmt: skip
    optim = OptimConfig(warmdown_frac=0.0, grad_clip=1.0)
    trainer.fit(LanguageModel(gpt, optim, num_steps=steps), DataLoader(lists, batch_size=None))
    return judge.right


def main() -> None:
    """Run what is asked for and print the table of all rows that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[*FORMS])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, help="steps between two looks")
    parser.add_argument("--csv", type=Path, help="a row for each look is added here")
    args = parser.parse_args()
    rows = read(args.csv) if args.csv and args.csv.exists() else []
    for seed, name, model in itertools.product(args.seeds, args.forms, args.models):
        if any((row["form"], row["model"], row["seed"]) == (name, model, str(seed)) for row in rows):
            continue
        start_s = time.perf_counter()
        right = train(FORMS[name], model, seed, args.steps, args.every)
        for step, shares in right.items():
            known = {"words": shares[False], "facts": shares.get(True, "")}
            row = {"form": name, "model": model, "seed": str(seed), "step": str(step)}
            rows.append({**row, **{key: str(value) for key, value in known.items()}})
        if args.csv:
            write(args.csv, rows)
        print(f"{name}, {model}, seed {seed}: {time.perf_counter() - start_s:.0f} s", file=sys.stderr)
    print_table(rows)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write all rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_table(rows: list[dict[str, str]]) -> None:
    """Print a line for each form and model: the mean over seeds at each step; a run that has learned stays so."""
    looks = sorted({int(row["step"]) for row in rows})
    print("| form | model | seeds | " + " | ".join(f"{step} steps" for step in looks) + " |")
    print("|---|---|---:" + "|---:" * len(looks) + "|")
    for name, model in itertools.product(FORMS, MODELS):
        runs: dict[str, dict[int, dict[str, str]]] = {}
        for row in rows:
            if (row["form"], row["model"]) == (name, model):
                runs.setdefault(row["seed"], {})[int(row["step"])] = row
        if not runs:
            continue
        cells = []
        for step in looks:
            then = [run[max((at for at in run if at <= step), default=min(run))] for run in runs.values()]
            kinds = [[float(row[kind]) for row in then] for kind in ("words", "facts") if then[0][kind]]
            cells.append(" / ".join(f"{statistics.mean(shares):.0%}" for shares in kinds))
        print(f"| {FORMS[name].says} | {model} | {len(runs)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
