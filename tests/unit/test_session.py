"""Laws of a conversation with a model: what is remembered, what can be asked again, what never fails."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.decoding import DecodingSession
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.serve.chat import Chat, Settings
from nanochat_pl.serve.context import ContextFull
from nanochat_pl.tasks.jsonl import read_conversations
from nanochat_pl.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat Ünïcödé 你好世界 🌍🌍\n\n"] * 3, vocab_size=290)
SHORT = Settings(max_new_tokens=12, seed=1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    config = GPTConfig(sequence_len=80, vocab_size=290, n_layer=1, n_head=2, n_kv_head=2, n_embd=32)
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return LoadedModel(
        model=model.eval(), tokenizer=TOKENIZER, path=Path("outputs/sft/d1/best.ckpt"), stage="sft", step=7, config={}
    )


@pytest.fixture
def chat(loaded: LoadedModel) -> Chat:
    return Chat(loaded, SHORT)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    """Let models say these tokens, whatever they want to say."""

    def script(tokens: Sequence[int]) -> None:
        ordinary = DecodingSession._choose

        def choose(self, rows, draws, logits, events):
            logits = torch.full_like(logits, -10.0)
            for place, row in enumerate(rows):
                logits[place, tokens[len(row.completion.tokens)]] = 10.0
            ordinary(self, rows, draws, logits, events)

        monkeypatch.setattr(DecodingSession, "_choose", choose)

    return script


def said(parts) -> str:
    return "".join(part.text for part in parts)


def test_a_streamed_answer_is_added_to_the_conversation(chat: Chat):
    answer = said(chat.ask("the cat?"))
    assert answer
    assert chat.messages == [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": answer}]
    said(chat.ask("the mat?"))
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_a_seed_makes_the_same_conversation_and_none_another_one(loaded: LoadedModel):
    settings = Settings(max_new_tokens=12, temperature=1.0, top_k=None, seed=3)

    def talk(settings: Settings) -> list[str]:
        chat = Chat(loaded, settings)
        return [said(chat.ask(question)) for question in ("the cat?", "the mat?")]

    assert talk(settings) == talk(settings)
    assert len({tuple(talk(Settings(max_new_tokens=12, temperature=1.0, top_k=None))) for _ in range(4)}) > 1


def test_regenerating_draws_anew_and_replaces_the_answer(chat: Chat):
    chat.set(temperature=1.0, top_k=None)
    first = said(chat.ask("the cat?"))
    others = {said(chat.regenerate()) for _ in range(3)}
    assert others != {first}
    assert len(chat.messages) == 2
    assert chat.question == "the cat?"


def test_editing_replaces_the_last_question_only(chat: Chat):
    said(chat.ask("one"))
    before = list(chat.messages)
    said(chat.ask("two"))
    said(chat.edit("three"))
    assert chat.messages[:2] == before
    assert [message["content"] for message in chat.messages[::2]] == ["one", "three"]


def test_regenerate_and_edit_need_a_question(chat: Chat):
    for again in (chat.regenerate, lambda: chat.edit("x")):
        with pytest.raises(ValueError, match="nothing was asked"):
            again()


def test_a_stopped_answer_is_kept_as_far_as_it_came(chat: Chat):
    chat.set(max_new_tokens=60, temperature=0.0)
    whole = said(chat.ask("the cat?"))
    chat.clear()
    parts = []
    for part in chat.ask("the cat?"):
        parts.append(part)
        if len(parts) == 3:
            chat.stop()
    assert chat.stats is not None
    assert chat.stats.ended == "stopped"
    assert len(whole) > len(said(parts)) > 0
    assert chat.messages[-1]["content"] == said(parts)
    assert said(chat.ask("and now?"))


def test_an_abandoned_answer_is_kept_as_far_as_it_came(chat: Chat):
    answer = chat.ask("the cat?")
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.stats is not None
    assert chat.stats.ended == "stopped"


def test_an_answer_that_is_never_begun_changes_nothing(chat: Chat):
    chat.ask("the cat?")
    assert chat.messages == []


def test_a_conversation_of_ten_contexts_drops_its_oldest_turns_and_reports_it(chat: Chat):
    chat.system = "be nice"
    chat.set(max_new_tokens=3)
    dropped, tokens = [], 0
    while tokens < 10 * chat.sequence_len:
        said(chat.ask("the cat sat on the mat " * 2))
        assert chat.stats is not None
        dropped.append(chat.stats.dropped)
        tokens += len(TOKENIZER.encode("the cat sat on the mat " * 2)) + chat.stats.new_tokens
        assert chat.stats.prompt_tokens + chat.stats.new_tokens <= chat.sequence_len
    assert dropped == sorted(dropped)
    assert dropped[0] == 0
    assert 0 < dropped[-1] < len(chat.messages) - 1
    said(chat.ask("the cat sat on the mat " * 200))
    assert chat.stats is not None
    assert chat.stats.truncated


def test_a_refused_question_changes_nothing(loaded: LoadedModel):
    chat = Chat(loaded, SHORT, policy="refuse")
    said(chat.ask("the cat?"))
    before = list(chat.messages)
    with pytest.raises(ContextFull, match="begin a new one"):
        chat.ask("the cat sat on the mat " * 50)
    assert chat.messages == before


def test_stats_count_prompt_and_new_tokens(chat: Chat):
    parts = list(chat.ask("the cat?"))
    stats = chat.stats
    assert stats is not None
    assert stats.prompt_tokens == len(TOKENIZER.encode("the cat?")) + 4
    assert 0 < stats.new_tokens <= 12
    assert stats.first_token_s is not None
    assert 0 < stats.first_token_s <= stats.total_s
    assert parts
    if stats.new_tokens == 12:
        assert stats.ended == "length"


def test_a_tool_call_is_remembered_as_parts_that_render(chat: Chat, says):
    special = TOKENIZER.special_id
    call = [special("<|python_start|>"), *TOKENIZER.encode("12*3"), special("<|python_end|>")]
    result = [special("<|output_start|>"), *TOKENIZER.encode("36"), special("<|output_end|>")]
    says([*TOKENIZER.encode("so "), *call, *result, *TOKENIZER.encode(" cats"), special("<|assistant_end|>")])
    chat.set(max_new_tokens=40)
    assert [part for part in chat.ask("12 times 3?") if part.type != "text"] == [
        ("python", "12*3"),
        ("python_output", "36"),
    ]
    assert chat.messages[-1]["content"][-1] == {"type": "text", "text": " cats"}
    assert chat.stats is not None
    assert chat.stats.ended == "end"
    said(chat.ask("and now?"))


def test_settings_out_of_range_are_refused_and_change_nothing(chat: Chat):
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 2.0}, {"min_p": -0.1}, {"max_new_tokens": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            chat.set(**wrong)
    assert chat.settings == SHORT


def test_plain_text_is_continued_without_a_conversation(chat: Chat):
    assert said(chat.complete("the cat sat on"))
    assert chat.messages == []
    assert chat.stats is not None
    assert chat.stats.prompt_tokens == 1 + len(TOKENIZER.encode("the cat sat on"))


def test_a_saved_conversation_can_be_loaded_and_trained_on(chat: Chat, loaded: LoadedModel, tmp_path: Path):
    chat.system = "be\u2028nice"
    said(chat.ask("Ünï 🌍\nand more"))
    file = tmp_path / "talk.json"
    chat.save(file)
    other = Chat(loaded, SHORT)
    other.load(file)
    assert other.conversation == chat.conversation
    said(other.ask("more?"))
    other.save(tmp_path / "more.json")
    both = tmp_path / "both.jsonl"
    both.write_bytes(file.read_bytes() + (tmp_path / "more.json").read_bytes())
    assert [len(conversation["messages"]) for conversation in read_conversations(both)] == [3, 5]
    with pytest.raises(ValueError, match="several conversations"):
        other.load(both)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not one conversation as JSON: it breaks off or has a mistake at line 1, column 2; mend it there$"),
        ("3", "one message or more"),
        ("{}", "one message or more"),
        (json.dumps([{"role": "user", "content": "a"}]), "ends with a question"),
        (json.dumps([{"role": "assistant", "content": "a"}]), "message 0"),
        (json.dumps([{"role": "user", "content": 3}]), "must be a string"),
    ],
)
def test_loading_a_wrong_file_names_it_and_changes_nothing(chat: Chat, tmp_path: Path, content, fault):
    said(chat.ask("the cat?"))
    before = list(chat.messages)
    file = tmp_path / "talk.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=fault) as caught:
        chat.load(file)
    assert str(file) in str(caught.value)
    assert chat.messages == before


def test_lone_surrogates_from_a_terminal_are_replaced(chat: Chat, tmp_path: Path):
    chat.system = "be \udcff nice"
    said(chat.ask("the \udcff cat"))
    chat.save(tmp_path / "talk.json")
    assert chat.question == "the \ufffd cat"
    assert "be \ufffd nice" in (tmp_path / "talk.json").read_text(encoding="utf-8")
