"""Answers from the engine's events: text and tools, log-probabilities, finish reason, number of tokens."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from nanochat_pl.requests import Event, TokenLogprobs
from nanochat_pl.serve.errors import error_of_end
from nanochat_pl.serve.handle import GenerationHandle
from nanochat_pl.serve.middleware import RequestRecord
from nanochat_pl.serve.responses import FinishReason, Usage
from nanochat_pl.serve.schema import PartBody
from nanochat_pl.serve.text import ContentPart, TextStream, merge_parts
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["ChoiceDelta", "ChoiceStream", "Generation", "ScoredToken", "TokenTexts", "char_offset"]


@dataclass(frozen=True)
class ScoredToken:
    """A sampled token with its log-probabilities."""

    token: int
    start: int
    """How many bytes precede it, including those of tools."""
    offset: int
    """How many characters of text precede its first one."""
    logprobs: TokenLogprobs


@dataclass
class ChoiceDelta:
    """The part of an answer that has become certain since the last delta."""

    parts: list[ContentPart]
    scored: list[ScoredToken]


class TokenTexts:
    """Texts and bytes of single tokens, as log-probabilities show them."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special = {tokenizer.special_id(name): name for name in SPECIAL_TOKENS}

    def text(self, token: int) -> str:
        """Return a token's text, with U+FFFD for parts of characters; special tokens by name."""
        return self._special.get(token) or self._tokenizer.decode([token])

    def bytes(self, token: int) -> list[int] | None:
        """Return a token's bytes; None for special tokens, which are no text."""
        return None if token in self._special else list(self._tokenizer.decode_bytes([token]))


def char_offset(data: Sequence[int], num_chars: int) -> tuple[int, int]:
    """Return in which character the UTF-8 bytes of a token begin after `num_chars` characters, and the new number."""
    begins = [byte & 0xC0 != 0x80 for byte in data]  # UTF-8's continuation bytes begin no character
    return max(0, num_chars - (begins[:1] == [False])), num_chars + sum(begins)


class ChoiceStream:
    """One answer while it is generated.

    Strings of `stop` end the answer, which does not include them.

    Attributes:
        index: number among the answers of the request.
        parts: text and tools so far.
        scored: its scored tokens, filled by `finish`.
        num_tokens: number of new tokens, including those of tools.
        finish_reason: set when it has ended.
        prompt_logprobs: those of the prompt's tokens, if requested; known with the first delta, or at the end.
    """

    def __init__(
        self, index: int, handle: GenerationHandle, tokenizer: Tokenizer, texts: TokenTexts, stop: Sequence[str]
    ):
        self.index, self.handle = index, handle
        self.parts: list[ContentPart] = []
        self.scored: list[ScoredToken] = []
        self.num_tokens = 0
        self.finish_reason: FinishReason = "length"
        self.prompt_logprobs: Sequence[TokenLogprobs | None] = ()
        self._texts, self._stream = texts, TextStream(tokenizer, stop)
        self._scores = handle.request.logprobs is not None
        self._uncertain: list[ScoredToken] = []
        self._num_read = self._num_yielded = 0  # bytes
        self._num_chars = 0  # of text

    async def deltas(self) -> AsyncGenerator[ChoiceDelta, None]:
        """Yield the answer as it becomes certain; if the iteration stops early, its row is freed.

        Raises:
            ApiError: the generation failed.
        """
        try:
            async for event in self.handle:
                parts = self._take(event)
                if event.completion is not None:  # the last event: the held-back text has become certain
                    parts += self._stream.finish()
                    self.finish_reason = "length" if event.completion.stop_token is None else "stop"
                if self._stream.stopped:
                    self.finish_reason = "stop"
                self.parts += parts
                scored = self._certain(parts, event.completion is not None) if self._scores else []
                if parts or scored:
                    yield ChoiceDelta(parts, scored)
                if self._stream.stopped or event.completion is not None:
                    return
            if (error := error_of_end(self.handle)) is not None:
                raise error
        finally:
            self.handle.cancel()

    async def finish(self) -> None:
        """Wait for the whole answer.

        Raises:
            ApiError: the generation failed.
        """
        async for delta in self.deltas():
            self.scored += delta.scored

    def text(self) -> str:
        """Return the answer without its use of tools."""
        return "".join(text for kind, text in self.parts if kind == "text")

    def tool_parts(self) -> list[PartBody] | None:
        """Return text and tools in their order; None where no tool was used."""
        content = merge_parts(self.parts)
        return None if isinstance(content, str) else [PartBody.model_validate(part) for part in content]

    def _take(self, event: Event) -> list[ContentPart]:
        """Push an event's token into the text, and record its score and position."""
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        request, ended = self.handle.request, event.completion
        if event.token is None:
            if request.prompt_logprobs is not None and event.logprobs and ended:
                # clients that score texts expect one generated token after them, whichever it is
                assert ended.stop_token is not None
                self._uncertain.append(ScoredToken(ended.stop_token, self._num_read, self._num_chars, event.logprobs))
            return []
        self.num_tokens += 1
        if self._scores:
            data = self._texts.bytes(event.token) or ()
            offset, num_chars = char_offset(data, self._num_chars)
            if event.logprobs is not None:
                self._uncertain.append(ScoredToken(event.token, self._num_read, offset, event.logprobs))
            self._num_read += len(data)
            if self._stream.kind == "text":
                self._num_chars = num_chars
        return self._stream.push(event.token, event.sampled)

    def _certain(self, parts: Sequence[ContentPart], ended: bool) -> list[ScoredToken]:
        """Return the scores of the tokens in `parts`; the tokens of a stop string do not belong to the answer."""
        self._num_yielded += sum(len(text.encode()) for _, text in parts)
        everything = ended and not self._stream.stopped
        certain = [entry for entry in self._uncertain if everything or entry.start < self._num_yielded]
        self._uncertain = self._uncertain[len(certain) :]
        return certain


