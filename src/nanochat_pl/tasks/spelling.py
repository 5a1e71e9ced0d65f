"""Spelling words and counting letters in them, which tokens hide from a model: made from a plain list of words.

After nanochat's tasks of these names (2025-11): a question names a letter and a word in one of many wordings, several
languages among them, and the answer spells, counts by hand and checks with the calculator.

Differs: a hash of the word decides whether it belongs to training or to the test, in both tasks alike, so that no size
and no seed can ever test what was trained. The original drew the test by negated seeds, which Python treats as the
same. And each word comes once an epoch, with another letter and wording every time, so that a short list makes few
questions instead of many similar ones.
"""

import hashlib
import random
import string
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.rows import read_yaml
from nanochat_pl.tasks.answers import check_strict, right_number
from nanochat_pl.tasks.base import Conversation, RowChoice, Task

__all__ = ["WORDS_URL", "SimpleSpelling", "SpellingBee", "counting_parts", "questions", "read_words", "spelled"]

WORDS_URL = "https://raw.githubusercontent.com/dwyl/english-words/master/words_alpha.txt"
"""Some 370,000 English words (dwyl/english-words, public domain)."""
SPLITS = ("train", "test")

_TEST_IN = 8
"""One word in this many belongs to the test split."""
_ORDER_SEED = 42
_LETTER_OF_WORD = 0.9
"""Share of the questions whose letter is one of the word's."""
_LOWER_CASE = 0.3
_QUESTION_MARK = 0.5


def read_words(path: str | Path, split: str) -> list[str]:
    """Read the words of one split, lower-cased, each letter one character (NFC), each once, in a fixed random order.

    Args:
        path: text file with one word a line; empty lines are ignored.
        split: train or test, an eighth of the words.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: for another split, a line that is not one word of letters, or a split without a word.
    """
    path = Path(path)
    if split not in SPLITS:
        raise ValueError(f"split={split} of {path.name} is not one of {', '.join(SPLITS)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no list of words {path}; fetch one with `curl --create-dirs -o {path} {WORDS_URL}`, set path to "
            "a file with one word a line, or leave the task out with mixture.tasks.<name>=null"
        )
    words: dict[str, None] = {}
    wrong: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        wrong_byte = f"byte {error.object[error.start]:#04x} at place {error.start}"
        raise ValueError(f"{path} is not UTF-8 text ({wrong_byte}); save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        # some systems write an accent as a separate character
        word = unicodedata.normalize("NFC", line.strip().lower())
        if word.isalpha():
            words[word] = None
        elif word:
            wrong.append(f"{number} ({word[:20]!r})")
    if wrong:
        has = f"{len(wrong)} lines that are" if len(wrong) > 1 else "a line that is"
        raise ValueError(
            f"{path} has {has} not one word of letters: line {', '.join(wrong[:10])}"
            f"{' …' if len(wrong) > 10 else ''}; drop them, or split them into a word a line"
        )
    chosen = [word for word in words if _is_test(word) == (split == "test")]
    if not chosen:
        count = f"{len(words)} word{'s' * (len(words) != 1)}"
        raise ValueError(f"{path} has {count}, none of them in the {split} split; give a longer list")
    random.Random(_ORDER_SEED).shuffle(chosen)
    return chosen


def _is_test(word: str) -> bool:
    return hashlib.sha256(word.encode()).digest()[0] % _TEST_IN == 0


def spelled(word: str) -> str:
    """Return a word and its letters: `cat:c,a,t`. Without spaces the first letter is the token that it is elsewhere."""
    return f"{word}:{','.join(word)}"


def counting_parts(word: str, letter: str) -> list[dict[str, str]]:
    """Answer how often `letter` occurs in `word`: spelled, counted by hand, checked with the calculator.

    Returns:
        The parts of an assistant's turn: text, the call, its output, text that ends in `#### ` and the number.
    """
    lines, count = [], 0
    for position, found in enumerate(word, 1):
        count += found == letter
        lines.append(f"{position}:{found}" + (f" yes, that makes {count}" if found == letter else ""))
    by_hand = (
        f"I am looking for '{letter}' in '{word}'. These are its letters:\n{spelled(word)}\n\n"
        "Now one after the other:\n" + "\n".join(lines) + f"\nBy hand I find {count}."
    )
    return [
        {"type": "text", "text": by_hand},
        {"type": "text", "text": "\n\nLet the calculator count as well:\n\n"},
        {"type": "python", "text": f"'{word}'.count('{letter}')"},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f"\n\nIt finds {count} too, so the answer is:\n\n#### {count}"},
    ]


