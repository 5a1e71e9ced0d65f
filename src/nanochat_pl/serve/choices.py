"""From a ticket's tokens to an answer: text and tools, log-probabilities, why it ended, how long it is."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nanochat_pl.engine import Event, TokenLogprobs
from nanochat_pl.serve.errors import error_of_end
from nanochat_pl.serve.text import Part, TextStream, merge_parts
from nanochat_pl.serve.tickets import End, Ticket
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["Choice", "Piece", "Scored", "TokenTexts", "merged"]


@dataclass(frozen=True)
class Scored:
    """A sampled token with how likely it was."""

    token: int
    start: int
    """Bytes before it, those of tools among them."""
    offset: int
    """Characters of text before the one it begins with."""
    logprobs: TokenLogprobs


@dataclass
class Piece:
    """What has become certain of an answer."""

    parts: list[Part] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)


class TokenTexts:
    """Write tokens as log-probabilities name them: each by itself, with its bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special = {tokenizer.special_id(name): name for name in SPECIAL_TOKENS}

    def text(self, token: int) -> str:
        """Return a token's text, with U+FFFD for parts of characters; special tokens by name."""
        return self._special.get(token) or self._tokenizer.decode([token])

    def bytes(self, token: int) -> list[int] | None:
        """Return a token's bytes; None for special tokens, which are no text."""
        return None if token in self._special else list(self._tokenizer.decode_bytes([token]))

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """Return what chats report of one token."""
        return {"token": self.text(token), "logprob": logprob, "bytes": self.bytes(token)}


class Choice:
    """One answer on its way.

    Args:
        index: its number among the answers of its request.
        ticket: where its tokens come from.
        tokenizer: the model's.
        stop: strings that end it; they are no part of it.

    Attributes:
        parts: text and tools so far.
        num_tokens: new tokens it needed, those of tools among them.
        finish_reason: set when it has ended.
        prompt_logprobs: of the prompt's tokens, where they were asked for; known with the first piece, or at the end.
    """

    def __init__(self, index: int, ticket: Ticket, tokenizer: Tokenizer, stop: Sequence[str]):
        self.index, self.ticket = index, ticket
        self.parts: list[Part] = []
        self.num_tokens = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        self.prompt_logprobs: Sequence[TokenLogprobs | None] = ()
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.special_id(name) for name in SPECIAL_TOKENS)
        self._stream = TextStream(tokenizer, stop)
        self._scored: list[Scored] = []
        self._counts = ticket.request.logprobs is not None
        self._num_read = self._num_given = 0  # bytes
        self._num_chars = 0  # of text

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the answer as it becomes certain; where it is left early, its row is freed.

        Raises:
            ApiError: it did not end well.
        """
        try:
            async for update in self.ticket:
                error = error_of_end(update)
                if error is not None:
                    raise error
                parts = self._take(update.event) if update.event is not None else []
                if update.end is not None and not self._stream.stopped:
                    parts += self._stream.finish()
                ended = update.end is not None or self._stream.stopped
                if ended:
                    stopped = update.end is End.stop or self._stream.stopped
                    self.finish_reason = "stop" if stopped else "length"
                self.parts += parts
                piece = Piece(parts, self._certain(parts, ended))
                if piece.parts or piece.scored:
                    yield piece
                if ended:
                    return
        finally:
            self.ticket.cancel()

    async def finish(self) -> Piece:
        """Wait for the whole answer."""
        whole = Piece()
        async for piece in self.pieces():
            whole.parts += piece.parts
            whole.scored += piece.scored
        return whole

    def text(self) -> str:
        """Return the answer without its use of tools."""
        return "".join(text for kind, text in self.parts if kind == "text")

    def tool_parts(self) -> list[dict[str, str]] | None:
        """Return text and tools in their order; None where no tool was used."""
        content = merge_parts(self.parts)
        return None if isinstance(content, str) else content

    def _take(self, event: Event) -> list[Part]:
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        if event.token is None:
            ended = event.completion
            if self.ticket.request.prompt_logprobs is not None and event.logprobs and ended:
                # who scores texts counts one token of the model's own behind them, whatever it is
                assert ended.stop_token is not None
                self._scored.append(Scored(ended.stop_token, self._num_read, self._num_chars, event.logprobs))
            return []
        self.num_tokens += 1
        if self._counts:
            self._count(event.token, event.logprobs)
        return self._stream.push(event.token, event.sampled)

    def _count(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Note a token's score, if it has one, and where it stands."""
        data = b"" if token in self._special else self._tokenizer.decode_bytes([token])
        begun = [byte & 0xC0 != 0x80 for byte in data]  # else it goes on with a character
        if logprobs is not None:
            offset = self._num_chars - (begun[:1] == [False])
            self._scored.append(Scored(token, self._num_read, max(0, offset), logprobs))
        self._num_read += len(data)
        if self._stream.kind == "text":
            self._num_chars += sum(begun)

    def _certain(self, parts: Sequence[Part], ended: bool) -> list[Scored]:
        """Let go of the scores of what was given out: a stop string is no part of the answer, nor are its tokens."""
        self._num_given += sum(len(text.encode()) for _, text in parts)
        everything = ended and not self._stream.stopped
        certain = [entry for entry in self._scored if everything or entry.start < self._num_given]
        self._scored = self._scored[len(certain) :]
        return certain


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Piece | None], None]:
    """Yield the pieces of several answers as they come, and None with each one's end.

    No piece is asked for before the last one was taken, so that a slow reader does not fill the memory.

    Raises:
        ApiError: one of them did not end well; the others are ended too.
    """
    if len(choices) == 1:
        async with contextlib.aclosing(choices[0].pieces()) as pieces:
            async for piece in pieces:
                yield choices[0], piece
        yield choices[0], None
        return
    news: asyncio.Queue[tuple[Choice, Piece | Exception | None]] = asyncio.Queue(maxsize=1)

    async def forward(choice: Choice) -> None:
        try:
            async for piece in choice.pieces():
                await news.put((choice, piece))
        except Exception as error:  # raised where somebody listens
            await news.put((choice, error))
        else:
            await news.put((choice, None))

    tasks = [asyncio.ensure_future(forward(choice)) for choice in choices]
    try:
        running = len(tasks)
        while running:
            choice, told = await news.get()
            if isinstance(told, Exception):
                raise told
            running -= told is None
            yield choice, told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for choice in choices:
            choice.ticket.cancel()
