"""Write the microworld: an embedded, generated data set, so that every stage runs offline and learns within minutes.

From the facts and sentences of this package a seed makes files with the names and columns of the real data sets, so
that the same loaders and mixtures read both:

    text/shard_0000N.parquet              documents; the last shard is for validation
    scienceqa/{train,validation,test}     multiple choice about facts, in the ScienceQA schema
    reading/{train,validation}            multiple choice about invented passages and lists: memory cannot answer it
    recall/{train,validation,test}        the same questions about facts, without choices
    matching/, growing_matching/{train,test}  letters of listed words: the letter alone, or behind a growing answer
    matching_before/{train,test}          the same with the word before the list
    fact_matching/, few_fact_matching/{train,test}  letters of answers listed behind their question: all facts, few
    gsm8k/{train,test}                    arithmetic word problems with calculator annotations
    smoltalk/{train,test}                 short chats
    manners/{train,test}                  greetings, wanted forms of answers, earlier turns, words that are no question
    sums/{train,test}                     sums, differences and products for the calculator, in GSM8K's form
    mmlu/{auxiliary_train,dev,validation,test}               four choices, about passages and words, in MMLU's schema
    arc/ARC-{Easy,Challenge}/{train,validation,test}         four choices, about facts, in ARC's schema
    humaneval/test                        a few functions to write
    identity_conversations.jsonl          what the assistant says about itself
    words_alpha.txt                       words to spell

The law of the splits: a question is a (fact, form) pair, and each pair belongs to exactly one split. So a held-out
question asks, in a form known from other facts, for a fact known from the documents and from other forms.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_pl.world.chats import chat, fact_matching, identity_conversations, manners, matching, wordings
from nanochat_pl.world.documents import documents
from nanochat_pl.world.facts import vocabulary
from nanochat_pl.world.problems import calculation, programming_problems, word_problem, words_to_spell
from nanochat_pl.world.questions import (
    ARC_ROWS,
    READING_ROWS,
    SPLITS,
    TEXT_COLUMNS,
    Question,
    arc_rows,
    mmlu_rows,
    questions,
    reading_rows,
    recall_rows,
    scienceqa_rows,
)

__all__ = ["VERSION", "write_microworld"]

VERSION = 8
"""Raised whenever the content of a seed changes: folders written by an older version are then written anew."""

MATCHING = {"train": 4_800, "test": 300}
GROWING_MATCHING = {"train": 7_600, "test": 300}
MATCHING_BEFORE = {"train": 7_400, "test": 300}
FACT_MATCHING = {"train": 9_000, "test": 300}
FEW_FACT_MATCHING = {"train": 3_000, "test": 300}
FIRST_RELATIONS = ("capital", "element symbol", "young animal")
"""What `few_fact_matching` asks for: 140 of the 707 facts, nearly each with an answer of its own."""
CHATS = {"train": 600, "test": 100}
WORD_PROBLEMS = {"train": 3_000, "test": 500}
MANNERS = {"train": 3_600, "test": 200}
SUMS = {"train": 3_000, "test": 200}
OPEN_CHATS = ("smoltalk", "manners")
"""Sets in which several chats may begin alike, for instance with a greeting."""
_MANIFEST = "microworld.json"


def _tables(seed: int) -> Iterator[tuple[str, list[dict], int]]:
    """Yield (relative path, rows, rows per row group) of every parquet file."""
    texts = list(documents(seed))
    held_out = len(texts) // 20
    shards = [texts[held_out::2], texts[held_out + 1 :: 2], texts[:held_out]]
    for i, shard in enumerate(shards):
        yield f"text/shard_{i:05d}.parquet", [{"text": text} for text in shard], 128
    for split in SPLITS:
        yield f"scienceqa/{split}.parquet", scienceqa_rows(split, seed), 1024
        yield f"recall/{split}.parquet", recall_rows(split, seed), 1024
    for split in READING_ROWS:
        yield f"reading/{split}.parquet", reading_rows(split, seed), 1024
    words, to_learn = vocabulary(), [question for question in questions(seed) if question.split == "train"]
    by_relation: dict[str, list[Question]] = {}
    for question in to_learn:
        by_relation.setdefault(question.relation.name, []).append(question)
    few = {name: by_relation[name] for name in FIRST_RELATIONS}
    makers: tuple[tuple[str, Callable[[random.Random], dict], dict[str, int]], ...] = (
        ("matching", lambda rng: matching(rng, words, wordings()[:1]), MATCHING),
        ("growing_matching", lambda rng: matching(rng, words, wordings()), GROWING_MATCHING),
        ("matching_before", lambda rng: matching(rng, words, wordings(), behind=False), MATCHING_BEFORE),
        ("fact_matching", lambda rng: fact_matching(rng, by_relation), FACT_MATCHING),
        ("few_fact_matching", lambda rng: fact_matching(rng, few), FEW_FACT_MATCHING),
        ("gsm8k", word_problem, WORD_PROBLEMS),
        ("smoltalk", chat, CHATS),
        ("manners", lambda rng: manners(rng, to_learn), MANNERS),
        ("sums", calculation, SUMS),
    )
    for folder, make, counts in makers:
        rng, seen, trained = random.Random(f"{seed}/{folder}"), set(), set[str]()
        for split, count in counts.items():
            rows: list[dict] = []
            while len(rows) < count:
                row = make(rng)
                key = json.dumps(row)
                # A held-out chat asks nothing that a training chat asks, so none of them opens with a greeting.
                held_back = split != "train" and folder in OPEN_CHATS and row["messages"][0]["content"] in trained
                if key not in seen and not held_back:
                    seen.add(key)
                    rows.append(row)
            if folder in OPEN_CHATS:
                trained |= {turn["content"] for row in rows for turn in row["messages"][::2]}
            yield f"{folder}/{split}.parquet", rows, 1024
    for split, rows in mmlu_rows(seed).items():
        yield f"mmlu/{split}.parquet", rows, 1024
    for subset, counts in ARC_ROWS.items():
        for split in counts:
            yield f"arc/{subset}/{split}.parquet", arc_rows(subset, split, seed), 1024
    yield "humaneval/test.parquet", programming_problems(), 1024


def _texts(seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (relative path, lines) of every text file."""
    yield "identity_conversations.jsonl", [json.dumps(chat) for chat in identity_conversations(seed)]
    yield "words_alpha.txt", words_to_spell(seed)


