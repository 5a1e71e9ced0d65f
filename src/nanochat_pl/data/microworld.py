"""Write the microworld: an embedded, generated data set, so that every stage runs offline and learns within minutes.

The facts and their sentences are in `microworld_facts`; this module turns them, by a seed, into files laid out
like the real data sets, so that the same loaders read both:

    text/shard_0000N.parquet              documents; the last shard is for validation
    scienceqa/{train,validation,test}     multiple choice about facts, in the ScienceQA schema
    reading/{train,validation}            multiple choice about invented passages and lists: memory cannot answer it
    recall/{train,validation,test}        the same questions about facts, without choices
    matching/, fact_matching/{train,test} chats that give the letters of listed words or facts
    gsm8k/{train,test}                    arithmetic word problems with calculator annotations
    smoltalk/{train,test}                 short chats

The law of the splits: a question is a (fact, form) pair, and each pair belongs to exactly one split. So a held-out
question asks, in a form known from other facts, for a fact known from the documents and from other forms.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat_pl.data.microworld_facts import RELATIONS, Relation
from nanochat_pl.data.microworld_text import (
    chat,
    documents,
    fact_matching,
    matching,
    sentence,
    story,
    vocabulary,
    word_problem,
)

VERSION = 2
"""Raised whenever the same seed gives other content: folders written by an older version are then written anew."""

SPLITS = ("train", "validation", "test")
DRAWS_PER_QUESTION = 2
READING_ROWS = {"train": 6_000, "validation": 400}
MATCHING = {"train": 22_000, "test": 300}
FACT_MATCHING = {"train": 12_000, "test": 300}
CHATS = {"train": 600, "test": 100}
WORD_PROBLEMS = {"train": 3_000, "test": 500}
_MANIFEST = "microworld.json"


@dataclass(frozen=True)
class Question:
    """One (fact, form) pair: what is asked, its answer, and the split that owns it."""

    relation: Relation
    fact: str
    """The subject of the fact; with the relation it names the fact."""
    form: int
    split: str

    @property
    def text(self) -> str:
        """The question as it is asked."""
        return self.relation.forms[self.form].format(s=self.fact)

    @property
    def answer(self) -> str:
        """The object of the fact."""
        return self.relation.facts[self.fact]

    @property
    def statement(self) -> str:
        """The fact as a sentence."""
        return sentence(self.relation, self.fact, 0)


def questions(seed: int = 0) -> list[Question]:
    """Return every (fact, form) pair with its split: of each fact one form for test, one for validation."""
    rng = random.Random(f"{seed}/splits")
    pairs = []
    for relation in RELATIONS:
        for fact in relation.facts:
            forms = rng.sample(range(len(relation.forms)), len(relation.forms))
            owners = ["test", "validation"] + ["train"] * (len(forms) - 2)
            pairs += [Question(relation, fact, form, split) for form, split in zip(forms, owners)]
    return pairs


# ---- questions -------------------------------------------------------------------------------------------------------


def _choice_row(question: str, right: str, wrong: list[str], letter: int, **fields: str) -> dict:
    """Return one row of the ScienceQA schema with the right choice at index `letter`."""
    choices = [*wrong[:letter], right, *wrong[letter:]]
    row = {"image": None, "question": question, "choices": choices, "answer": letter, "task": "closed choice"}
    return row | {key: fields.get(key, "") for key in _TEXT_COLUMNS if key != "task"}


_TEXT_COLUMNS = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")


class _Letters:
    """Deal the index of the right choice evenly: for each number of choices a shuffled deck, dealt to the end."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._decks: dict[int, list[int]] = {}

    def deal(self, choices: int) -> int:
        deck = self._decks.setdefault(choices, [])
        if not deck:
            deck.extend(self._rng.sample(range(choices), choices))
        return deck.pop()


def scienceqa_rows(split: str, seed: int = 0) -> list[dict]:
    """Return the multiple-choice rows about facts; in training each pair `DRAWS_PER_QUESTION` times."""
    rng = random.Random(f"{seed}/scienceqa/{split}")
    letters = _Letters(rng)
    rows = []
    for question in (
        q for q in questions(seed) if q.split == split for _ in range(DRAWS_PER_QUESTION if split == "train" else 1)
    ):
        wrong = question.relation.distractors(question.fact)
        wrong = rng.sample(wrong, min(len(wrong), rng.randint(1, 4)))
        relation = question.relation
        rows.append(
            _choice_row(
                question.text, question.answer, wrong, letters.deal(len(wrong) + 1),
                grade=f"grade{relation.grade}", subject=relation.subject, topic=relation.topic,
                category=relation.category,
                skill=relation.name, lecture=relation.lecture, solution=question.statement,
            )
        )  # fmt: skip
    rng.shuffle(rows)
    return rows


