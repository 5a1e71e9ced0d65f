"""The questions of the microworld: facts asked in many forms, each (fact, form) pair in exactly one split.

Three sets ask for facts: with choices and background (the ScienceQA schema), with choices alone (ARC's), and without
choices (recall). Two ask what only their own text says, so that memory does not help: reading, and the same kind of
question in MMLU's schema.
"""

import json
import random
from dataclasses import dataclass

from nanochat_pl.world.documents import story
from nanochat_pl.world.facts import Relation, relations, sentence, vocabulary

SPLITS = ("train", "validation", "test")
DRAWS_PER_QUESTION = 2
READING_ROWS = {"train": 6_000, "validation": 400}
MMLU_ROWS = {"auxiliary_train": 2_000, "dev": 10, "validation": 100, "test": 400}
ARC_ROWS = {
    "ARC-Easy": {"train": 1_000, "validation": 100, "test": 200},
    "ARC-Challenge": {"train": 500, "validation": 100, "test": 200},
}
TEXT_COLUMNS = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
_EASY_GRADES = range(1, 6)
"""ARC-Easy asks for the facts of these grades, ARC-Challenge for those of the others."""
_WORD_QUESTIONS = ("Which choice says {}?", "Find the word {}.", "Which of these is {}?")


@dataclass(frozen=True)
class Question:
    """One (fact, form) pair: a question, its answer, and the split that owns it."""

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
    """Return every (fact, form) pair with its split: each fact has one form for test and one for validation."""
    rng = random.Random(f"{seed}/splits")
    pairs = []
    for relation in relations():
        for fact in relation.facts:
            forms = rng.sample(range(len(relation.forms)), len(relation.forms))
            owners = ["test", "validation"] + ["train"] * (len(forms) - 2)
            pairs += [Question(relation, fact, form, split) for form, split in zip(forms, owners)]
    return pairs


def _choice_row(question: str, right: str, wrong: list[str], letter: int, **fields: str) -> dict:
    """Return one row of the ScienceQA schema with the right choice at index `letter`."""
    choices = [*wrong[:letter], right, *wrong[letter:]]
    row = {"image": None, "question": question, "choices": choices, "answer": letter, "task": "closed choice"}
    return row | {key: fields.get(key, "") for key in TEXT_COLUMNS if key != "task"}


class _Letters:
    """Deals the index of the right choice evenly: for each number of choices there is a shuffled deck."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._decks: dict[int, list[int]] = {}

    def deal(self, choices: int) -> int:
        deck = self._decks.setdefault(choices, [])
        if not deck:
            deck.extend(self._rng.sample(range(choices), choices))
        return deck.pop()


def scienceqa_rows(split: str, seed: int = 0) -> list[dict]:
    """Return the multiple-choice rows about facts; in training each pair comes `DRAWS_PER_QUESTION` times."""
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
            passage = story(rng)
            pick = rng.randrange(len(passage.answers))
            wrong = [a for a in passage.answers if a != passage.answers[pick]]
            rng.shuffle(wrong)
            more = fields | {"category": "Passages", "skill": "find a detail", "hint": passage.text}
            question, right = passage.questions[pick], passage.answers[pick]
        else:
            right, *wrong = rng.sample(words, rng.randint(2, 5))
            more = fields | {"category": "Words", "skill": "find a word"}
            question = rng.choice(_WORD_QUESTIONS).format(right)
        rows.append(_choice_row(question, right, wrong, letters.deal(len(wrong) + 1), **more))
    return rows


def recall_rows(split: str, seed: int = 0) -> list[dict]:
    """Return the pairs of `scienceqa_rows` without choices: question, answer, and their fact and form."""
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


def mmlu_rows(seed: int = 0) -> dict[str, list[dict]]:
    """Return rows about passages and words with four choices for each split of MMLU; no two ask the same."""
    rng = random.Random(f"{seed}/mmlu")
    letters, words = _Letters(rng), vocabulary()
    seen: set[str] = set()
    splits: dict[str, list[dict]] = {}
    for split, count in MMLU_ROWS.items():
        rows = splits[split] = []
        while len(rows) < count:
            subject = ("passages", "words")[len(rows) % 2]
            if subject == "passages":
                passage = story(rng, count=4)
                pick = rng.randrange(4)
                question, right = f"{passage.text} {passage.questions[pick]}", passage.answers[pick]
                wrong = rng.sample([answer for answer in passage.answers if answer != right], 3)
            else:
                right, *wrong = rng.sample(words, 4)
                question = rng.choice(_WORD_QUESTIONS).format(right)
            key = json.dumps([question, sorted([right, *wrong])])
            if key in seen:
                continue
            seen.add(key)
            letter = letters.deal(4)
            choices = [*wrong[:letter], right, *wrong[letter:]]
            # as on the hub, the questions to learn from have no subject
            named = "" if split == "auxiliary_train" else subject
            rows.append({"question": question, "subject": named, "choices": choices, "answer": letter})
    return splits


def arc_rows(subset: str, split: str, seed: int = 0) -> list[dict]:
    """Return rows about facts with four choices, none twice, for pairs that belong to this split in all sets.

    A few label their choices 1 to 4, as the real set does.
    """
    rng = random.Random(f"{seed}/arc/{subset}/{split}")
    letters = _Letters(rng)
    pairs = [
        q
        for q in questions(seed)
        if q.split == split
        and (q.relation.grade in _EASY_GRADES) == (subset == "ARC-Easy")
        and len(q.relation.distractors(q.fact)) >= 3
    ]
    rows = []
    for q in rng.sample(pairs, ARC_ROWS[subset][split]):
        wrong = rng.sample(q.relation.distractors(q.fact), 3)
        labels = "1234" if rng.random() < 0.05 else "ABCD"
        letter = letters.deal(4)
        choices = {"text": [*wrong[:letter], q.answer, *wrong[letter:]], "label": list(labels)}
        name = f"{q.relation.name}/{q.fact}/{q.form}"
        rows.append({"id": name, "question": q.text, "choices": choices, "answerKey": labels[letter]})
    return rows