class Generation:
    """The answers to one HTTP request while they are generated; `kind` is the prefix of their id."""

    def __init__(
        self, model: str, choices: list[ChoiceStream], num_prompt_tokens: int, record: RequestRecord, kind: str
    ):
        self.choices, self.num_prompt_tokens = choices, num_prompt_tokens
        self.envelope: dict[str, Any] = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        """The first fields of the answer and of all its chunks."""
        self._record = record
        record.model, record.prompt_tokens = model, num_prompt_tokens

    def usage(self) -> Usage:
        """Count the tokens so far."""
        new, read = sum(choice.num_tokens for choice in self.choices), self.num_prompt_tokens
        return Usage(prompt_tokens=read, completion_tokens=new, total_tokens=read + new)

    async def finish(self) -> None:
        """Wait for all answers.

        Raises:
            ApiError: one of them failed; the others are ended too.
        """
        async with self.recorded():
            await asyncio.gather(*(choice.finish() for choice in self.choices))

    @asynccontextmanager
    async def recorded(self) -> AsyncIterator[None]:
        """Free all rows at the end of the block, and record the token counts and times."""
        try:
            yield
        finally:
            handles = [choice.handle for choice in self.choices]
            for handle in handles:
                handle.cancel()
            self._record.completion_tokens = sum(choice.num_tokens for choice in self.choices)
            firsts = [handle.first_token - handle.submitted for handle in handles if handle.first_token is not None]
            self._record.first_token_s = min(firsts, default=None)

    async def deltas(self) -> AsyncGenerator[tuple[ChoiceStream, ChoiceDelta | None], None]:
        """Yield the deltas of all answers as they come, and None at the end of each.

        A delta is computed only after the last one was taken, so that a slow reader does not fill the memory.

        Raises:
            ApiError: one of them failed; the others are ended too.
        """
        if len(self.choices) == 1:
            (choice,) = self.choices
            async with contextlib.aclosing(choice.deltas()) as deltas:
                async for delta in deltas:
                    yield choice, delta
            yield choice, None
            return
        queue: asyncio.Queue[tuple[ChoiceStream, ChoiceDelta | Exception | None]] = asyncio.Queue(maxsize=1)

        async def forward(choice: ChoiceStream) -> None:
            try:
                async for delta in choice.deltas():
                    await queue.put((choice, delta))
            except Exception as error:  # raised by the reader below
                await queue.put((choice, error))
            else:
                await queue.put((choice, None))

        tasks = [asyncio.ensure_future(forward(choice)) for choice in self.choices]
        try:
            running = len(tasks)
            while running:
                choice, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                running -= item is None
                yield choice, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for choice in self.choices:
                choice.handle.cancel()
