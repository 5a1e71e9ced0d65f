"""How letters, explanations and short answers are read from what a model wrote."""

import pytest
from torchmetrics.functional.text import rouge_score

from nanochat_pl.eval.answers import (
    explanation_agrees,
    explanation_of,
    names_own_choice,
    regex_letter,
    rouge_l,
)
from nanochat_pl.tasks.answers import normalize, recalled_answer, strict_letter

ABCD = ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is B. lion\n\nExplanation: A lion hunts.", "B"),
        ("B", "B"),
        ("B.", "B"),
        (" (C) a lion", "C"),
        ("D) it melts", "D"),
        ("D: it melts", "D"),
        ("**B**", "B"),
        ("B - the lion", "B"),
        ("B\nbecause it hunts", "B"),
        ("Answer: C", "C"),
        ("answer: (C)", "C"),
        ("I think the answer is option D, since ice melts.", "D"),
        ("The correct choice is A because it hunts.", "A"),
        ("The answer is **B**.", "B"),
        ('The answer is "C".', "C"),
        ("A. Smith and B. Jones thought so, but the answer is C.", "C"),
        ("The answer is not A. The answer is B.", "B"),
    ],
)
def test_strict_letter_is_the_letter_a_response_commits_to(text, letter):
    assert strict_letter(text, ABCD) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A lion is a mammal.",
        "A\tlion",
        "the answer is a lion",
        "the answer is A lion",
        "b. lion",
        "The answer is E. fox",
        "E",
        "The answer is either A or B.",
        "The answer is A or B.",
        "The answer is not B.",
        "It is B. lion",
        "The answer is D.C., where it rains.",
        "C-14 dating shows its age.",
        "Because it hunts.",
        "I do not know.",
        "The answer is Carbon.",
        "Answers: Dogs",
    ],
)
def test_strict_letter_is_none_for_prose_lower_case_and_unknown_letters(text):
    assert strict_letter(text, ABCD) is None


def test_strict_letter_considers_only_the_letters_of_the_question():
    assert strict_letter("The answer is C.", ["A", "B"]) is None
    assert strict_letter("The answer is C.", ["A", "B", "C"]) == "C"
    assert strict_letter("The answer is 3.", ["1", "2", "3"]) == "3"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is B. lion", "B"),
        ("the answer is c", "C"),
        ("(d)", "D"),
        ("The answer is B, see A.", "A"),  # `LETTER.` goes before `answer is LETTER`
        ("it is a lion", "A"),  # the article, which is why this is not the default
        ("Vitamin D helps; a lion knows", "D"),
        ("The answer is F", "F"),
        ("The answer is G", None),
        ("no letters here", None),
    ],
)
def test_letter_regex_reads_as_the_student_project_did(text, letter):
    assert regex_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "explanation"),
    [
        ("The correct answer is A. x\n\nExplanation: It is so.\nTruly.", "It is so.\nTruly."),
        ("The correct answer is A. x\n\nExplanation: It is so.\n\nBackground: Long ago.", "It is so."),
        ("The correct answer is A. x\n\nExplanation:", None),
        ("The correct answer is A. x", None),
        ("A\nExplanation: \n\nBackground: Long ago.", None),
    ],
)
def test_the_explanation_ends_where_the_background_begins(text, explanation):
    assert explanation_of(text) == explanation


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Oxygen", "oxygen"),
        ("The correct answer is oxygen.", "oxygen"),
        ("Answer: the Moon!\nIt shines.", "moon"),
        ("  \n a   lion ", "lion"),
        ("answering machine", "answering machine"),
        ("H₂O", "h2o"),
        ("-5 °C", "-5 °c"),
        ("", ""),
    ],
)
def test_recalled_answer_is_the_first_line_without_leading_phrase(text, answer):
    assert recalled_answer(text) == answer


def test_normalize_is_idempotent():
    for text in ("  “The  LION.” ", "Straße", "**x**", "..."):
        assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The correct answer is B. rock salt\n\nExplanation: x", True),
        ("B) Rock salt.", True),
        ("The correct answer is B. rock saltwater", False),
        ("The correct answer is B. sugar", False),
        ("The correct answer is B.", None),
        ("B", None),
    ],
)
def test_names_own_choice_compares_the_letter_with_the_text_after_it(text, expected):
    assert names_own_choice(text, "B", "rock salt") is expected


def test_explanation_agrees_matches_whole_choices_longest_first():
    assert explanation_agrees("Salt dissolves, sugar too.", "salt", ["sugar"]) is True
    assert explanation_agrees("Only sugar dissolves.", "salt", ["sugar"]) is False
    assert explanation_agrees("It dissolves.", "salt", ["sugar"]) is None
    assert explanation_agrees("We mine rock salt.", "salt", ["rock salt"]) is False
    assert explanation_agrees("We knew it.", "no", ["yes"]) is None


def test_rouge_l_of_known_sentences():
    assert rouge_l("the cat sat on mat", "the cat on the mat") == pytest.approx(0.8)  # "the cat on mat": 4 of 5, 4 of 5
    assert rouge_l("the the the", "the") == pytest.approx(0.5)
    assert rouge_l("Ice melts!", "ice melts") == 1.0
    assert rouge_l("fire", "water") == 0.0
    assert rouge_l("a b c", "c a b") == pytest.approx(
        rouge_score("a b c", "c a b", rouge_keys="rougeL")["rougeL_fmeasure"].item()
    )
