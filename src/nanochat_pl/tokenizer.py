"""The tokenizer: text to token ids and back, by the one vocabulary that all stages and checkpoints of a run share.

A byte-level BPE in nanochat's form: rustbpe (or, as a cross-check, Hugging Face tokenizers) learns the merges, tiktoken
applies them, and nine special tokens follow the learned ones. Conversations are rendered here too, since their form
consists of the special tokens. Files are JSON, so that loading cannot run code, and nanochat's own `tokenizer.pkl` is
read by an unpickler that knows a single harmless class.
"""

import base64
import binascii
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import tiktoken

from nanochat_pl.paths import write_atomically
from nanochat_pl.vocabulary import LONGEST_WORD, SPLIT_PATTERN, TRAINERS, WORDS, cut_runs, explain_panics, read_pickle

__all__ = ["CONTENT_PARTS", "SPECIAL_TOKENS", "SPLIT_PATTERN", "Tokenizer", "compression", "training_texts"]

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""Control tokens in the order of their ids, which are the last ones of every vocabulary."""

CONTENT_PARTS = {
    "text": (None, None, 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),  # the tool writes this, never the model
}
"""Type of an assistant's part -> the tokens around it, and whether a model learns to write it."""

_FORMAT = "nanochat_pl.tokenizer/1"
_MAX_FILE_BYTES = 64 * 2**20


