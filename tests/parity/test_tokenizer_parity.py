"""The tokenizer against what nanochat (2025-11) recorded: ids, masks, byte counts, and the training itself."""

import json

import numpy as np
import pytest

from nanochat_pl.tokenizer import SPLIT_PATTERN, Tokenizer, training_texts
from tests.parity.reference import read

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def recorded(reference_root):
    return json.loads((reference_root / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def conversations(reference_root):
    return json.loads((reference_root / "conversations.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(reference_root):
    return Tokenizer.load(reference_root / "base" / "tokenizer")


def test_nanochats_pickle_gives_its_vocabulary(tokenizer, recorded):
    assert tokenizer.vocab_size == recorded["vocab_size"]
    assert tokenizer.pattern == recorded["pattern"] == SPLIT_PATTERN
    assert tokenizer.bos_id == recorded["bos_id"]
    assert [tokenizer.decode_bytes([i]).hex() for i in range(tokenizer.bos_id)] == recorded["mergeable_ranks_hex"]
    assert {name: tokenizer.special_id(name) for name in recorded["special_tokens"]} == recorded["special_tokens"]
    for token, text in recorded["id_to_token"].items():
        assert tokenizer.decode([int(token)]) == text


def test_pickle_of_a_real_run_loads_and_survives_our_json(reference_root, tmp_path):
    curve = read(reference_root / "curve_d4.json")
    loaded = Tokenizer.load(reference_root / curve["tokenizer"])
    assert loaded.vocab_size == curve["model_config"]["vocab_size"]
    loaded.save(tmp_path)
    assert Tokenizer.load(tmp_path).state() == loaded.state()


@pytest.mark.parametrize("backend", ["rustbpe", "huggingface"])
def test_training_on_the_same_text_gives_the_same_merges(reference_root, recorded, tokenizer, backend):
    train_files = sorted((reference_root / "base" / "base_data").glob("*.parquet"))[:-1]
    documents = (text for file in train_files for text in pq.read_table(file)["text"].to_pylist())
    texts = training_texts(documents, max_chars=None, doc_cap_chars=10_000)
    assert Tokenizer.train(texts, recorded["vocab_size"], backend=backend).fingerprint() == tokenizer.fingerprint()


def test_encoding_and_decoding_equal_the_record(tokenizer, recorded):
    for case in recorded["encode"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    batch = recorded["encode_batch_prepend_append"]
    assert tokenizer.encode(batch["texts"], prepend=batch["prepend"], append=batch["append"]) == batch["ids"]
    single = recorded["encode_prepend_id"]
    assert tokenizer.encode(single["text"], prepend=single["prepend_id"]) == single["ids"]


def test_token_bytes_differ_from_the_record_exactly_where_a_token_is_no_utf8(tokenizer, recorded):
    ours, theirs = tokenizer.token_bytes(), np.array(recorded["token_bytes"])
    raw = [tokenizer.decode_bytes([i]) for i in range(tokenizer.bos_id)]
    broken = [i for i, token in enumerate(raw) if "\ufffd" in token.decode("utf-8", errors="replace")]
    assert np.flatnonzero(ours != theirs).tolist() == broken
    # The record counts each such token by its decoded string: three bytes a replacement character.
    assert [theirs[i] for i in broken] == [len(raw[i].decode("utf-8", errors="replace").encode()) for i in broken]
    assert [ours[i] for i in broken] == [len(raw[i]) for i in broken]


def test_conversations_render_to_the_recorded_ids_and_masks(tokenizer, conversations):
    refused = 0
    for case in conversations:
        limit = {"max_tokens": case["max_tokens"]} if "max_tokens" in case else {}
        if "raises" in case:
            with pytest.raises(ValueError):
                tokenizer.render_conversation(case["conversation"], **limit)
            refused += 1
            continue
        ids, mask = tokenizer.render_conversation(case["conversation"], **limit)
        assert (ids, mask) == (case["ids"], case["mask"]), case["name"]
        if "completion_ids" in case:
            # recorded without a limit: the original's completion always cuts at 2048
            assert tokenizer.render_for_completion(case["conversation"]) == case["completion_ids"], case["name"]
    assert refused and len(conversations) > refused
