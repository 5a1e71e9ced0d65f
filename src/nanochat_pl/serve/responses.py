"""The bodies of HTTP responses: OpenAI's, with a few extensions.

Both the bodies and their description (/openapi.json) are made from these models. Fields with a default may be missing:
they are left out where they are not set or equal their default.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from nanochat_pl.serve.schema import PartBody

__all__ = [
    "ChatChunk",
    "ChatCompletion",
    "ErrorBody",
    "FinishReason",
    "ModelCard",
    "ModelList",
    "Suggestion",
    "TextChunk",
    "TextCompletion",
    "Usage",
]

FinishReason = Literal["stop", "length"]


def _maybe(default: Any = None) -> Any:
    """Declare a field that is sent only where it differs from its default."""
    return Field(default, exclude_if=lambda value: value == default)


class _Sent(BaseModel):
    """An object of a response."""

    def sent(self) -> dict[str, Any]:
        """Return the object as JSON types."""
        return self.model_dump(exclude_unset=True)


class _Envelope(_Sent):
    """The fields around the choices, in a whole answer or a chunk."""

    id: str
    object: str
    created: int
    """Seconds since 1970."""
    model: str


class Usage(_Sent):
    """Token counts of a request; `completion_tokens` includes those that a tool wrote."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(_Sent):
    """A token that was possible at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer with its alternatives; natural logarithms, before temperature and restrictions."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Sent):
    """Log-probabilities of a chat's answer; tokens that a tool wrote have none."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(_Sent):
    """Log-probabilities of a completion; `text_offset` counts characters of its text.

    With `echo` the prompt's tokens come first. The first token of a prompt of ids has null, since nothing precedes it;
    a prompt of text follows the beginning-of-text token, so its first token has a probability too.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def __add__(self, other: "TextLogprobs") -> "TextLogprobs":
        return TextLogprobs(**{name: [*value, *getattr(other, name)] for name, value in self})


class AnswerMessage(_Sent):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str
    refusal: None
    parts: list[PartBody] | None = _maybe()
    """Text and tools in their order, where a tool was used."""


class ChatChoice(_Sent):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    truncated: bool = _maybe(False)
    """Whether the last message lost its beginning because it does not fit by itself (context=drop)."""


class ChatCompletion(_Envelope):
    """The whole answer to a chat request."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    dropped_messages: int = _maybe(0)
    """How many of the conversation's first messages did not fit and were left out (context=drop)."""
    usage: Usage


class TextChoice(_Sent):
    """One continuation."""

    index: int
    text: str
    parts: list[PartBody] | None = _maybe()
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    truncated: bool = _maybe(False)
    """Whether the text that is continued lost its beginning (context=drop)."""


class TextCompletion(_Envelope):
    """The whole answer to a completion request."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class ChatDelta(_Sent):
    """The text that a chunk adds to an answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    part: PartBody | None = _maybe()
    """Input or output of a tool."""


class ChatChunkChoice(_Sent):
    """A piece of one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    truncated: bool = _maybe(False)
    """See `ChatChoice`; sent in the first chunk of the choice."""


class ChatChunk(_Envelope):
    """A piece of a chat's answer (stream=true)."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    """Sent in the last chunk if `stream_options` ask for it."""
    dropped_messages: int = _maybe(0)
    """See `ChatCompletion`; sent in the first chunk."""


class TextChunkChoice(_Sent):
    """A piece of one continuation."""

    index: int
    text: str
    part: PartBody | None = _maybe()
    """Input or output of a tool."""
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    truncated: bool = _maybe(False)
    """See `TextChoice`; sent in the first chunk of the choice."""


class TextChunk(_Envelope):
    """A piece of a completion's answer (stream=true)."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None
    """Sent in the last chunk if `stream_options` ask for it."""


class Suggestion(BaseModel):
    """A question that the page offers to begin with."""

    topic: str
    title: str
    """Its first line."""
    text: str
    system: str | None = None
    """System message of the question; null = none."""


class ModelCard(BaseModel):
    """A loaded model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nanochat-pl"
    stage: str
    step: int
    context_length: int
    """Tokens."""
    suggestions: list[Suggestion] = []
    """Questions for the page; empty where nothing is known about what the model learned."""


class ModelList(BaseModel):
    """All loaded models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class _Error(_Sent):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Sent):
    """The body of every response that is not a success."""

    error: _Error