class Tokenizer:
    """A vocabulary with its encoder; immutable, picklable, and equal to another iff the fingerprints are.

    Args:
        tokens: byte string of every learned token, index = id; the first 256 are the single bytes in order.
        pattern: regular expression that cuts text into the chunks within which bytes are merged.
        origin: human-readable note of who made the vocabulary.

    Raises:
        ValueError: if `tokens` cannot encode every text, or `pattern` is no valid expression.
    """

    def __init__(self, tokens: Sequence[bytes], pattern: str = SPLIT_PATTERN, origin: str = "unknown"):
        self._tokens = [bytes(token) for token in tokens]
        self.pattern = pattern
        self.origin = origin
        ranks = {token: rank for rank, token in enumerate(self._tokens)}
        if self._tokens[:256] != [bytes([byte]) for byte in range(256)]:
            raise ValueError("the first 256 tokens of a vocabulary must be the single bytes 00 to ff, in order")
        if len(ranks) != len(self._tokens) or b"" in ranks:
            raise ValueError("the vocabulary has an empty token or the same token twice; the file is damaged")
        self._special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self._bytes = dict(enumerate((*self._tokens, *(name.encode() for name in self._special))))
        try:
            self._encoding = tiktoken.Encoding(
                "nanochat_pl", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self._special
            )
        except ValueError as error:
            raise ValueError(
                f"the split pattern {pattern!r} is no regular expression tiktoken knows: {error}"
            ) from None

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, backend: Literal["rustbpe", "huggingface"] = "rustbpe"
    ) -> "Tokenizer":
        """Learn a vocabulary; both backends give the same one to the last id.

        The most frequent pair of neighbours is merged first, ties go to the smaller (left id, right id).

        Args:
            texts: training text, read once; see `training_texts`.
            vocab_size: number of all ids: 256 bytes, merges and 9 special tokens.
            backend: `rustbpe` is about three times faster.

        Raises:
            ValueError: if `vocab_size` leaves no room for bytes and special tokens, or the text yields fewer merges.
        """
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise ValueError(
                f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
                f"already need {smallest}; set tokenizer.vocab_size={smallest} or more"
            )
        if isinstance(texts, str):
            raise ValueError("Tokenizer.train takes an iterable of texts, not one text; pass [text]")
        if backend not in TRAINERS:
            raise ValueError(f"tokenizer.backend={backend!r} is unknown; choose one of {', '.join(TRAINERS)}")
        package, learn = TRAINERS[backend]
        pieces = (piece for text in texts for piece in cut_runs(text, WORDS, LONGEST_WORD))
        with explain_panics("the tokenizer cannot be trained on this text"):
            tokens = learn(pieces, vocab_size - len(SPECIAL_TOKENS))
        reached = len(tokens) + len(SPECIAL_TOKENS)
        if reached < vocab_size:
            raise ValueError(
                f"the training text is too small for tokenizer.vocab_size={vocab_size}: every word of it became one "
                f"token at {reached}; give it more text (data.root, tokenizer.max_chars, tokenizer.doc_cap_chars) or "
                f"set tokenizer.vocab_size={reached} or less"
            )
        return cls(tokens, origin=f"{package} {version(package)}")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a folder (`tokenizer.json`, else nanochat's `tokenizer.pkl`) or one such file.

        Raises:
            FileNotFoundError: if neither is there; the message lists what is.
            ValueError: if the file is damaged, of another program, or a pickle of anything but a vocabulary.
        """
        path = Path(path)
        file = path
        if path.is_dir():
            file = next((path / name for name in ("tokenizer.json", "tokenizer.pkl") if (path / name).is_file()), path)
        if not file.is_file():
            there = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) if path.is_dir() else "no such path"
            raise FileNotFoundError(
                f"no tokenizer at {path} (there: {there or 'nothing'}); expected tokenizer.json or nanochat's "
                "tokenizer.pkl. Train one with: python train.py stage=tokenizer"
            )
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes, too many for a vocabulary")
        data = file.read_bytes()
        try:
            return cls._from_pickle(data) if file.suffix == ".pkl" else cls.from_state(json.loads(data))
        except (UnicodeError, json.JSONDecodeError):
            kind = "complete pickle" if file.suffix == ".pkl" else "JSON"
            raise ValueError(f"{file} is not a usable tokenizer: it is no {kind}") from None
        except ValueError as error:
            raise ValueError(f"{file} is not a usable tokenizer: {error}") from None

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` whole or not at all, and return its path."""
        file = Path(folder) / "tokenizer.json"
        write_atomically(file, json.dumps(self.state(), indent=1))
        return file

    def state(self) -> dict[str, Any]:
        """Return the tokenizer as JSON types; this is how a checkpoint carries it."""
        return {
            "format": _FORMAT,
            "origin": self.origin,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint(),
            "pattern": self.pattern,
            "special_tokens": dict(self._special),
            "tokens_base64": [base64.b64encode(token).decode() for token in self._tokens],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Tokenizer":
        """Invert `state`.

        Raises:
            ValueError: if `state` is not one of ours or its fingerprint does not fit its content.
        """
        found = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        if found != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}, found {found!r}")
        try:
            tokens = [base64.b64decode(token, validate=True) for token in state["tokens_base64"]]
            tokenizer = cls(tokens, pattern=str(state["pattern"]), origin=str(state["origin"]))
            special, fingerprint = state["special_tokens"], state["fingerprint"]
        except binascii.Error:
            raise ValueError("its tokens are no base64") from None
        except (KeyError, TypeError):
            raise ValueError("a field is missing or of the wrong type") from None
        if special != tokenizer._special:
            raise ValueError(f"expected the special tokens {tokenizer._special}, found {special}")
        if fingerprint != tokenizer.fingerprint():
            raise ValueError(
                "its fingerprint does not fit its content; it was edited or damaged, train or copy it anew"
            )
        return tokenizer

    @classmethod
    def _from_pickle(cls, data: bytes) -> "Tokenizer":
        stored = read_pickle(data)
        tokenizer = cls(stored.tokens, pattern=stored.pattern, origin="nanochat pickle")
        if stored.special_tokens != tokenizer._special:
            raise ValueError(f"expected the special tokens {tokenizer._special}, found {stored.special_tokens}")
        return tokenizer

    def __reduce__(self):
        return Tokenizer, (self._tokens, self.pattern, self.origin)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, origin={self.origin!r}, fingerprint={self.fingerprint()[:12]})"

    def fingerprint(self) -> str:
        """Return the SHA-256 over pattern, learned tokens and special tokens: equal iff all ids mean the same."""
        content = [self.pattern, [token.hex() for token in self._tokens], list(SPECIAL_TOKENS)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, including special tokens."""
        return len(self._tokens) + len(SPECIAL_TOKENS)

    @property
    def bos_id(self) -> int:
        """Id of `<|bos|>`, which begins each document and conversation."""
        return self._special["<|bos|>"]

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Ids that end an answer: `<|assistant_end|>`, and `<|bos|>`, with which a base model begins a document."""
        return self._special["<|assistant_end|>"], self.bos_id

    def special_id(self, name: str) -> int:
        """Return the id of a special token, e.g. `<|assistant_end|>`; ValueError for any other name."""
        if name not in self._special:
            raise ValueError(f"{name!r} is no special token; there are {', '.join(SPECIAL_TOKENS)}")
        return self._special[name]

    def token_bytes(self) -> np.ndarray:
        """Return the length of each id in raw bytes, int32 `(V,)`, 0 for special tokens.

        Differs: nanochat (until 2026-07) measured the decoded string, where bytes that are no UTF-8 alone count 3.
        """
        return np.array([len(token) for token in self._tokens] + [0] * len(SPECIAL_TOKENS), dtype=np.int32)

    @overload
    def encode(
        self, text: str, prepend: int | str | None = None, append: int | str | None = None, num_threads: int = 8
    ) -> list[int]: ...
    @overload
    def encode(
        self, text: list[str], prepend: int | str | None = None, append: int | str | None = None, num_threads: int = 8
    ) -> list[list[int]]: ...
    def encode(self, text, prepend=None, append=None, num_threads=8):
        """Turn text into ids; special tokens spelt out in it stay plain text, so no user can forge a turn.

        Runs of 500,000 or more white space characters are cut before (see `nanochat_pl.vocabulary.cut_runs`).

        Args:
            text: one text, or a list of them.
            prepend: id, or name of a special token, that is set before every text.
            append: id, or name of a special token, that is set after every text.
            num_threads: number of threads that encode a list.
        """
        head, tail = self._as_ids(prepend), self._as_ids(append)
        if isinstance(text, str):
            pieces = cut_runs(text)
            with explain_panics(f"a text of {len(text):,} characters cannot be encoded"):
                encoded = [self._encoding.encode_ordinary(piece) for piece in pieces]
            return [*head, *itertools.chain.from_iterable(encoded), *tail]
        cut = [cut_runs(one) for one in text]
        flat = list(itertools.chain.from_iterable(cut))
        with explain_panics(
            f"{len(text):,} texts of up to {max(map(len, text), default=0):,} characters cannot be encoded"
        ):
            rows = self._encoding.encode_ordinary_batch(flat, num_threads=num_threads)
        if len(flat) > len(cut):
            ids = iter(rows)
            rows = [list(itertools.chain.from_iterable(itertools.islice(ids, len(pieces)))) for pieces in cut]
        return [[*head, *row, *tail] for row in rows] if head or tail else rows

    def _as_ids(self, token: int | str | None) -> list[int]:
        if token is None:
            return []
        return [self.special_id(token) if isinstance(token, str) else int(token)]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the raw bytes of `ids`; ValueError for an id outside the vocabulary."""
        try:
            # A lookup: tiktoken's releases the interpreter's lock, which costs more than it does for a token at a time.
            return b"".join([self._bytes[i] for i in ids])
        except KeyError:
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise ValueError(f"token id {wrong} is outside this vocabulary of {self.vocab_size} ids") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, special tokens their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def render_conversation(
        self, conversation: Mapping[str, Any], max_tokens: int = 2048
    ) -> tuple[list[int], list[int]]:
        """Render a conversation as ids, with the mask of those that a model is to learn to produce.

        A leading system message joins the first user message. An assistant's content is a string or a list of parts
        `{"type": "text" | "python" | "python_output", "text": ...}`. (nanochat, 2025-11)

        Args:
            conversation: `{"messages": [{"role": ..., "content": ...}, ...]}`, user and assistant by turns.
            max_tokens: everything beyond this number of ids is cut off.

        Returns:
            Ids and mask of equal length; mask 1 = supervised (the assistant's words, tool calls and end token).

        Raises:
            ValueError: if roles or contents are not as above; the error names the message.
        """
        if max_tokens < 0:
            raise ValueError(f"max_tokens={max_tokens} is negative")
        ids, mask = [self.bos_id], [0]

        def add(tokens: list[int], supervised: int) -> None:
            ids.extend(tokens)
            mask.extend([supervised] * len(tokens))

        for i, (role, content) in enumerate(_turns(conversation)):
            if role == "user":
                text = _text(content, f"message {i} (user): content")
                add(self.encode(text, prepend="<|user_start|>", append="<|user_end|>"), 0)
                continue
            add([self._special["<|assistant_start|>"]], 0)
            for kind, text in _assistant_parts(content, f"message {i} (assistant)"):
                before, after, supervised = CONTENT_PARTS[kind]
                add(self.encode(text, prepend=before, append=after), supervised)
            add([self._special["<|assistant_end|>"]], 1)
        return ids[:max_tokens], mask[:max_tokens]

    def render_for_completion(self, conversation: Mapping[str, Any], max_tokens: int = 2048) -> list[int]:
        """Render all but the last message, which must be the assistant's, and open the assistant's turn.

        Returns:
            At most `max_tokens + 1` ids: the opening token comes after the cut, as in nanochat.
        """
        messages = _messages(conversation)
        if messages[-1].get("role") != "assistant":
            raise ValueError(f"the last message must be the assistant's, found role {messages[-1].get('role')!r}")
        ids, _ = self.render_conversation({"messages": messages[:-1]}, max_tokens)
        return [*ids, self._special["<|assistant_start|>"]]


def training_texts(documents: Iterable[str], max_chars: int | None, doc_cap_chars: int | None) -> Iterator[str]:
    """Yield a tokenizer's training text: the beginning of each document, until there is enough.

    Args:
        documents: training documents in their order.
        max_chars: stop after the document that brings the sum above this number of characters; None = never.
        doc_cap_chars: number of characters kept of each document; None = all.
    """
    total = 0
    for document in documents:
        text = document[:doc_cap_chars]
        yield text
        total += len(text)
        if max_chars is not None and total > max_chars:
            return


def compression(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return UTF-8 bytes per token over `texts`, without special tokens; ValueError if all texts are empty."""
    tokens = sum(len(row) for row in tokenizer.encode(list(texts)))
    if tokens == 0:
        raise ValueError("no text to measure compression on: every text is empty")
    return sum(len(text.encode("utf-8", errors="replace")) for text in texts) / tokens


def _messages(conversation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, Sequence) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise ValueError(
            "a conversation is {'messages': [{'role': ..., 'content': ...}, ...]} with one message or more"
        )
    return list(messages)


def _turns(conversation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (role, content) by turns, the system message merged into the user's first."""
    messages = _messages(conversation)
    if messages[0].get("role") == "system":
        if len(messages) < 2 or messages[1].get("role") != "user":
            raise ValueError("a system message must be followed by a user message")
        system = _text(messages[0].get("content"), "message 0 (system): content")
        user = _text(messages[1].get("content"), "message 1 (user): content")
        messages = [{"role": "user", "content": f"{system}\n\n{user}"}, *messages[2:]]
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message.get("role") != expected:
            raise ValueError(
                f"message {i} (a leading system message not counted) has role {message.get('role')!r}, expected "
                f"{expected!r}: user and assistant must take turns, the user first"
            )
    return [(message["role"], message.get("content")) for message in messages]


def _assistant_parts(content: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield (type, text) of an assistant's content."""
    if isinstance(content, str):
        yield "text", content
        return
    if not isinstance(content, Sequence):
        raise ValueError(f"{where}: content must be a string or a list of parts, found {type(content).__name__}")
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in CONTENT_PARTS:
            raise ValueError(f"{where}, part {j} has type {kind!r}, expected one of {', '.join(CONTENT_PARTS)}")
        yield kind, _text(part.get("text"), f"{where}, part {j}: text")


def _text(content: Any, where: str) -> str:
    if not isinstance(content, str):
        raise ValueError(f"{where} must be a string, found {type(content).__name__}")
    return content
