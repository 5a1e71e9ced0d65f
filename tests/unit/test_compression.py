"""Compression: counts by hand, and other vocabularies only from files that are there and whole."""

import hashlib
import socket
from types import SimpleNamespace

import pytest
import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public

from nanochat_pl.eval import compression
from nanochat_pl.eval.compression import OTHERS, Others, cached_encoders, evaluate_compression, sample_texts
from nanochat_pl.eval.results import find_row, results_document
from nanochat_pl.tokenizer import Tokenizer

BYTES = Others({"bytes": lambda text: text.encode()}, {"gpt9": "not invented yet; wait"})


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for samples in sample_texts().values() for text in samples], 400)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a network that must not be asked."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    return tmp_path


def value(rows, metric, **group):
    (row,) = [row for row in rows if row.metric == metric and row.group == (group or None)]
    return row.value


def test_each_domain_and_tokenizer_has_its_counts(tokenizer):
    texts = {"greek": ["λόγος και μύθος", "ναι"], "plain": ["and so on and so on"]}
    rows = evaluate_compression(tokenizer, texts, others=BYTES).rows
    for domain, samples in texts.items():
        size = sum(len(text.encode()) for text in samples)
        tokens = sum(len(tokenizer.encode(text)) for text in samples)
        ours, other = {"domain": domain, "tokenizer": "ours"}, {"domain": domain, "tokenizer": "bytes"}
        assert value(rows, "tokens", **ours) == tokens
        assert value(rows, "tokens", **other) == size
        assert value(rows, "tokens_per_text", **ours) == tokens / len(samples)
        assert value(rows, "bytes_per_token", **ours) == pytest.approx(size / tokens)
        assert value(rows, "bytes_per_token", **other) == 1.0
        assert value(rows, "tokens_ratio/bytes", **ours) == pytest.approx(tokens / size)


def test_the_whole_is_the_sum_of_the_domains(tokenizer):
    evaluation = evaluate_compression(tokenizer, others=BYTES)
    for who in ("ours", "bytes"):
        parts = [r for r in evaluation.records if r["tokenizer"] == who and "tokens" in r]
        assert len(parts) == len(sample_texts())
        assert value(evaluation.rows, "tokens", tokenizer=who) == sum(r["tokens"] for r in parts)
    whole = find_row(evaluation.rows, "bytes_per_token")
    assert whole.value == value(evaluation.rows, "bytes_per_token", tokenizer="ours") > 1.0
    assert find_row(evaluation.rows, "tokens_ratio/bytes").value == pytest.approx(1 / whole.value)


def test_an_absent_vocabulary_stands_in_the_result_without_a_value_and_with_its_remedy(tokenizer):
    evaluation = evaluate_compression(tokenizer, others=BYTES)
    assert value(evaluation.rows, "bytes_per_token", tokenizer="gpt9") is None
    assert evaluation.records[-1] == {"id": "gpt9", "tokenizer": "gpt9", "missing": "not invented yet; wait"}
    document = results_document(evaluation, name="tokenizer", checkpoint={"path": "x", "hash": "y"}, config={})
    assert {"tokenizer": "gpt9"} in [row["group"] for row in document["metrics"]]


def test_the_samples_are_texts_of_a_kilobyte_or_two_in_five_domains():
    samples = sample_texts()
    assert list(samples) == ["news", "languages", "code", "math", "science"]
    for text in (text for texts in samples.values() for text in texts):
        assert 1000 <= len(text.encode()) <= 2000
    compile(samples["code"][0].split("\n//")[0], "sample", "exec")


@pytest.mark.parametrize("name", OTHERS)
def test_the_files_looked_for_are_those_that_tiktoken_reads(name, monkeypatch):
    read = []

    def record(address, expected):
        read.append((address, expected))
        return b"{}" if address.endswith(".json") else b""

    monkeypatch.setattr(tiktoken.load, "read_file_cached", record)
    try:
        getattr(tiktoken_ext.openai_public, name)()
    except AssertionError:  # an empty vocabulary is not a whole one
        assert name == "gpt2"
    assert tuple(read) == OTHERS[name]


def test_without_cached_files_nothing_is_fetched_and_each_is_named(cache):
    others = cached_encoders()
    assert not others.encoders
    assert others.missing.keys() == OTHERS.keys()
    for name, why in others.missing.items():
        assert str(cache) in why and f"get_encoding('{name}')" in why and "TIKTOKEN_CACHE_DIR" in why


def test_a_vocabulary_is_opened_only_if_all_its_files_are_whole(cache, monkeypatch):
    content = {"https://x/one.bpe": b"1", "https://x/two.json": b"2"}
    wanted = tuple((address, hashlib.sha256(data).hexdigest()) for address, data in content.items())
    monkeypatch.setattr(compression, "OTHERS", {"toy": wanted})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: SimpleNamespace(encode_ordinary=str.split))
    one, two = (cache / hashlib.sha1(address.encode()).hexdigest() for address in content)
    one.write_bytes(b"1")
    assert "two.json" in cached_encoders(["toy"]).missing["toy"]
    two.write_bytes(b"torn")
    assert "damaged" in cached_encoders(["toy"]).missing["toy"]
    assert two.read_bytes() == b"torn"
    two.write_bytes(b"2")
    assert cached_encoders(["toy"]).encoders["toy"]("a b") == ["a", "b"]
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert "turns tiktoken's cache off" in cached_encoders(["toy"]).missing["toy"]


def test_an_unknown_vocabulary_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"vocabulary gpt7; choose of gpt2, cl100k_base"):
        cached_encoders(["gpt2", "gpt7"])


def test_a_real_vocabulary_in_the_cache_gives_back_the_text():
    others = cached_encoders()
    if not others.encoders:
        pytest.skip("; ".join(others.missing.values()))
    for name, encode in others.encoders.items():
        for (text,) in sample_texts().values():
            assert tiktoken.get_encoding(name).decode(list(encode(text))) == text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": {}}, "no text"),
        ({"texts": {"mine": [""], "other": ["x"]}}, "on: mine"),
        ({"name": "bytes"}, "another vocabulary"),
        ({"name": "gpt9"}, "another vocabulary"),
    ],
)
def test_what_cannot_be_measured_is_refused(tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_compression(tokenizer, others=BYTES, **settings)


def test_text_that_is_no_unicode_is_counted_all_the_same(tokenizer):
    row = find_row(evaluate_compression(tokenizer, {"broken": ["a\ud800b"]}, others=Others({}, {})).rows, "tokens")
    assert row.value == len(tokenizer.encode("a\ud800b"))
