"""What is answered over HTTP: OpenAI's answers, with a few extensions.

The bodies and their description (/openapi.json) are both made from these models. A field that is not set is not sent:
fields with a default are those that may be missing.
"""

from typing import Any, Literal

from pydantic import BaseModel

from nanochat_pl.serve.schema import PartBody

__all__ = [
    "AnswerMessage",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatDelta",
    "ChatLogprobs",
    "ErrorBody",
    "FinishReason",
    "ModelCard",
    "ModelList",
    "Suggestion",
    "TextChoice",
    "TextChunk",
    "TextChunkChoice",
    "TextCompletion",
    "TextLogprobs",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]

FinishReason = Literal["stop", "length"]


class _Sent(BaseModel):
    """An object of an answer."""

    def sent(self) -> dict[str, Any]:
        """Return the object as it is sent: without the fields that were not set."""
        return self.model_dump(exclude_unset=True)


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
    parts: list[PartBody] | None = None
    """Text and tools in their order, where a tool was used."""


class ChatChoice(_Sent):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    truncated: bool = False
    """Whether the last message lost its beginning, since it does not fit by itself (context=drop)."""


class ChatCompletion(_Sent):
    """The whole answer to a chat's request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    dropped_messages: int = 0
    """How many of the conversation's first messages did not fit and were left out (context=drop)."""
    usage: Usage


class TextChoice(_Sent):
    """One continuation."""

    index: int
    text: str
    parts: list[PartBody] | None = None
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    truncated: bool = False
    """Whether the text that is continued lost its beginning (context=drop)."""


class TextCompletion(_Sent):
    """The whole answer to a completion's request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ChatDelta(_Sent):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    part: PartBody | None = None
    """What a tool was given or gave back."""


class ChatChunkChoice(_Sent):
    """A piece of one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    truncated: bool = False
    """As in `ChatChoice`, in the first chunk of the choice."""


class ChatChunk(_Sent):
    """A piece of a chat's answer (stream=true)."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    """In the last chunk, where `stream_options` ask for it."""
    dropped_messages: int = 0
    """As in `ChatCompletion`, in the first chunk."""


class TextChunkChoice(_Sent):
    """A piece of one continuation."""

    index: int
    text: str
    part: PartBody | None = None
    """What a tool was given or gave back."""
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    truncated: bool = False
    """As in `TextChoice`, in the first chunk of the choice."""


class TextChunk(_Sent):
    """A piece of a completion's answer (stream=true)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
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