def reading_rows(split: str, seed: int = 0) -> list[dict]:
    """Return multiple-choice rows that only their own text can answer: invented passages, named words."""
    rng = random.Random(f"{seed}/reading/{split}")
    letters, words = _Letters(rng), vocabulary()
    fields = {"grade": "grade2", "subject": "language science", "topic": "reading-comprehension"}
    rows = []
    for i in range(READING_ROWS[split]):
        if i % 2:
            told = story(rng)
            pick = rng.randrange(len(told.answers))
            wrong = [a for a in told.answers if a != told.answers[pick]]
            rng.shuffle(wrong)
            more = fields | {"category": "Passages", "skill": "find a detail", "hint": told.text}
            question, right = told.asked[pick], told.answers[pick]
        else:
            right, *wrong = rng.sample(words, rng.randint(2, 5))
            more = fields | {"category": "Words", "skill": "find a word"}
            question = rng.choice(("Which choice says {}?", "Find the word {}.", "Which of these is {}?")).format(right)
        rows.append(_choice_row(question, right, wrong, letters.deal(len(wrong) + 1), **more))
    return rows


def recall_rows(split: str, seed: int = 0) -> list[dict]:
    """Return the same pairs as `scienceqa_rows` without choices: question, answer, and which fact and form they are."""
    rng = random.Random(f"{seed}/recall/{split}")
    rows = [
        {
            "question": q.text, "answer": q.answer, "subject": q.relation.subject, "topic": q.relation.topic,
            "grade": f"grade{q.relation.grade}", "fact": f"{q.relation.name}: {q.fact}", "form": q.form,
        }
        for q in questions(seed)
        if q.split == split
    ]  # fmt: skip
    rng.shuffle(rows)
    return rows


# ---- files ---------------------------------------------------------------------------------------------------------


def _tables(seed: int) -> Iterator[tuple[str, list[dict], int]]:
    """Yield (relative path, rows, rows per row group) of every file."""
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
    words = vocabulary()
    makers: tuple[tuple[str, Callable[[random.Random], dict], dict[str, int]], ...] = (
        ("matching", lambda rng: matching(rng, words), MATCHING),
        ("fact_matching", fact_matching, FACT_MATCHING),
        ("gsm8k", word_problem, WORD_PROBLEMS),
        ("smoltalk", chat, CHATS),
    )
    for folder, make, counts in makers:
        rng, seen = random.Random(f"{seed}/{folder}"), set()
        for split, count in counts.items():
            rows: list[dict] = []
            while len(rows) < count:
                row = make(rng)
                key = json.dumps(row)
                if key not in seen:
                    seen.add(key)
                    rows.append(row)
            yield f"{folder}/{split}.parquet", rows, 1024


def _schema(path: str):
    import pyarrow as pa

    string = pa.string()
    match path.split("/")[0]:
        case "text":
            return pa.schema({"text": string})
        case "recall":
            names = ("question", "answer", "subject", "topic", "grade", "fact")
            return pa.schema([*((name, string) for name in names), ("form", pa.int8())])
        case "gsm8k":
            return pa.schema({"question": string, "answer": string})
        case "smoltalk" | "matching" | "fact_matching":
            return pa.schema({"messages": pa.list_(pa.struct({"content": string, "role": string}))})
        case _:
            columns = {"image": pa.struct({"bytes": pa.binary(), "path": string}), "question": string}
            columns |= {"choices": pa.list_(string), "answer": pa.int8()}
            return pa.schema(columns | dict.fromkeys(_TEXT_COLUMNS, string))


def write_microworld(folder: Path, seed: int = 0) -> Path:
    """Write the world of `seed` to `folder` and return it; a folder that already holds it is left as it is.

    The folder appears complete or not at all, and processes that start together write it once (a lock file beside
    it). The
    same seed gives the same content, whose SHA-256 stands in `microworld.json`.

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
    """Tell whether `folder` is this world; refuse a folder with files of someone else."""
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest, counts = hashlib.sha256(), {}
    for path, rows, group in _tables(seed):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=_schema(path)), target, row_group_size=group)
        digest.update(path.encode() + json.dumps(rows, ensure_ascii=False).encode())
        counts[path] = len(rows)
    manifest = {"version": VERSION, "seed": seed, "sha256": digest.hexdigest(), "rows": counts}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
