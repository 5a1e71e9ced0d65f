"""A conversation with one model: its messages, its sampling settings, and the next answer as a stream of parts.

This module does not know terminals; `terminal.py` shows what a `Chat` yields. A saved conversation is one line of JSON
in the layout that fine-tuning reads (`tasks.jsonl`), so that good ones can be trained on unchanged.
"""

import json
import random
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.engine import Completion, Engine, Request
from nanochat_pl.paths import write_atomically
from nanochat_pl.serve.context import FittedPrompt, fit, fit_text
from nanochat_pl.serve.settings import Policy, Settings
from nanochat_pl.serve.text import ContentPart, TextStream, merge_parts

__all__ = ["AnswerStats", "Chat", "Settings"]

_Parts = Generator[ContentPart, None, None]


@dataclass(frozen=True)
class AnswerStats:
    """Length and speed of one answer."""

    prompt_tokens: int
    new_tokens: int
    """Including those of tools."""
    first_token_s: float | None
    """Seconds of computing until the first new token, including the prompt; None if there was no token."""
    total_s: float
    """Seconds of computing, without waiting for the reader or for other models."""
    ended: Literal["end", "length", "context", "stopped"]
    """Whether the model, `max_new_tokens`, the end of the context, or `Chat.stop` ended it."""
    dropped: int
    """How many of the first messages the model no longer read."""
    truncated: bool
    """Whether the question lost its beginning."""

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens per second after the first; None with fewer than two."""
        if self.first_token_s is None or self.new_tokens < 2 or self.total_s <= self.first_token_s:
            return None
        return (self.new_tokens - 1) / (self.total_s - self.first_token_s)


class Chat:
    """A conversation with a model.

    An answer that has begun belongs to the conversation as far as it was generated, even if it is not read to its end.

    Args:
        loaded: from `load_model`.
        settings: sampling settings.
        system: the system message, which joins the first question that the model reads.
        policy: what happens when the context is full, see `serve.context.fit`.
        dtype: dtype of decoding, see `Engine`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: Settings | None = None,
        *,
        system: str | None = None,
        policy: Policy = "drop",
        dtype: str = "auto",
    ):
        self.loaded, self.tokenizer, self.policy = loaded, loaded.tokenizer, policy
        self.messages: list[dict[str, Any]] = []
        """Alternating messages of user and assistant, the assistant's last; without the system message."""
        self.system = system
        self.stats: AnswerStats | None = None
        """Statistics of the last answer."""
        self.engine = Engine(loaded.model, self.tokenizer.stop_ids, loaded.tokenizer, dtype)
        self.sequence_len = loaded.model.config.sequence_len
        self._random_seed = random.randrange(2**32)
        self._attempt = 0
        self._stopping = False
        self._settings = self._check(settings or Settings())

    @property
    def settings(self) -> Settings:
        """Sampling settings."""
        return self._settings

    def set(self, **changes: Any) -> None:
        """Change settings by name.

        Raises:
            ValueError: a value is out of range; nothing is changed then.
        """
        self._settings = self._check(replace(self._settings, **changes))

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """All messages, the system message first where there is one."""
        head = [{"role": "system", "content": _encodable(self.system)}] if self.system else []
        return [*head, *self.messages]

    @property
    def question(self) -> str | None:
        """The last question."""
        return self.messages[-2]["content"] if self.messages else None

    def ask(self, question: str) -> Iterator[ContentPart]:
        """Ask, and yield the answer's parts as they come.

        Raises:
            ContextFull: see `serve.context.fit`; nothing is changed then.
        """
        self._attempt = 0
        return self._answer(self.messages, question)

    def regenerate(self) -> Iterator[ContentPart]:
        """Answer the last question again, from another random stream.

        Raises:
            ValueError: there is no question yet.
        """
        if self.question is None:
            raise ValueError("nothing was asked yet; there is no answer to give again")
        self._attempt += 1
        return self._answer(self.messages[:-2], self.question)

    def edit(self, question: str) -> Iterator[ContentPart]:
        """Replace the last question, and yield the answer.

        Raises:
            ValueError: there is no question yet.
        """
        if self.question is None:
            raise ValueError("nothing was asked yet; there is no question to edit")
        self._attempt = 0
        return self._answer(self.messages[:-2], question)

    def complete(self, text: str) -> Iterator[ContentPart]:
        """Continue plain text, as a base model does; this neither reads nor changes the conversation."""
        self._attempt += 1
        prompt = self._fit(fit_text, _encodable(text))
        return self._generate(prompt, "text", [self.tokenizer.bos_id])

    def stop(self) -> None:
        """End the present answer after its next token; may be called from a signal handler or another thread."""
        self._stopping = True

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages, self.stats = [], None
        self._random_seed = random.randrange(2**32)

    def save(self, path: str | Path) -> None:
        """Write the conversation as one line of JSON: messages, settings, and which model answered.

        Raises:
            ValueError: there is nothing to save.
            OSError: it cannot be written.
        """
        if not self.messages:
            raise ValueError("nothing was said yet; there is nothing to save")
        loaded = self.loaded
        document = {
            "messages": self.conversation,
            "settings": asdict(self.settings),
            "model": {"path": str(loaded.path), "stage": loaded.stage, "step": loaded.step},
        }
        write_atomically(Path(path).expanduser(), json.dumps(document, ensure_ascii=False) + "\n")

    def load(self, path: str | Path) -> None:
        """Go on with a saved conversation: its messages and its system message; settings stay as they are.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no conversation, or one without an answer at its end; nothing is changed then.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file} with a conversation; name one that was saved")
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            if "Extra data" in str(error):
                remedy = "it holds several conversations: put one line into a file of its own"
            elif isinstance(error, json.JSONDecodeError):
                remedy = f"it breaks off or has a mistake at line {error.lineno}, column {error.colno}; mend it there"
            else:
                remedy = "it is not UTF-8 text; save it as UTF-8"
            raise ValueError(f"{file} is not one conversation as JSON: {remedy}") from None
        messages: Any = document.get("messages") if isinstance(document, dict) else document
        try:
            self.tokenizer.render_conversation({"messages": messages})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{file} ends with a question; a conversation to go on with ends with its answer")
        messages = [{"role": message["role"], "content": message["content"]} for message in messages]
        has_system = messages[0]["role"] == "system"
        self.system = messages[0]["content"] if has_system else None
        self.messages, self.stats = messages[has_system:], None

    def _check(self, settings: Settings) -> Settings:
        """Let the engine check the settings; this also copies the weights before the first answer."""
        self.engine.session(1).submit(self._request([self.tokenizer.bos_id], settings, ""))
        return settings

    def _request(self, ids: list[int], settings: Settings, stream: str, stop_ids: list[int] | None = None) -> Request:
        seed = self._random_seed if settings.seed is None else settings.seed
        sampling = {name: value for name, value in asdict(settings).items() if name != "seed"}
        return Request(ids, **sampling, seed=f"{seed}/{stream}/{self._attempt}", stop_ids=stop_ids)

    def _fit(self, how: Any, content: Any) -> FittedPrompt:
        self._stopping, self.stats = False, None
        return how(content, self.tokenizer, self.sequence_len, self.settings.max_new_tokens, self.policy)

    def _answer(self, before: list[dict[str, Any]], question: str) -> Iterator[ContentPart]:
        messages = [*before, {"role": "user", "content": _encodable(question)}]
        prompt = self._fit(fit, self.conversation[: bool(self.system)] + messages)
        return self._remember(messages, self._generate(prompt, str(len(before))))

    def _remember(self, messages: list[dict[str, Any]], answer: _Parts) -> Iterator[ContentPart]:
        reply: dict[str, Any] = {"role": "assistant", "content": ""}
        self.messages = [*messages, reply]
        parts: list[ContentPart] = []
        try:
            for part in answer:
                parts.append(part)
                yield part
        finally:
            answer.close()
            reply["content"] = merge_parts(parts)

    def _generate(self, prompt: FittedPrompt, stream: str, stop_ids: list[int] | None = None) -> _Parts:
        """Yield the parts of one answer, and set its `stats`."""
        settings, text, completion = self.settings, TextStream(self.tokenizer), Completion()
        total_s, first_token_s = 0.0, None
        session = self.engine.session(1)
        number = session.submit(self._request(prompt.ids, settings, stream, stop_ids))
        try:
            while session.num_unfinished and not self._stopping:
                began = time.perf_counter()
                events = session.step()
                total_s += time.perf_counter() - began
                first_token_s = first_token_s or total_s
                for event in events:
                    completion = event.completion or completion
                    if event.token is not None:
                        yield from text.push(event.token, event.sampled)
            yield from text.finish()
        finally:
            stopped = session.cancel(number)
            completion = stopped or completion
            new_tokens = len(completion.tokens)
            self.stats = AnswerStats(
                prompt_tokens=len(prompt.ids),
                new_tokens=new_tokens,
                first_token_s=first_token_s if new_tokens else None,
                total_s=total_s,
                ended="stopped" if stopped else _ended(completion, settings.max_new_tokens),
                dropped=prompt.dropped,
                truncated=prompt.truncated,
            )


def _ended(completion: Completion, max_new_tokens: int) -> Literal["end", "length", "context"]:
    if completion.stop_token is not None:
        return "end"
    return "length" if len(completion.tokens) >= max_new_tokens else "context"


def _encodable(text: str) -> str:
    """Replace lone surrogates, which a terminal in another encoding may send, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