def _schema(path: str):
    string = pa.string()
    match path.split("/")[0]:
        case "text":
            return pa.schema({"text": string})
        case "recall":
            names = ("question", "answer", "subject", "topic", "grade", "fact")
            return pa.schema([*((name, string) for name in names), ("form", pa.int8())])
        case "gsm8k" | "sums":
            return pa.schema({"question": string, "answer": string})
        case name if name in OPEN_CHATS or "matching" in name:
            return pa.schema({"messages": pa.list_(pa.struct({"content": string, "role": string}))})
        case "mmlu":
            choices = pa.list_(string)
            return pa.schema({"question": string, "subject": string, "choices": choices, "answer": pa.int64()})
        case "arc":
            choices = pa.struct({"text": pa.list_(string), "label": pa.list_(string)})
            return pa.schema({"id": string, "question": string, "choices": choices, "answerKey": string})
        case "humaneval":
            texts = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
            return pa.schema([(name, string) for name in texts])
        case _:
            columns = {"image": pa.struct({"bytes": pa.binary(), "path": string}), "question": string}
            columns |= {"choices": pa.list_(string), "answer": pa.int8()}
            return pa.schema(columns | dict.fromkeys(TEXT_COLUMNS, string))


def write_microworld(folder: Path, seed: int = 0) -> Path:
    """Write the world of `seed` to `folder` and return it; a folder that already holds it is left unchanged.

    The folder appears complete or not at all, and processes that start together write it once (they share a lock file).
    The same seed makes the same content, whose SHA-256 is in `microworld.json`.

    Raises:
        ValueError: if `folder` holds files that this function did not write.
    """
    from filelock import FileLock

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if _holds(folder, seed):
            return folder
        fresh = folder.with_name(folder.name + ".part")
        shutil.rmtree(fresh, ignore_errors=True)
        _write_files(fresh, seed)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


def _holds(folder: Path, seed: int) -> bool:
    """Return whether `folder` is this world; refuse a folder with other files."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise ValueError(
            f"{folder} holds files but no {_MANIFEST}, so it is not a generated world; "
            "give the microworld a folder of its own (data.root), or empty this one"
        )
    known = json.loads(manifest.read_text())
    return (known["version"], known["seed"]) == (VERSION, seed)


def _write_files(folder: Path, seed: int) -> None:
    digest, counts = hashlib.sha256(), {}
    for path, rows, group in _tables(seed):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=_schema(path)), target, row_group_size=group)
        digest.update(path.encode() + json.dumps(rows, ensure_ascii=False).encode())
        counts[path] = len(rows)
    for path, lines in _texts(seed):
        text = "".join(f"{line}\n" for line in lines)
        (folder / path).write_bytes(text.encode())
        digest.update(path.encode() + text.encode())
        counts[path] = len(lines)
    manifest = {"version": VERSION, "seed": seed, "sha256": digest.hexdigest(), "rows": counts}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
