"""The vocabulary's laws: round trips, equal backends, masks, files that cannot run code."""

import copy
import json
import os
import pickle
import random
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from nanochat_pl import paths, vocabulary
from nanochat_pl.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, compression, training_texts
from nanochat_pl.vocabulary import LONGEST_RUN, cut_runs

TEXTS = [
    "The quick brown fox jumps over the lazy dog; the dog, it's said, didn't mind. 12345 times!\n\n",
    "Water boils at 100 degrees Celsius, and the water in the kettle boiled over.\r\n\tthe end  \n",
    "Ünïcödé: 你好世界 🌍🌍 — the naïve café, the naïve café. ﬀ ſt İ ı ß \u3000ＦＵＬＬ \x00\x85\u2028",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=320)


def talk(*contents):
    """A conversation of these contents, the user first."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]}


# ---------------------------------------------------------------------------------------------------- training


def test_vocabulary_is_bytes_then_merges_then_special_tokens(tokenizer):
    assert tokenizer.vocab_size == 320
    assert [tokenizer.decode_bytes([i]) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert [tokenizer.special_id(name) for name in SPECIAL_TOKENS] == list(range(311, 320))
    assert tokenizer.bos_id == 311
    assert tokenizer.decode([tokenizer.bos_id]) == "<|bos|>"


@pytest.mark.parametrize("alphabet", ["ab", "abc ", "a b1.\n", "aé你🌍 \n", "x"])
def test_backends_learn_identical_ids_even_where_every_count_ties(alphabet):
    rng = random.Random(alphabet)
    compared = 0
    for _ in range(20):
        texts = ["".join(rng.choice(alphabet) for _ in range(rng.randint(0, 200))) for _ in range(3)]
        try:
            ours = Tokenizer.train(texts, 265 + rng.randint(0, 40))
        except ValueError:  # too little text: the other backend must say the same, tested below
            continue
        assert Tokenizer.train(texts, ours.vocab_size, backend="huggingface").fingerprint() == ours.fingerprint()
        compared += 1
    assert compared


def test_backends_learn_identical_ids_on_prose(tokenizer):
    other = Tokenizer.train(iter(TEXTS), 320, backend="huggingface")
    assert other.fingerprint() == tokenizer.fingerprint()
    assert other.origin.startswith("tokenizers ") and tokenizer.origin.startswith("rustbpe ")


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [1024, 8192])
def test_backends_learn_identical_ids_on_real_text(data_root, vocab_size):
    pq = pytest.importorskip("pyarrow.parquet")
    documents = pq.read_table(data_root / "fineweb_like" / "shard_00000.parquet")["text"].to_pylist()
    texts = list(training_texts(documents, max_chars=5_000_000, doc_cap_chars=10_000))
    rust, huggingface = (Tokenizer.train(texts, vocab_size, backend=b) for b in ("rustbpe", "huggingface"))
    assert rust.fingerprint() == huggingface.fingerprint()


def test_backends_cut_text_alike_wherever_unicode_changes_category():
    """Their regular expression engines carry tables of their own of what is a letter, a digit, a space."""
    borders = [c for c in range(1, 0x110000) if unicodedata.category(chr(c)) != unicodedata.category(chr(c - 1))]
    characters = {chr(c + side) for c in borders for side in (-1, 0) if not 0xD800 <= c + side < 0xE000}
    texts = [f"x{c} 5{c}.{c}'{c}\t{c}" for c in sorted(characters)]
    rust, huggingface = (Tokenizer.train(texts, 8000, backend=b) for b in ("rustbpe", "huggingface"))
    assert len(texts) > 5000 and rust.fingerprint() == huggingface.fingerprint()


@pytest.mark.parametrize("backend", ["rustbpe", "huggingface"])
def test_too_little_text_says_what_was_reached_and_that_size_works(backend):
    with pytest.raises(ValueError, match=r"vocab_size=5000.*one token at 269.*vocab_size=269 or less"):
        Tokenizer.train(["aaa bb"], 5000, backend=backend)
    assert Tokenizer.train(["aaa bb"], 269, backend=backend).vocab_size == 269


def test_vocab_size_below_bytes_and_special_tokens_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size=264 .* need 265"):
        Tokenizer.train(TEXTS, 264)
    assert Tokenizer.train(TEXTS, 265).vocab_size == 265


def test_one_text_in_place_of_many_and_unknown_backend_are_refused():
    with pytest.raises(ValueError, match=r"pass \[text\]"):
        Tokenizer.train("one text", 300)
    with pytest.raises(ValueError, match=r"tokenizer.backend='sentencepiece'.*rustbpe, huggingface"):
        Tokenizer.train(TEXTS, 300, backend="sentencepiece")


def test_an_error_of_the_text_source_passes_through():
    def documents():
        yield "some text"
        raise FileNotFoundError("shard 2")

    with pytest.raises(FileNotFoundError, match="shard 2"):
        Tokenizer.train(documents(), 300)


def test_training_text_ends_with_the_document_that_passes_max_chars():
    documents = ["a" * 10, "b" * 10, "c" * 10, "d" * 10]
    assert list(training_texts(documents, max_chars=20, doc_cap_chars=None)) == documents[:3]  # 20 is not above 20
    assert list(training_texts(documents, max_chars=19, doc_cap_chars=None)) == documents[:2]
    assert list(training_texts(documents, max_chars=8, doc_cap_chars=4)) == ["aaaa", "bbbb", "cccc"]
    assert list(training_texts(documents, max_chars=None, doc_cap_chars=None)) == documents


# ---------------------------------------------------------------------------------------------------- encoding


def test_decode_inverts_encode(tokenizer):
    rng = random.Random(0)
    code_points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = ["", " ", *TEXTS, *("".join(map(chr, rng.choices(code_points, k=50))) for _ in range(50))]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_in_text_stay_text(tokenizer):
    text = "<|bos|>x<|assistant_start|>"
    ids = tokenizer.encode(text)
    assert max(ids) < tokenizer.bos_id and tokenizer.decode(ids) == text


def test_prepend_and_append_take_id_or_name(tokenizer):
    end = tokenizer.special_id("<|assistant_end|>")
    bare = tokenizer.encode(["the", ""])
    framed = tokenizer.encode(["the", ""], prepend="<|bos|>", append=end, num_threads=2)
    assert framed == [[tokenizer.bos_id, *ids, end] for ids in bare]
    assert tokenizer.encode("the", prepend=7) == [7, *bare[0]]
    with pytest.raises(ValueError, match=r"'<\|eos\|>' is no special token"):
        tokenizer.encode("the", append="<|eos|>")


def test_lone_surrogates_encode_as_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("wrong", [320, -1, 2**40])
def test_decoding_an_id_outside_the_vocabulary_names_it(tokenizer, wrong):
    with pytest.raises(ValueError, match=rf"token id {wrong} is outside this vocabulary of 320"):
        tokenizer.decode([65, wrong])


def test_part_of_a_character_decodes_to_replacement_but_keeps_its_bytes(tokenizer):
    assert tokenizer.decode([0xE4]) == "\ufffd"
    assert tokenizer.decode_bytes([0xE4]) == b"\xe4"


def test_token_bytes_are_raw_lengths_and_zero_for_special_tokens(tokenizer):
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32 and lengths.shape == (320,)
    assert (lengths[:256] == 1).all() and (lengths[256:311] >= 2).all() and (lengths[311:] == 0).all()
    for text in TEXTS:
        assert lengths[tokenizer.encode(text, prepend="<|bos|>")].sum() == len(text.encode())


def test_compression_is_bytes_per_token(tokenizer):
    expected = sum(len(t.encode()) for t in TEXTS) / sum(len(tokenizer.encode(t)) for t in TEXTS)
    assert compression(tokenizer, TEXTS) == pytest.approx(expected) and expected > 1
    with pytest.raises(ValueError, match="every text is empty"):
        compression(tokenizer, [""])


# ------------------------------------------------------------------------------------------------ conversations


def test_mask_covers_what_the_assistant_writes_and_nothing_else(tokenizer):
    parts = [
        {"type": "text", "text": "let me see "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "it is 42"},
    ]
    ids, mask = tokenizer.render_conversation(talk("6*7?", parts, "thanks", "welcome"))
    learned = tokenizer.decode([i for i, m in zip(ids, mask) if m])
    given = tokenizer.decode([i for i, m in zip(ids, mask) if not m])
    assert learned == ("let me see <|python_start|>6*7<|python_end|>it is 42<|assistant_end|>welcome<|assistant_end|>")
    assert given == (
        "<|bos|><|user_start|>6*7?<|user_end|><|assistant_start|><|output_start|>42<|output_end|>"
        "<|user_start|>thanks<|user_end|><|assistant_start|>"
    )


def test_system_message_joins_the_first_user_message_and_input_stays_untouched(tokenizer):
    with_system = {"messages": [{"role": "system", "content": "Be terse."}, *talk("Hi", "Yo")["messages"]]}
    before = copy.deepcopy(with_system)
    assert tokenizer.render_conversation(with_system) == tokenizer.render_conversation(talk("Be terse.\n\nHi", "Yo"))
    tokenizer.render_for_completion(with_system)
    assert with_system == before


def test_completion_prompt_is_the_conversation_without_its_last_answer(tokenizer):
    whole, _ = tokenizer.render_conversation(talk("a", "b", "c", "the answer"))
    prompt = tokenizer.render_for_completion(talk("a", "b", "c", "the answer"))
    assert whole[: len(prompt)] == prompt
    assert prompt[-1] == tokenizer.special_id("<|assistant_start|>")


@pytest.mark.parametrize("max_tokens", [0, 1, 7, 2048])
def test_truncation_cuts_ids_and_mask_alike_before_the_assistant_is_prompted(tokenizer, max_tokens):
    ids, mask = tokenizer.render_conversation(talk("question " * 600, "answer"), max_tokens)
    assert len(ids) == len(mask) == max_tokens
    assert len(tokenizer.render_for_completion(talk("question " * 600, "answer"), max_tokens)) == max_tokens + 1


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ({}, "'messages'"),
        ({"messages": []}, "one message or more"),
        ({"messages": "hello"}, "'messages'"),
        ([{"role": "user", "content": "x"}], "'messages'"),
        ({"messages": [{"role": "system", "content": "x"}]}, "followed by a user message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "message 0 .* expected 'user'"),
        ({"messages": talk("a", "b")["messages"] + talk("c", "d")["messages"][1:]}, "message 2 .* expected 'user'"),
        ({"messages": [{"role": "user"}]}, r"message 0 \(user\): content must be a string, found NoneType"),
        (talk([{"type": "text", "text": "x"}], "y"), r"message 0 \(user\).*found list"),
        (talk("x", 3), "string or a list of parts, found int"),
        (talk("x", [{"type": "image", "text": "x"}]), "part 0 has type 'image', expected one of text, python"),
        (talk("x", ["plain"]), "part 0 has type 'str'"),
        (talk("x", [{"type": "text"}]), "part 0: text must be a string"),
    ],
)
def test_malformed_conversations_are_refused_by_name(tokenizer, conversation, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.render_conversation(conversation)


def test_completion_needs_an_answer_to_leave_out(tokenizer):
    with pytest.raises(ValueError, match="last message must be the assistant's, found role 'user'"):
        tokenizer.render_for_completion(talk("x", "y", "z"))
    with pytest.raises(ValueError, match="max_tokens=-1 is negative"):
        tokenizer.render_conversation(talk("x", "y"), max_tokens=-1)


# ---------------------------------------------------------------------------------------------------- files


def test_an_answer_ends_at_its_own_token_or_where_a_document_begins(tokenizer):
    assert tokenizer.stop_ids == (tokenizer.special_id("<|assistant_end|>"), tokenizer.bos_id)


def test_save_and_load_keep_every_id_and_leave_one_file(tokenizer, tmp_path):
    file = tokenizer.save(tmp_path / "tok")
    assert [entry.name for entry in file.parent.iterdir()] == ["tokenizer.json"]
    for loaded in (Tokenizer.load(tmp_path / "tok"), Tokenizer.load(file), Tokenizer.from_state(tokenizer.state())):
        assert loaded.state() == tokenizer.state()
        assert loaded.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_a_failed_save_keeps_the_old_file(tokenizer, tmp_path, monkeypatch):
    file = tokenizer.save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths, "move_into_place", full)
    with pytest.raises(OSError, match=r"cannot write .*tokenizer\.json \(no space left"):
        Tokenizer.train(TEXTS, 300).save(tmp_path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    assert Tokenizer.load(file).fingerprint() == tokenizer.fingerprint()


def test_state_is_plain_json_and_pickling_for_workers_keeps_the_vocabulary(tokenizer):
    assert json.loads(json.dumps(tokenizer.state())) == tokenizer.state()
    assert pickle.loads(pickle.dumps(tokenizer)).state() == tokenizer.state()
    assert copy.deepcopy(tokenizer).encode("the end") == tokenizer.encode("the end")


def test_fingerprint_depends_on_ids_and_pattern_only(tokenizer):
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.bos_id)]
    assert Tokenizer(tokens, origin="elsewhere").fingerprint() == tokenizer.fingerprint()
    swapped = [*tokens[:-2], tokens[-1], tokens[-2]]
    assert Tokenizer(swapped).fingerprint() != tokenizer.fingerprint()
    assert Tokenizer(tokens, pattern=r"\S+|\s+").fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected the format"),
        ({"pattern": r"\S+|\s+"}, "fingerprint does not fit"),
        ({"pattern": "((("}, "no regular expression"),
        ({"special_tokens": {"<|bos|>": 0}}, "expected the special tokens"),
        ({"tokens_base64": ["AA=="]}, "single bytes"),
        ({"tokens_base64": ["*"]}, "base64"),
        ({"tokens_base64": [1]}, "wrong type"),
        ({"tokens_base64": None}, "wrong type"),
    ],
)
def test_a_damaged_or_foreign_json_is_refused_with_its_path(tokenizer, tmp_path, change, message):
    file = tokenizer.save(tmp_path)
    file.write_text(json.dumps(tokenizer.state() | change))
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "nanochat_pl.tokenizer/1"}', b"\xff\xfe", b'{"format": '])
def test_a_truncated_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="not a usable tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_repeated_or_empty_token_is_refused():
    tokens = [bytes([b]) for b in range(256)]
    for extra in ([b"th", b"th"], [b""]):
        with pytest.raises(ValueError, match="empty token or the same token twice"):
            Tokenizer(tokens + extra)


def test_a_missing_tokenizer_is_reported_with_what_is_there(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"there: model.ckpt.*stage=tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such path"):
        Tokenizer.load(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- nanochat's pickle


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """Write tokenizer.pkl: a tiktoken.Encoding with a good state but for the given changes (None drops a field)."""

    def write(**changes):
        state = {
            "name": "rustbpe",
            "pat_str": SPLIT_PATTERN,
            "mergeable_ranks": {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
            "special_tokens": {name: 258 + i for i, name in enumerate(SPECIAL_TOKENS)},
        } | changes
        state = {key: value for key, value in state.items() if value is not None}
        with monkeypatch.context() as patch:
            patch.setattr(tiktoken.Encoding, "__getstate__", lambda self: state)
            (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(object.__new__(tiktoken.Encoding)))
        return tmp_path

    return write


def test_nanochats_pickle_is_read_without_tiktokens_unpickling(pickled, monkeypatch):
    monkeypatch.setattr(tiktoken.Encoding, "__setstate__", None)
    loaded = Tokenizer.load(pickled())
    assert loaded.vocab_size == 267 and loaded.encode("the") == [257] and loaded.origin == "nanochat pickle"
    long_token = b"-" * 300
    ranks = {bytes([b]): b for b in range(256)} | {long_token: 256, b"--": 257}
    assert Tokenizer.load(pickled(mergeable_ranks=ranks)).decode_bytes([256]) == long_token


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "expected a tiktoken.Encoding with the fields name, pat_str"),
        ({"hook": "x"}, "found .*hook"),
        ({"pat_str": 5}, "found .*int"),
        ({"mergeable_ranks": {bytes([b]): b + 1 for b in range(256)}}, "without a gap"),
        ({"mergeable_ranks": {bytes([b]): 255 - b for b in range(256)}}, "single bytes"),
        ({"mergeable_ranks": {str(b): b for b in range(256)}}, "must map bytes to whole numbers"),
        ({"special_tokens": {"<|endoftext|>": 258}}, r"found \{'<\|endoftext\|>': 258\}"),
    ],
)
def test_a_pickle_with_other_fields_is_refused_and_says_what_it_found(pickled, changes, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(pickled(**changes))


class Runs:
    """Pickles to a call of os.mkdir, the harmless cousin of every attack."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_nothing_runs(tmp_path, protocol):
    trap = tmp_path / "trap"
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(Runs(trap), protocol=protocol))
    with pytest.raises(ValueError, match=r"mkdir.*nothing was run"):
        Tokenizer.load(tmp_path)
    assert not trap.exists()
    pickle.loads((tmp_path / "tokenizer.pkl").read_bytes())
    assert trap.exists()  # the file was a live one


