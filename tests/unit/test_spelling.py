"""Laws of spelling and counting letters: the splits share no word, answers are true, and both are graded."""

import random
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from nanochat_pl.calculator import calculate
from nanochat_pl.tasks.base import overlap
from nanochat_pl.tasks.spelling import SimpleSpelling, SpellingBee, counting_parts, questions, read_words

WORDS = ["".join(letters) + "ing" for letters in product("bcdfgklmst", "aeiou", "lmnrst", "aeo")]


@pytest.fixture
def words(tmp_path) -> Path:
    return write(tmp_path, *WORDS)


def write(folder: Path, *lines: str, end: str = "\n") -> Path:
    (folder / "words.txt").write_bytes(end.join(lines).encode() + end.encode())
    return folder / "words.txt"


def said(conversation) -> str:
    content = conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.mark.parametrize("size", [None, 1, 7, 50, 10**6])
def test_no_word_of_the_test_is_trained_whatever_the_sizes_and_epochs(words, size):
    used: dict[str, set[str]] = {}
    for split, other in (("train", None), ("test", size)):
        for task in (SimpleSpelling(words, split, size=size), SpellingBee(words, split, size=other, epochs=3)):
            used.setdefault(split, set()).update(conversation["word"] for conversation in task)
    assert used["train"] and used["test"] and not used["train"] & used["test"]
    for task in (SimpleSpelling, SpellingBee):
        assert not overlap(task(words, "train", epochs=2), task(words, "test", epochs=2))


def test_a_word_keeps_its_split_when_the_list_changes(tmp_path):
    order = random.Random(0).sample(WORDS, 400)
    whole = {split: set(read_words(write(tmp_path, *WORDS), split)) for split in ("train", "test")}
    part = {split: set(read_words(write(tmp_path, *order), split)) for split in ("train", "test")}
    assert all(part[split] <= whole[split] for split in part)
    assert whole["train"] | whole["test"] == set(WORDS)
    assert 0.08 < len(whole["test"]) / len(WORDS) < 0.17


def test_words_are_taken_in_a_fixed_shuffled_order_each_once(words):
    order = [c["word"] for c in SimpleSpelling(words)]
    assert order == [c["word"] for c in SpellingBee(words)] != sorted(order)
    assert [c["word"] for c in SimpleSpelling(words, size=20)] == order[:20] and len(set(order)) == len(order)


def test_spelling_has_no_space_behind_the_colon_and_is_right_only_as_a_whole(words):
    for conversation in SimpleSpelling(words, "test"):
        word = conversation["word"]
        assert [m["content"] for m in conversation["messages"]] == [
            f"Spell the word: {word}",
            f"{word}:{','.join(word)}",
        ]
        task = SimpleSpelling(words, "test", size=1)
        right = said(conversation)
        assert task.grade(conversation, right) and task.reward(conversation, f" {right}\n") == 1.0
        for wrong in ("", word, ",".join(word), right[:-1], right + ".", right.replace(":", ": ")):
            assert not task.grade(conversation, wrong)


def test_counting_spells_goes_letter_by_letter_and_asks_the_calculator(words):
    for conversation in SpellingBee(words, size=300):
        word, letter, answer = (conversation[key] for key in ("word", "letter", "answer"))
        parts = conversation["messages"][-1]["content"]
        assert [part["type"] for part in parts] == ["text", "text", "python", "python_output", "text"]
        assert calculate(parts[2]["text"]) == parts[3]["text"] == answer == str(word.count(letter))
        by_hand = parts[0]["text"]
        assert f"\n{word}:{','.join(word)}\n" in by_hand
        lines = re.findall(r"^(\d+):(.)(.*)$", by_hand, re.MULTILINE)
        assert "".join(found for _, found, _ in lines) == word and [int(n) for n, _, _ in lines] == [
            *range(1, len(word) + 1)
        ]
        hits = [int(rest.split()[-1]) for _, found, rest in lines if found == letter]
        assert hits == [*range(1, word.count(letter) + 1)] and all(not r for _, f, r in lines if f != letter)
        assert parts[-1]["text"].endswith(f"\n#### {answer}")


def test_a_letter_that_is_not_there_is_counted_as_none():
    parts = counting_parts("cat", "x")
    assert parts[3]["text"] == "0" and parts[-1]["text"].endswith("#### 0")


@pytest.mark.parametrize(
    ("text", "right"), [("#### 2", True), ("so\n\n#### 2\n", True), ("2", False), ("#### 3", False), ("", False)]
)
def test_counting_is_graded_by_the_number_behind_the_marks(words, text, right):
    task = SpellingBee(words, size=100)
    conversation = next(c for c in task if c["answer"] == "2")
    assert task.grade(conversation, text) is right and task.reward(conversation, text) == float(right)
    assert task.grade(conversation, said(conversation))


