"""The small parts of samples during training; whole runs are in tests/integration."""

import json
import logging
from pathlib import Path

import pytest

from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.callbacks.samples import drop_lines_from, encode_prompts, one_line

TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])


def test_lines_of_the_resumed_step_and_later_and_a_torn_one_are_dropped(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    drop_lines_from(path, 3)
    assert not path.exists()
    texts = [json.dumps({"step": step, "output": "a\u2028b\x85c"}, ensure_ascii=False) for step in (2, 2, 3, 4)]
    path.write_text("\n".join(texts) + '\n{"step": 2, "out', encoding="utf-8")
    drop_lines_from(path, 3)
    assert path.read_text(encoding="utf-8") == "\n".join(texts[:2]) + "\n"
    drop_lines_from(path, 0)
    assert path.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("lost", [b"\0\0\0", b'{"step": 1, "out', b"\xff\xfe", b"[]", b"{}", b"1", b""])
def test_a_line_that_cannot_be_read_is_dropped_and_does_not_stop_a_resume(tmp_path: Path, lost: bytes):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 1}\n' + lost + b'\n{"step": 2}\n{"step": 3}\n')
    drop_lines_from(path, 3)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_text_is_shown_on_one_line_without_control_characters():
    assert one_line(" two\nlines\tand \x1b[31mred ", 40) == "two lines and [31mred"
    assert one_line("x" * 50, 10) == "x" * 10 + "…"
    assert one_line("x" * 10, 10) == "x" * 10
    assert one_line("日本 語", 40) == "日本 語"


def test_a_prompt_is_a_text_behind_bos_or_a_turn_of_a_chat():
    special = TOKENIZER.special_id
    [text] = encode_prompts(TOKENIZER, ["ab"], as_chat=False, sequence_len=16).values()
    assert text == [TOKENIZER.bos_id, *b"ab"]
    [turn] = encode_prompts(TOKENIZER, ["ab"], as_chat=True, sequence_len=16).values()
    assert turn == [
        TOKENIZER.bos_id, special("<|user_start|>"), *b"ab", special("<|user_end|>"), special("<|assistant_start|>")
    ]  # fmt: skip


@pytest.mark.parametrize(("as_chat", "most"), [(False, 14), (True, 11)])
def test_a_prompt_without_room_for_one_token_is_left_out_with_a_warning(
    as_chat: bool, most: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("nanochat_pl"), "propagate", True)
    prompts = ["x" * most, "y" * (most + 1), "z" * 100]
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompts(TOKENIZER, prompts, as_chat=as_chat, sequence_len=16)
    assert list(encoded) == prompts[:1]
    assert [len(ids) for ids in encoded.values()] == [15]
    assert len({record.getMessage() for record in caplog.records}) == 2
    assert "shorten it in stage.sample_prompts" in caplog.text