def test_code_hidden_inside_an_encoding_is_refused_and_nothing_runs(pickled, tmp_path):
    trap = tmp_path / "trap"
    for changes in ({"name": Runs(trap)}, {"hook": Runs(trap)}, {"special_tokens": {Runs(trap): 1}}):
        with pytest.raises(ValueError, match=r"mkdir.*nothing was run"):
            Tokenizer.load(pickled(**changes))
    assert not trap.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # names a function without calling it
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93}b.",  # sets state on the class, not on an object
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93.",
        b"\x80\x04}r\xff\xff\xff\x7f.",  # would reserve gigabytes for its memo
        b"\x80\x04\x82\x01.",  # copyreg extension
        b"\x80\x04}.",
        b"\x80\x04",
        b"",
        b"not a pickle",
        pickle.dumps({"pat_str": "x"}),
        pickle.dumps([1, 2, 3]),
    ],
)
def test_other_pickles_are_refused(tmp_path, data):
    (tmp_path / "tokenizer.pkl").write_bytes(data)
    with pytest.raises(ValueError, match="not a usable tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_truncated_pickle_is_refused_wherever_it_ends(pickled):
    folder = pickled()
    data = (folder / "tokenizer.pkl").read_bytes()
    for end in range(0, len(data), 97):
        (folder / "tokenizer.pkl").write_bytes(data[:end])
        with pytest.raises(ValueError, match="not a usable tokenizer"):
            Tokenizer.load(folder)


SPACES = [" ", "\t", "\n", "\r\n", " \n", "\u00a0", "\u3000"]


@pytest.mark.parametrize("run", [*SPACES, "a", "é", "中", "1", "!", "-", "'", "\u0301", "\x00", "\x1c"])
def test_a_text_has_the_ids_of_the_library_but_inside_endless_white_space(run: str):
    tokenizer = Tokenizer.train(["word of words and    blanks -- 2024\n\n!!!"] * 4, 280)
    library = tokenizer._encoding.encode_ordinary
    for length in (LONGEST_RUN - 1, LONGEST_RUN + 1, 999_998):  # one more, and the library panics on blanks
        text = f"before{run * (length // len(run))}after it"
        theirs, ours = library(text), tokenizer.encode(text)
        if run in SPACES and length >= LONGEST_RUN:
            head, tail = len(library("before")), len(library(f"{run[-1]}after it"))
            assert (ours[:head], ours[-tail:]) == (theirs[:head], theirs[-tail:])
            assert tokenizer.decode(ours) == text
        else:
            assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("run", [*SPACES, "中", "!"])
def test_two_million_times_the_same_character_is_encoded_and_comes_back(run: str):
    tokenizer = Tokenizer.train(["word of words and    blanks -- 2024\n\n!!!"] * 4, 280)
    text = f"before{run * (2_000_000 // len(run))}after it"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode([text, "next"], prepend="<|bos|>") == [
        [tokenizer.bos_id, *ids],
        [tokenizer.bos_id, *tokenizer.encode("next")],
    ]


@given(
    st.text(max_size=40),
    st.sampled_from([" ", "\n", " \n", "\t ", "\r\n", "\u3000"]),
    st.text(max_size=40),
    st.integers(-2, 40),
    st.sampled_from(["  x", "\n", "!\n", "'s", ""]),
)
def test_cutting_changes_ids_inside_long_runs_of_spaces_alone(before: str, run: str, after: str, more: int, tail: str):
    size = 16
    text = before + run * ((size + more) // len(run)) + tail + after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "LONGEST_RUN", size)
        pieces = cut_runs(text)
    assert "".join(pieces) == text
    whole = regex.findall(SPLIT_PATTERN, text)
    cut = [chunk for piece in pieces for chunk in regex.findall(SPLIT_PATTERN, piece)]
    # the same chunks of the split pattern, but for what is white space all through
    assert _without_spaces(cut) == _without_spaces(whole)
    if not regex.search(r"\s{16}", text):
        assert pieces == [text]


def _without_spaces(chunks: list[str]) -> list[str]:
    # the pattern adds line ends, here part of a run, to the punctuation before them
    return [bare for chunk in chunks if (bare := chunk.rstrip("\r\n")) and not regex.fullmatch(r"\s+", bare)]


@pytest.mark.parametrize("backend", ["rustbpe", "huggingface"])
@pytest.mark.parametrize("run", [" ", "a", "!"])
def test_a_vocabulary_is_learnt_from_text_with_endless_runs(backend: str, run: str):
    texts = ["the cat sat on the mat and saw other words to be learnt "] * 20 + [f"word{run * 300_000}word"]
    learnt = Tokenizer.train(texts, 280, backend)  # type: ignore[arg-type]
    assert learnt.fingerprint() == Tokenizer.train(texts, 280).fingerprint()


def test_a_panic_of_the_library_is_an_error_with_its_remedy():
    tokenizer = Tokenizer.train(["word of words and    blanks"] * 4, 270)

    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("stack")

    tokenizer._encoding = SimpleNamespace(encode_ordinary=panic, encode_ordinary_batch=panic)
    for text in ("x" * 12, ["x" * 12]):
        with pytest.raises(ValueError, match=r"12 characters cannot be encoded: the tokenizer library gave up .*stack"):
            tokenizer.encode(text)