class _WordTask(Task):
    """A task with one row for each word of the split; a subclass words the questions."""

    graded = True

    def __init__(self, path: str | Path, split: str = "train", *, size: int | None = None, **chosen: Unpack[RowChoice]):
        words = read_words(path, split)
        if size is not None and size < 1:
            raise ValueError(
                f"size={size} of a spelling task makes no sense; 1 or more is needed, or null for all words"
            )
        self._split, self._words = split, words[:size]
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} {self._split}"

    @property
    def num_rows(self) -> int:
        return len(self._words)


class SimpleSpelling(_WordTask):
    """Words to be spelled: `Spell the word: cat` is answered `cat:c,a,t`.

    Extras of a conversation: `id` (split/row), `word`, `answer` (the expected text).

    Args:
        path: text file with one word a line.
        split: train or test; no word is in both, nor in one split here and in the other of `SpellingBee`.
        size: number of words of the split, or all where there are fewer; None = all.
        chosen: which of these, see `Task`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: for another split, a size below 1, or a line that is not one word.
    """

    def conversation(self, row: int, epoch: int) -> Conversation:
        word = self._words[row]
        messages = [
            {"role": "user", "content": f"Spell the word: {word}"},
            {"role": "assistant", "content": spelled(word)},
        ]
        return {"messages": messages, "id": f"{self._split}/{row}", "word": word, "answer": spelled(word)}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the answer is the word and its letters and nothing else, except for spaces around it."""
        return completion.strip() == conversation["answer"]


class SpellingBee(_WordTask):
    """Questions about how often a letter occurs in a word, answered as `counting_parts` does.

    Extras of a conversation: `id` (split/row), `word`, `letter`, `answer` (the number as text). Letter and wording are
    drawn anew in each epoch.

    Args:
        path: text file with one word a line.
        split: train or test; no word is in both.
        size: number of questions, each about another word, or one about every word where there are fewer; None = one
            about every word. In each epoch letter and wording are drawn anew.
        strict: how answers are read: stated (the number that an answer states) or original (nanochat's rule), see
            docs/evaluation.md.
        chosen: which of these, see `Task`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: for another split, a size below 1, or a line that is not one word.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        size: int | None = None,
        strict: str = "stated",
        **chosen: Unpack[RowChoice],
    ):
        self.strict = check_strict(strict)
        super().__init__(path, split, size=size, **chosen)

    def conversation(self, row: int, epoch: int) -> Conversation:
        word = self._words[row]
        rng = random.Random(f"{self._split}/{word}/{epoch}")
        letter = rng.choice(word if rng.random() < _LETTER_OF_WORD else string.ascii_lowercase)
        messages = [
            {"role": "user", "content": _question(rng, word, letter)},
            {"role": "assistant", "content": counting_parts(word, letter)},
        ]
        kept = {"id": f"{self._split}/{row}", "word": word, "letter": letter, "answer": str(word.count(letter))}
        return {"messages": messages, **kept}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the number after `####` is right; an answer without one never is."""
        return right_number(completion, conversation["answer"], self.strict)


@cache
def questions() -> list[str]:
    """Return the wordings of `SpellingBee`, in several languages, with the fields `{word}` and `{letter}`."""
    return read_yaml(Path(__file__).with_suffix(".yaml"))


def _question(rng: random.Random, word: str, letter: str) -> str:
    wording = rng.choice(questions())
    if rng.random() < _LOWER_CASE:
        wording = wording.lower()
    around_letter, around_word = (rng.choice(("", "'", '"')) for _ in range(2))
    text = wording.format(letter=f"{around_letter}{letter}{around_letter}", word=f"{around_word}{word}{around_word}")
    return f"{text}?" if rng.random() < _QUESTION_MARK else text
