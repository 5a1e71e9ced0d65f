"""Laws of the context: what a model is shown always fits, is always a conversation, and what went is counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_pl.serve.context import ContextFull, fit, fit_text
from nanochat_pl.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat Ünïcödé 你好世界 🌍🌍\n\n"] * 3, vocab_size=290)
laws = settings(deadline=None, max_examples=100)
CONTENTS = st.lists(st.text("the cat 你🌍\n", max_size=60), min_size=1, max_size=15).filter(
    lambda texts: len(texts) % 2
)
SYSTEM = st.none() | st.text("be nice", max_size=20)


def talk(contents: list[str], system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def opened(messages) -> list[int]:
    return TOKENIZER.render_for_completion({"messages": [*messages, {"role": "assistant", "content": ""}]}, 10**9)


@laws
@given(CONTENTS, SYSTEM, st.integers(48, 400), st.integers(0, 500))
def test_a_conversation_of_any_length_fits_and_keeps_room_for_an_answer(contents, system, sequence_len, wanted):
    messages = talk(contents, system)
    prompt = fit(messages, TOKENIZER, sequence_len, wanted)
    assert len(prompt.ids) + min(wanted, -(-sequence_len // 4)) <= sequence_len
    assert prompt.dropped % 2 == 0
    if not prompt.truncated:
        assert prompt.ids == opened(talk(contents[prompt.dropped :], system))


@laws
@given(CONTENTS, SYSTEM, st.integers(48, 400), st.integers(0, 500))
def test_as_few_turns_as_possible_are_dropped(contents, system, sequence_len, wanted):
    prompt = fit(talk(contents, system), TOKENIZER, sequence_len, wanted)
    if prompt.dropped:
        one_more = opened(talk(contents[prompt.dropped - 2 :], system))
        assert len(one_more) + min(wanted, -(-sequence_len // 4)) > sequence_len


@laws
@given(CONTENTS, SYSTEM, st.integers(48, 400))
def test_refusing_and_dropping_agree_on_what_fits(contents, system, sequence_len):
    messages = talk(contents, system)
    dropped = fit(messages, TOKENIZER, sequence_len, 32)
    if dropped.dropped or dropped.truncated:
        with pytest.raises(ContextFull, match=f"context length is {sequence_len}"):
            fit(messages, TOKENIZER, sequence_len, 32, "refuse")
    else:
        assert fit(messages, TOKENIZER, sequence_len, 32, "refuse") == dropped


def test_a_single_message_that_does_not_fit_keeps_its_end_and_the_system_message():
    message = "the cat 你好 " * 100 + "at last?"
    prompt = fit(talk(["old", "older", message], "be nice"), TOKENIZER, 64, 16)
    said = TOKENIZER.decode(prompt.ids)
    assert prompt.truncated
    assert prompt.dropped == 2
    assert len(prompt.ids) + 16 == 64
    assert said.startswith("<|bos|><|user_start|>be nice\n\n")
    assert said.endswith("at last?<|user_end|><|assistant_start|>")


@laws
@given(st.integers(20, 60))
def test_a_cut_never_begins_within_a_character(sequence_len):
    prompt = fit(talk(["🌍é你" * 40]), TOKENIZER, sequence_len, 4)
    text = fit_text("🌍é你" * 40, TOKENIZER, sequence_len, 4)
    assert "�" not in TOKENIZER.decode(prompt.ids) + TOKENIZER.decode(text.ids)
    assert prompt.truncated
    assert text.truncated


def test_a_system_message_that_fills_the_context_is_refused_with_the_remedy():
    with pytest.raises(ContextFull, match=r"system message alone .* shorten it"):
        fit(talk(["hello"], "be nice " * 50), TOKENIZER, 64, 16)


@laws
@given(CONTENTS, SYSTEM, st.text("the cat 你🌍\n", max_size=300), st.integers(48, 400), st.integers(0, 500))
def test_a_last_assistant_message_is_continued(contents, system, begun, sequence_len, wanted):
    messages = [*talk(contents, system), {"role": "assistant", "content": begun}]
    prompt = fit(messages, TOKENIZER, sequence_len, wanted)
    assert len(prompt.ids) + min(wanted, -(-sequence_len // 4)) <= sequence_len
    assert prompt.dropped % 2 == 0
    if not prompt.truncated:
        assert prompt.ids == opened(talk(contents[prompt.dropped :], system)) + TOKENIZER.encode(begun)
    else:
        end = prompt.ids[prompt.ids.index(TOKENIZER.special_id("<|assistant_start|>")) + 1 :]
        assert begun.endswith(TOKENIZER.decode(end))


def test_plain_text_is_whole_where_it_fits_and_refused_or_cut_where_not():
    assert fit_text("the cat", TOKENIZER, 64, 16).ids == [TOKENIZER.bos_id, *TOKENIZER.encode("the cat")]
    long = fit_text("the cat " * 100, TOKENIZER, 64, 16)
    assert len(long.ids) == 48
    assert long.truncated
    with pytest.raises(ContextFull, match="Shorten it"):
        fit_text("the cat " * 100, TOKENIZER, 64, 16, "refuse")


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "one message or more"),
        ([{"role": "assistant", "content": "b"}], "expected 'user'"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "message 1"),
        ([{"role": "system", "content": "a"}], "followed by a user message"),
        ([{"role": "user", "content": 3}], "must be a string"),
        (["hello"], "one message or more"),
    ],
)
def test_a_wrong_message_is_refused_by_its_place(messages, fault):
    with pytest.raises(ValueError, match=fault):
        fit(messages, TOKENIZER, 64, 16)


def test_an_unknown_policy_and_a_negative_length_are_refused():
    with pytest.raises(ValueError, match="drop, refuse"):
        fit(talk(["a"]), TOKENIZER, 64, 16, "forget")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        fit(talk(["a"]), TOKENIZER, 64, -1)
