"""Sources of a vocabulary: two libraries that learn the same one, and nanochat's pickle, read without running it.

`tokenizer.py` applies vocabularies; this module only makes lists of byte strings, index = id.
"""

import contextlib
import io
import itertools
import pickle
import pickletools
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = [
    "BYTE_OF",
    "LONGEST_RUN",
    "LONGEST_WORD",
    "SPACES",
    "SPLIT_PATTERN",
    "TRAINERS",
    "WORDS",
    "PickledVocabulary",
    "cut_runs",
    "explain_panics",
    "read_pickle",
]

SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""Where text may be cut before merging: GPT-4's rule, with digits in pairs (nanochat, 2025-11)."""


LONGEST_RUN = 500_000
"""Runs of white space of this length or more are cut into pieces; the libraries run out of stack with 999,999.

Runs of letters, digits, punctuation and line ends are encoded at any length.
"""
LONGEST_WORD = 65_536
"""Trainers get longer words in pieces, because the time of `tokenizers` grows with the square of their length."""
SPACES = (re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*+"),)
r"""The split pattern's `\s`: Unicode's White_Space, which is narrower than Python's own `\s`."""
WORDS = (*SPACES, re.compile(r"[^\W\d_]*+"), re.compile(r"[^\s\w]*+"))
"""Spaces, letters and punctuation: a run of each may be one piece that the split pattern does not cut."""


def cut_runs(text: str, kinds: Iterable[re.Pattern[str]] = SPACES, longest: int | None = None) -> list[str]:
    """Cut a text inside each run of `longest` or more characters of one kind, and nowhere else.

    The last piece of a run keeps at least half of that number, so that the split pattern sees the same neighbours as in
    the whole text: encoded piece by piece, a text has the same ids everywhere but inside such runs.

    Args:
        text: the text.
        kinds: expressions, each of which matches a run of one kind; `SPACES` or `WORDS`.
        longest: the number of characters that is too many; None = `LONGEST_RUN`.

    Returns:
        The pieces, which joined are the text; one piece if it has no such run.
    """
    cuts: set[int] = set()
    longest = LONGEST_RUN if longest is None else longest
    size = longest // 2
    for kind in kinds if len(text) >= longest else ():
        at = 0
        while at + size <= len(text):  # a run of twice this size holds one of these blocks whole
            if not kind.fullmatch(text, at, at + size):
                at += size
                continue
            before = text[max(0, at - size) : at][::-1]
            found = kind.match(before)
            start = at - (found.end() if found else 0)
            whole = kind.match(text, at)
            end = whole.end() if whole else at + size
            if end - start >= longest:
                cuts.update(range(start + size, end - size + 1, size))
            at += -(-(end - at) // size) * size
    edges = [0, *sorted(cuts), len(text)]
    return [text[first:last] for first, last in itertools.pairwise(edges)]


@contextlib.contextmanager
def explain_panics(what: str) -> Iterator[None]:
    """Turn a panic of a library in Rust, which `except Exception` does not catch, into a ValueError about `what`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{what}: the tokenizer library gave up on it ({error}); look for text without an end, such as one "
            "character repeated a million times, and take it out"
        ) from None


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
"""Character -> the byte that Hugging Face's byte-level BPE writes as it."""


def _learn_with_rustbpe(texts: Iterable[str], size: int) -> list[bytes]:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])]


def _learn_with_huggingface(texts: Iterable[str], size: int) -> list[bytes]:
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    # That library numbers the characters of `BYTE_OF` by code point, which would break ties between equally frequent
    # pairs differently than bytes do. Special tokens are numbered first, in the order given: as such, the characters
    # get their bytes' ids, and every later tie falls as in rustbpe.
    alphabet = sorted(BYTE_OF, key=BYTE_OF.__getitem__)

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = Sequence(
        [
            Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, special_tokens=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    vocabulary = model.get_vocab()
    return [bytes(BYTE_OF[c] for c in token) for token in sorted(vocabulary, key=vocabulary.__getitem__)]


TRAINERS = {"rustbpe": ("rustbpe", _learn_with_rustbpe), "huggingface": ("tokenizers", _learn_with_huggingface)}


# The instructions of a pickled tiktoken.Encoding: data, one class by name, an object of it without arguments, its
# state. None of them calls anything or can reserve more memory than the file has bytes.
# fmt: off
_PICKLE_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MEMOIZE", "BINGET", "LONG_BINGET", "MARK", "EMPTY_TUPLE", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "BININT", "BININT1", "BININT2", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE",
    "STACK_GLOBAL", "NEWOBJ", "BUILD",
})
# fmt: on
_PICKLE_FIELDS = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}


class _PickledEncoding:
    """Stand-in for `tiktoken.Encoding`, which only stores its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _VocabularyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise ValueError(
                f"it asks for {module}.{name} where only tiktoken.core.Encoding may stand; nothing was run"
            )
        return _PickledEncoding


class PickledVocabulary(NamedTuple):
    """The content of nanochat's `tokenizer.pkl`."""

    tokens: list[bytes]
    pattern: str
    special_tokens: dict[str, int]


def read_pickle(data: bytes) -> PickledVocabulary:
    """Read nanochat's `tokenizer.pkl` without running anything in it.

    Raises:
        ValueError: if it holds anything but a vocabulary; the message names what was found.
    """
    try:
        words: deque[str] = deque(maxlen=3)
        for opcode, argument, position in pickletools.genops(data):
            if isinstance(argument, str):
                words.append(argument)
            if opcode.name not in _PICKLE_OPCODES:
                raise ValueError(
                    f"its byte {position} is the instruction {opcode.name}, which may run code and which no saved "
                    f"vocabulary needs (the words before it: {' '.join(words)!r}); nothing was run"
                )
        encoding = _VocabularyUnpickler(io.BytesIO(data)).load()
    except ValueError:
        raise
    except Exception:  # a damaged pickle fails in a dozen ways
        raise ValueError("it is no complete pickle") from None

    state = encoding.state if isinstance(encoding, _PickledEncoding) else encoding
    kinds = {key: type(value) for key, value in state.items()} if isinstance(state, dict) else type(state).__name__
    if kinds != _PICKLE_FIELDS:
        raise ValueError(f"expected a tiktoken.Encoding with the fields {', '.join(_PICKLE_FIELDS)}, found {kinds}")
    ranks, special = state["mergeable_ranks"], state["special_tokens"]
    if not all(type(token) is bytes and type(rank) is int for token, rank in ranks.items()):
        raise ValueError("mergeable_ranks must map bytes to whole numbers")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"its {len(ranks)} ranks are not 0, 1, 2 ... without a gap")
    return PickledVocabulary(sorted(ranks, key=ranks.__getitem__), state["pat_str"], special)
