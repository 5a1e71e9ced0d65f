"""Laws of the text stream: what comes out is what the tokens say, whole characters only, and nothing behind a stop."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_pl.serve.text import ContentPart, TextStream, merge_parts
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

TOKENIZER = Tokenizer.train(
    ["the cat sat on the mat 12*3 = 36 Ünïcödé 你好世界 🌍🌍 stop stopping\n\n"] * 3, vocab_size=300
)
NUM_PLAIN = TOKENIZER.vocab_size - len(SPECIAL_TOKENS)
PLAIN = st.lists(st.integers(0, NUM_PLAIN - 1), max_size=40)
laws = settings(deadline=None, max_examples=200)


def run(tokens, stop=()) -> tuple[list[ContentPart], TextStream]:
    stream = TextStream(TOKENIZER, stop)
    parts = []
    for token in tokens:
        parts += stream.push(*token) if isinstance(token, tuple) else stream.push(token)
    return parts + stream.finish(), stream


def text_of(parts) -> str:
    return "".join(text for _, text in parts)


def ids(text: str) -> list[int | tuple[int, bool]]:
    """Tokens of a text, in which `{` and `}` are python start and end, `[` and `]` a tool's output."""
    special = dict(zip("{}[]", SPECIAL_TOKENS[-4:]))
    tokens: list[int | tuple[int, bool]] = []
    for character in text:
        if character in "{}":
            tokens.append(TOKENIZER.special_id(special[character]))
        elif character in "[]":
            tokens.append((TOKENIZER.special_id(special[character]), False))
        else:
            tokens += TOKENIZER.encode(character)
    return tokens


@laws
@given(PLAIN)
def test_parts_joined_are_the_text_of_all_tokens(tokens: list[int]):
    parts, _ = run(tokens)
    assert text_of(parts) == TOKENIZER.decode(tokens)
    assert all(kind == "text" and text for kind, text in parts)


@laws
@given(st.lists(st.text(max_size=4) | st.sampled_from(SPECIAL_TOKENS), max_size=20), st.booleans())
def test_special_tokens_never_become_text_and_change_no_other(pieces: list[str], sampled: bool):
    tokens: list[tuple[int, bool]] = []
    for piece in pieces:
        special = piece in SPECIAL_TOKENS
        tokens += [
            (token, sampled) for token in ([TOKENIZER.special_id(piece)] if special else TOKENIZER.encode(piece))
        ]
    assert text_of(run(tokens)[0]) == "".join(piece for piece in pieces if piece not in SPECIAL_TOKENS)


@laws
@given(st.text(max_size=30))
def test_valid_text_is_never_shown_with_replacement_characters(text: str):
    stream, said = TextStream(TOKENIZER), ""
    for token in text.encode("utf-8"):  # the worst case: every byte a token
        said += text_of(stream.push(token))
        assert text.startswith(said)
    assert said == text
    assert stream.finish() == []


def test_bytes_that_never_become_a_character_are_marked_at_the_end():
    stream = TextStream(TOKENIZER)
    assert stream.push(0xF0) == []
    assert stream.push(0x9F) == []
    assert stream.finish() == [("text", "�")]
    assert stream.finish() == []


@laws
@given(PLAIN, st.lists(st.text("aest o", min_size=1, max_size=5), min_size=1, max_size=3))
def test_the_text_ends_before_the_stop_string_that_is_complete_first(tokens: list[int], stop: list[str]):
    whole = TOKENIZER.decode(tokens)
    expected, met = whole, False
    for end in range(1, len(whole) + 1):
        met = any(whole[:end].endswith(string) for string in stop)
        if met:
            longest = max((string for string in stop if whole[:end].endswith(string)), key=len)
            expected = whole[: end - len(longest)]
            break
    parts, stream = run(tokens, stop)
    assert text_of(parts) == expected
    assert stream.stopped == met


@laws
@given(st.text("stop ing", max_size=20))
def test_how_text_is_cut_into_tokens_makes_no_difference_to_stop_strings(text: str):
    stop = ["stop", "top i", "ing"]
    whole, _ = run(TOKENIZER.encode(text), stop)
    by_bytes, _ = run(list(text.encode()), stop)
    assert text_of(whole) == text_of(by_bytes)


def test_a_possible_start_of_a_stop_string_is_held_back_until_decided():
    stream = TextStream(TOKENIZER, ["###"])
    assert stream.push(ord("a")) == [("text", "a")]
    assert stream.push(ord("#")) == []
    assert stream.push(ord("#")) == []
    assert stream.push(ord("b")) == [("text", "##b")]
    assert stream.push(ord("#")) == []
    assert stream.finish() == [("text", "#")]


def test_after_a_stop_string_nothing_comes():
    parts, stream = run(ids("ab##cd{1+1}[2]"), ["##"])
    assert text_of(parts) == "ab"
    assert stream.stopped
    assert stream.push(ord("x")) == []


def test_tool_calls_and_results_come_whole():
    parts, _ = run(ids("So {12*3}[36] it is"))
    assert [part for part in parts if part.type != "text"] == [("python", "12*3"), ("python_output", "36")]
    assert merge_parts(parts) == [
        {"type": "text", "text": "So "},
        {"type": "python", "text": "12*3"},
        {"type": "python_output", "text": "36"},
        {"type": "text", "text": " it is"},
    ]


def test_an_incomplete_tool_call_is_given_out_at_the_end():
    assert run(ids("{12*"))[0] == [("python", "12*")]


def test_a_tool_result_written_by_the_model_itself_is_text():
    sampled = [token[0] if isinstance(token, tuple) else token for token in ids("{1+1}[3]")]
    parts, _ = run(sampled)
    assert [kind for kind, _ in parts] == ["python", "text"]


def test_stop_strings_are_looked_for_in_text_only():
    parts, stream = run(ids("{1+1}[2]+"), ["1+", "2"])
    assert not stream.stopped
    assert text_of(parts) == "1+12+"


def test_merging_makes_content_that_renders_as_the_tokens_were():
    tokens = ids("So {12*3}[36] it is")
    plain = [token[0] if isinstance(token, tuple) else token for token in tokens]
    content = merge_parts(run(tokens)[0])
    talk = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]}
    rendered, _ = TOKENIZER.render_conversation(talk)
    start = TOKENIZER.special_id("<|assistant_start|>")
    answer = rendered[rendered.index(start) + 1 : -1]
    assert TOKENIZER.decode(answer) == TOKENIZER.decode(plain)


def test_text_alone_is_a_string():
    assert merge_parts([]) == ""
    assert merge_parts([ContentPart("text", "a"), ContentPart("text", "b")]) == "ab"


@pytest.mark.parametrize("stop", ["stop", ["a", ""]])
def test_empty_stop_strings_and_a_bare_string_are_refused(stop):
    with pytest.raises(ValueError, match="stop"):
        TextStream(TOKENIZER, stop)