def test_questions_name_word_and_letter_in_many_ways_and_differ_each_epoch(words):
    assert len(set(questions())) == len(questions()) >= 50
    assert all(wording.count("{word}") == wording.count("{letter}") == 1 for wording in questions())
    task = SpellingBee(words, epochs=4)
    asked = [c["messages"][0]["content"] for c in task]
    for conversation, text in zip(task, asked, strict=True):
        assert conversation["word"] in text and conversation["letter"] in text.replace(conversation["word"], "")
    n = len(asked) // 4
    assert asked[:n] != asked[n : 2 * n] and asked == [c["messages"][0]["content"] for c in task]
    marked = sum(text.endswith("?") for text in asked) / len(asked)
    of_the_word = sum(c["answer"] != "0" for c in task) / len(task)
    assert 0.45 < marked < 0.55 and 0.9 < of_the_word < 0.97
    quotes = Counter(re.search(rf"""(['"]?){c["word"]}(['"]?)""", text).groups() for c, text in zip(task, asked))
    assert set(quotes) == {("", ""), ("'", "'"), ('"', '"')} and min(quotes.values()) > len(asked) / 4
    plain = [text for text in asked if text.isascii()]
    assert 0.2 < sum(text == text.lower() for text in plain) / len(plain) < 0.4


def test_a_list_is_read_whatever_its_line_ends_case_and_repeats(tmp_path):
    path = write(tmp_path, *WORDS[:60])
    plain = {split: read_words(path, split) for split in ("train", "test")}
    path = write(
        tmp_path, "\ufeff" + WORDS[0].upper(), *(f" {word.title()}\t" for word in WORDS[1:60]), "", WORDS[3], end="\r\n"
    )
    assert {split: read_words(path, split) for split in ("train", "test")} == plain
    assert read_words(write(tmp_path, "Straße", "éclair", "ñandú"), "train")


def test_lines_that_are_no_word_are_named(tmp_path):
    path = write(tmp_path, "apple", "two words", "it's", *["c3po"] * 20)
    with pytest.raises(ValueError, match=r"words\.txt has 22 lines .*line 2 \('two words'\), 3 \(\"it's\"\), 4 .* …"):
        SpellingBee(path)
    (tmp_path / "words.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"words\.txt is not UTF-8"):
        SimpleSpelling(tmp_path / "words.txt")


def test_missing_files_and_bad_settings_are_refused_with_a_remedy(tmp_path, words):
    for task in (SimpleSpelling, SpellingBee):
        with pytest.raises(
            FileNotFoundError, match=r"no list of words .*none\.txt; fetch one with `curl .*words_alpha"
        ):
            task(tmp_path / "none.txt")
        with pytest.raises(ValueError, match="not one of train, test"):
            task(words, "validation")
        with pytest.raises(ValueError, match="size=0"):
            task(words, size=0)
    with pytest.raises(ValueError, match="has 0 words, none of them in the train split"):
        SpellingBee(write(tmp_path, ""))


def test_the_real_list_gives_both_tasks_their_usual_sizes(data_root):
    path = data_root / "words_alpha.txt"
    assert len(SpellingBee(path, size=50_000)) == 50_000 and len(SpellingBee(path, "test", size=256)) == 256
    assert not set(read_words(path, "train")) & set(read_words(path, "test"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n   "])
def test_a_word_is_the_same_word_however_its_file_was_written(tmp_path, end):
    expected = read_words(write(tmp_path, *WORDS, "café", "größe"), "train")
    decomposed = ["cafe\u0301", "gro\u0308ße"]
    written = write(tmp_path, "\ufeff" + WORDS[0], *(word.upper() for word in WORDS[1:]), *decomposed, end=end)
    assert read_words(written, "train") == expected


@pytest.mark.parametrize(
    ("content", "said_of_it"),
    [
        (b"", "has 0 words, none of them in the test split"),
        (b"\n \n", "has 0 words, none of them in the test split"),
        (b"apple\n", "has 1 word, none of them in the test split"),
        ("apple\ncafé".encode("latin-1"), "not UTF-8 text .byte 0xe9 at place 9."),
        (b"ice cream\n" * 12, "has 12 lines that are not one word of letters: line 1 .'ice cream'.*…"),
    ],
)
def test_a_list_without_words_is_refused_by_what_it_lacks(tmp_path, content, said_of_it):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said_of_it) as refused:
        read_words(tmp_path / "words.txt", "test")
    assert "codec" not in str(refused.value)
