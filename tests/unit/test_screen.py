"""Laws of the screen: what models write is shown and never obeyed, whole and in order."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from nanochat_pl.serve.screen import Screen, labels, visible
from nanochat_pl.serve.text import ContentPart

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J \rback\x08 [bold]markup[/bold] :smile: \u202egnp\u202c \u061c\x00\x7f"
laws = settings(deadline=None, max_examples=100)


def screen(width: int = 80, terminal: bool = True) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, _environ={"TERM": "xterm"})
    return Screen(console, console), out


def unstyled(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_control_characters_of_models_are_never_sent_to_the_terminal():
    for terminal in (True, False):
        shown, out = screen(terminal=terminal)
        shown.stream(
            [ContentPart("text", HOSTILE), ContentPart("python", HOSTILE), ContentPart("python_output", HOSTILE)]
        )
        shown.note(HOSTILE)
        shown.heading(HOSTILE)
        shown.columns([HOSTILE, "b"], [iter([ContentPart("text", HOSTILE)]), iter([ContentPart("text", "x")])])
        text = unstyled(out.getvalue()) if terminal else out.getvalue()
        without_live = re.sub(r"\x1b\[(\?25[lh]|[0-9]*[AK]|2K|1A)|\r", "", text)  # what the table itself moves
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e]", without_live)
        assert "[bold]markup[/bold] :smile:" in text
        assert "[31mred]0;title" in text


@laws
@given(st.text(max_size=60))
def test_text_without_control_characters_is_shown_as_it_is(text: str):
    shown, out = screen(terminal=False)
    shown.stream([ContentPart("text", text)])
    ours = visible(text)
    assert out.getvalue().rstrip() == ours.rstrip()
    assert visible(ours) == ours
    if text.isprintable():
        assert ours == re.sub("[\u200e\u200f]", "", text)


@laws
@given(st.lists(st.text("ab cé你🌍\u3000\n", max_size=8), max_size=20), st.integers(4, 30))
@example([" aaaa"], 4)
@example(["a\u3000aaa"], 5)
def test_wrapping_moves_words_and_changes_none(pieces: list[str], width: int):
    shown, out = screen(width)
    shown.stream([ContentPart("text", piece) for piece in pieces])
    lines = out.getvalue().split("\n")
    assert "".join("".join(lines).split()) == "".join("".join(pieces).split())
    assert all(cell_len(line) <= width for line in lines)


def test_words_are_broken_between_lines_only_where_one_is_longer():
    shown, out = screen(10)
    shown.stream([ContentPart("text", piece) for piece in ("the c", "at sat on", " the mat abcdefghijklmno")])
    assert out.getvalue().splitlines() == ["the cat", "sat on the", "mat", "abcdefghij", "klmno"]


@pytest.mark.parametrize(
    ("parts", "shown_as"),
    [
        ([("text", "so "), ("python", "12*3"), ("python_output", "36"), ("text", " cats")], "so [12*3 = 36] cats"),
        ([("python", "1/0"), ("text", "?")], "[1/0]?"),
        ([("python", "1/0")], "[1/0]"),
    ],
)
def test_tool_calls_are_shown_with_their_results(parts, shown_as):
    shown, out = screen()
    shown.stream([ContentPart(*part) for part in parts])
    assert unstyled(out.getvalue()) == shown_as + "\n"
    assert "\x1b[2m" in out.getvalue()
    shown, out = screen(120)
    shown.columns(["a", "b"], [iter([ContentPart(*part) for part in parts]), iter([])])
    assert shown_as in unstyled(out.getvalue())


def test_an_answer_that_breaks_off_is_shown_as_far_as_it_came():
    def breaks():
        yield ContentPart("text", "the cat")
        yield ContentPart("python", "1+")
        raise KeyboardInterrupt

    shown, out = screen()
    with pytest.raises(KeyboardInterrupt):
        shown.stream(breaks())
    assert unstyled(out.getvalue()) == "the cat[1+]\n"


def test_models_get_the_shortest_names_that_differ():
    def named(*paths: str) -> list[str]:
        return labels([SimpleNamespace(path=Path(path)) for path in paths])  # type: ignore[misc]

    assert named("o/base/d4/checkpoints/best.ckpt", "o/sft/d4/checkpoints/last.ckpt") == ["base/d4", "sft/d4"]
    assert named("o/sft/d4/checkpoints/best.ckpt", "o/sft/d4/checkpoints/last.ckpt") == ["sft/d4:best", "sft/d4:last"]
    assert len(set(named("a/sft/d4/checkpoints/best.ckpt", "b/sft/d4/checkpoints/best.ckpt"))) == 2
