"""The form of the answers: OpenAI's, with a few extensions; the server's description (/openapi.json) shows it."""

from typing import Literal

from pydantic import BaseModel

from nanochat_pl.serve.schema import PartBody

__all__ = ["ChatCompletion", "ErrorBody", "ModelCard", "ModelList", "Suggestion", "TextCompletion", "Usage"]


class Usage(BaseModel):
    """Tokens of a request; those a tool wrote are among the completion's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A token that could have stood in a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer with its rivals; natural logarithms, before temperature and restrictions."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of a chat's answer; tokens that a tool wrote have none."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(BaseModel):
    """Of a completion; `text_offset` counts characters of its text.

    With `echo` the prompt's tokens come first. null = a first token of a prompt of ids, which nothing stands before; a
    prompt of text begins behind the beginning-of-text token, so its first token has a probability too.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"] = "assistant"
    content: str
    parts: list[PartBody] | None = None
    """Text and tools in their order, where a tool was used."""
    refusal: None = None


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    truncated: bool = False
    """Whether the last message lost its beginning, since it does not fit by itself (context=drop)."""


class ChatCompletion(BaseModel):
    """The whole answer to a chat's request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    dropped_messages: int = 0
    """How many of the conversation's first messages did not fit and were left out (context=drop)."""


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    parts: list[PartBody] | None = None
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    truncated: bool = False
    """Whether the text that is continued lost its beginning (context=drop)."""


class TextCompletion(BaseModel):
    """The whole answer to a completion's request."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


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


class _Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer but a good one."""

    error: _Error
