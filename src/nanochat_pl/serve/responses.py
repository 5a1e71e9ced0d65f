"""What is answered over HTTP: OpenAI's answers, with a few extensions.

The bodies and their description (/openapi.json) are both made from these models. Fields with a default are those that
may be missing: they are not sent where they are not set or say nothing.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from nanochat_pl.serve.schema import PartBody

__all__ = ["ChatChunk", "ChatCompletion", "ErrorBody", "ModelCard", "ModelList", "TextChunk", "TextCompletion"]

FinishReason = Literal["stop", "length"]


def _maybe(default: Any = None) -> Any:
    """Declare a field that is sent only where it says something."""
    return Field(default, exclude_if=lambda value: value == default)


class _Sent(BaseModel):
    """An object of an answer."""

    def sent(self) -> dict[str, Any]:
        """Return the object as it is sent."""
        return self.model_dump(exclude_unset=True)


class _Envelope(_Sent):
    """What is around the choices, whole or in chunks."""

    id: str
    object: str
    created: int
    """Seconds since 1970."""
    model: str


class Usage(_Sent):
    """Tokens of a request; those a tool wrote are among the completion's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(_Sent):
    """A token that could have stood in a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer with its rivals; natural logarithms, before temperature and restrictions."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Sent):
    """Of a chat's answer; tokens that a tool wrote have none."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(_Sent):
    """Of a completion; `text_offset` counts characters of its text.

    With `echo` the prompt's tokens come first. null = a first token of a prompt of ids, which nothing stands before; a
    prompt of text begins behind the beginning-of-text token, so its first token has a probability too.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def __add__(self, other: "TextLogprobs") -> "TextLogprobs":
        return TextLogprobs(**{name: [*value, *getattr(other, name)] for name, value in self})


class AnswerMessage(_Sent):
    """What the assistant said."""

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
    """Whether the last message lost its beginning, since it does not fit by itself (context=drop)."""


class ChatCompletion(_Envelope):
    """The whole answer to a chat's request."""

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
    """The whole answer to a completion's request."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class ChatDelta(_Sent):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    part: PartBody | None = _maybe()
    """What a tool was given or gave back."""


class ChatChunkChoice(_Sent):
    """A piece of one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    truncated: bool = _maybe(False)
    """As in `ChatChoice`, in the first chunk of the choice."""


class ChatChunk(_Envelope):
    """A piece of a chat's answer (stream=true)."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    """In the last chunk, where `stream_options` ask for it."""
    dropped_messages: int = _maybe(0)
    """As in `ChatCompletion`, in the first chunk."""


class TextChunkChoice(_Sent):
    """A piece of one continuation."""

    index: int
    text: str
    part: PartBody | None = _maybe()
    """What a tool was given or gave back."""
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    truncated: bool = _maybe(False)
    """As in `TextChoice`, in the first chunk of the choice."""


class TextChunk(_Envelope):
    """A piece of a completion's answer (stream=true)."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None
    """In the last chunk, where `stream_options` ask for it."""


class Suggestion(BaseModel):
    """What a model may be asked for a beginning."""

    topic: str
    title: str
    """Its first line."""
    text: str
    system: str | None = None
    """System message it is asked with; null = none."""


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
    """For the page; none where nothing is known of what the model learned."""


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
    """Every answer but a good one."""

    error: _Error
