"""Text from streamed tokens: never half a character or a special token, and nothing after a stop string.

A token is a sequence of bytes, and a character may need several tokens: decoding them one by one would show U+FFFD
instead of the character. Terminal, server and page all show the output of a `TextStream`.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["ContentPart", "PartType", "TextStream", "merge_parts"]

PartType = Literal["text", "python", "python_output"]


class ContentPart(NamedTuple):
    """A piece of an answer: some of its text, or the whole input or output of a tool."""

    type: PartType
    text: str


class TextStream:
    """Decode one answer, token by token.

    Text is returned as soon as it is certain; a tool's result, and the text between `<|python_start|>` and
    `<|python_end|>`, when it is complete. Special tokens never become text. Only a tool's own output is a
    `python_output`: if the model itself writes `<|output_start|>`, the text after it is ordinary text.

    Differs: nanochat (2025-11) shows tool tokens as text and repairs split characters by decoding all tokens again
    with each new one.

    Args:
        tokenizer: the model's.
        stop: the first of these strings that is complete ends the text; only the text before it is returned. Strings
            are searched in text only, between two tool calls. Text that may begin one is held back; how the text is
            cut into tokens makes no difference.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if isinstance(stop, str):
            raise ValueError(f"stop={stop!r} is one string; pass a list of strings")
        if not all(stop):
            raise ValueError("a stop string is empty and would stop everything; leave it out")
        self.stopped = False
        """Whether a stop string was found."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._special = {tokenizer.special_id(name): name for name in SPECIAL_TOKENS}
        self.kind: PartType = "text"
        """The type of part that the next ordinary token belongs to."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, token: int, sampled: bool = True) -> list[ContentPart]:
        """Take the next token and return the parts that have become certain, usually one or none.

        Args:
            token: id; pushing the one that ends an answer is optional.
            sampled: False if a tool put the token there.

        Raises:
            ValueError: the id is outside the vocabulary.
        """
        if self.stopped:
            return []
        name = self._special.get(token)
        if name is None:
            return self._take(self._decoder.decode(self._tokenizer.decode_bytes([token])))
        if name == "<|python_start|>":
            return self._turn_to("python")
        if name == "<|output_start|>" and not sampled:
            return self._turn_to("python_output")
        if name == "<|python_end|>" and self.kind == "python":
            return self._turn_to("text")
        if name == "<|output_end|>" and self.kind == "python_output":
            return self._turn_to("text")
        return []

    def finish(self) -> list[ContentPart]:
        """Return the held-back text; incomplete characters become U+FFFD, and a tool call may be incomplete."""
        return [] if self.stopped else self._turn_to("text")

    def _take(self, text: str) -> list[ContentPart]:
        self._held += text
        if self.kind != "text":
            return []
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            # the first to be complete, as if the characters had come one by one
            text, self._held = self._held[: min(found)[1]], ""
        else:
            certain = len(self._held) - self._uncertain()
            text, self._held = self._held[:certain], self._held[certain:]
        return [ContentPart("text", text)] if text else []

    def _uncertain(self) -> int:
        """Count the characters at the end that may begin a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _turn_to(self, kind: PartType) -> list[ContentPart]:
        """Return the rest of the current part and begin another."""
        parts = self._take(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        if not self.stopped and self._held:
            parts.append(ContentPart(self.kind, self._held))
        self._held, self.kind = "", kind
        return parts


def merge_parts(parts: Iterable[ContentPart]) -> str | list[dict[str, str]]:
    """Return an assistant's content as a conversation holds it: its text, or a list of parts if a tool was used.

    Neighbouring pieces of text become one, as `Tokenizer.render_conversation` expects them.
    """
    merged: list[dict[str, str]] = []
    for kind, text in parts:
        if kind == "text" and merged and merged[-1]["type"] == "text":
            merged[-1]["text"] += text
        elif text:
            merged.append({"type": kind, "text": text})
    if all(part["type"] == "text" for part in merged):
        return "".join(part["text"] for part in merged)
    return merged
