"""Laws of the lists that benchmarks/lookup.py makes up: the answers are right, fresh and not to be had otherwise."""

from types import ModuleType
from typing import Any

import pytest

from tests.conftest import load_benchmark


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("lookup")


def parts(script: ModuleType, lists: Any, ids: list[int]) -> tuple[dict[int, tuple[int, ...]], list[list[int]]]:
    """Read a row back: the words by label, and the questions without their mark and their line end."""
    asks = [place for place, token in enumerate(ids) if token == script.ASK]
    lines, line = {}, []
    for token in ids[1 : asks[0]]:
        if token != script.NEWLINE:
            line.append(token)
            continue
        assert line[1 : 1 + lists.form.between] == [script.BETWEEN] * lists.form.between
        lines[line[0]] = tuple(line[1 + lists.form.between :])
        line = []
    questions = [ids[begin + 1 : end] for begin, end in zip(asks, [*asks[1:], len(ids)])]
    assert all(question.pop() == script.NEWLINE for question in questions)
    return lines, questions


@pytest.mark.parametrize(
    ("name", "facts"), [*((name, False) for name in ("next", "between", "before", "both", "pieces")), ("facts", True)]
)
def test_the_answer_is_the_label_in_front_of_the_asked_word(script: ModuleType, name: str, facts: bool):
    form = script.FORMS[name]
    lists = script.Lists(form, seed=3)
    assert len(set(lists.words)) == script.WORDS
    for _ in range(50):
        ids, supervised = lists.row(facts)
        assert len(ids) <= lists.sequence_len + 1 and max(ids) < lists.vocab_size
        lines, questions = parts(script, lists, ids)
        assert 2 <= len(lines) <= 5 and [*lines] == script.LABELS[: len(lines)]
        assert len(set(lines.values())) == len(lines) and {*lines.values()} <= {*lists.words}
        answers = [token for token, counts in zip(ids, supervised) if counts]
        for question in questions:
            if facts:
                word = lists.words[lists.facts[question[0] - lists.first_question]]
                answer = [
                    next(label for label in lines if lines[label] == word),
                    *[script.BETWEEN] * form.between,
                    *word,
                ]
                asked = [question[0]]
            else:
                asked = question[: -1 - form.before_answer]
                answer = [next(label for label in lines if list(lines[label]) == asked)]
            assert question == [*asked, *[script.IS] * form.before_answer, *answer]
            assert [answers.pop(0) for _ in answer] == answer
        assert not answers, "nothing else is supervised"


def test_seeds_change_the_rows_but_not_what_words_and_facts_there_are(script: ModuleType):
    one, same, other = (script.Lists(script.FORMS["facts"], seed) for seed in (0, 0, 1))
    assert (one.words, one.facts) == (other.words, other.facts)
    rows = [[lists.row(True) for _ in range(5)] for lists in (one, same, other)]
    assert rows[0] == rows[1] != rows[2]


def test_a_batch_targets_the_next_token_where_it_is_supervised(script: ModuleType):
    form = script.FORMS["both"]
    batch = script.Lists(form, 0).batch(3, [False] * 3)
    lists = script.Lists(form, 0)
    for number in range(3):
        ids, supervised = lists.row(False)
        wanted = [token if counts else -1 for token, counts in zip(ids, supervised)][1:]
        inputs, targets = (part[0, number].tolist() for part in (batch.inputs, batch.targets))
        assert inputs[: len(ids) - 1] == ids[:-1] and targets[: len(wanted)] == wanted
        assert {*targets[len(wanted) :]} <= {-1}


def test_two_steps_train_through_the_products_loop(script: ModuleType, capsys: pytest.CaptureFixture[str]):
    right = script.train(script.FORMS["facts"], "short_conv", seed=0, steps=2, every=1)
    assert [*right] == [1, 2] and all({*shares} == {False, True} for shares in right.values())
    script.print_table(
        [
            {"form": "facts", "model": "short_conv", "seed": seed, "step": step, "words": words, "facts": facts}
            for seed, step, words, facts in [
                ("0", "50", "0.5", "0.25"),
                ("0", "100", "1", "0.5"),
                ("1", "50", "1", "1"),
            ]
        ]
    )
    assert "| 2 | 75% / 62% | 100% / 75% |" in capsys.readouterr().out
