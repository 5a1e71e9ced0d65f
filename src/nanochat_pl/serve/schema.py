"""What may be asked over HTTP: OpenAI's requests, with a few extensions.

A setting that cannot take effect is an error: unknown fields are refused, and so are those of OpenAI's that this server
knows of but does not do, unless their value is the one that changes nothing. What is only a label is accepted.
Extensions: `top_k`, `min_p`, `context`, and an assistant's `parts`, which tell its text from its use of tools.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["ChatBody", "CompletionBody", "MessageBody", "OriginalBody", "PartBody"]

LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Fields of OpenAI's that never change an answer."""

Text = Annotated[str, Field(min_length=1)]
Ids = list[Annotated[int, Field(ge=0)]]


class _Body(BaseModel):
    """A request's object: nothing unknown, no number written as text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that are known but not supported -> values that change nothing, beside null."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.without_effect:
                if value is not None and value not in cls.without_effect[name]:
                    raise PydanticCustomError(
                        "unsupported_parameter",
                        "{param} is not supported by this server; leave it out",
                        {"param": name},
                    )
            else:
                kept[name] = value
        return kept


class PartBody(_Body):
    """A piece of a message; those of tools are an assistant's."""

    type: Literal["text", "python", "python_output"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_no_text(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind not in ("text", "python", "python_output"):
            raise PydanticCustomError(
                "unsupported_parameter",
                "{kind} is not supported: these models read text, so only text parts are accepted",
                {"param": "type", "kind": repr(kind[:40])},
            )
        return data


class MessageBody(_Body):
    """One message of a conversation."""

    without_effect = {  # an answer's message can be sent back as it came
        "name": (),
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "tool_calls": ([],),
        "tool_call_id": (),
        "reasoning_content": ("",),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[PartBody] | None = None
    parts: list[PartBody] | None = None
    """Of an assistant that used a tool; then they, and not `content`, are what it said."""

    def said(self) -> str | list[dict[str, str]]:
        """Return the content as conversations hold it; None is the empty text."""
        parts = self.content if self.parts is None else self.parts
        if parts is None or isinstance(parts, str):
            return parts or ""
        if all(part.type == "text" for part in parts):
            return "".join(part.text for part in parts)
        return [part.model_dump() for part in parts]


class StreamOptions(_Body):
    """How a stream ends."""

    without_effect = {"include_obfuscation": (False,)}

    include_usage: bool | None = None
    """Send a last chunk with the number of tokens."""


class _Sampling(_Body):
    """Settings that both kinds of requests share; null = the default."""

    model: str | None = None
    """Id of a loaded model; the first one where left out."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    """0 = greedy; 1 where left out."""
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    """Equal seeds give equal answers; a random one where left out."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    context: Literal["drop", "refuse"] | None = None
    """What is too long loses its oldest turns (a text: its beginning), or is refused; left out: the server's policy."""

    @model_validator(mode="before")
    @classmethod
    def _drop_labels(cls, data: Any) -> Any:
        return {name: data[name] for name in data if name not in LABELS} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_stream_options(self) -> "_Sampling":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "unsupported_parameter",
                "{param} needs stream=true; set that or leave it out",
                {"param": "stream_options"},
            )
        return self

    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


_SHARED_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
}


class ChatBody(_Sampling):
    """`POST /v1/chat/completions`."""

    without_effect = _SHARED_WITHOUT_EFFECT | {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """`max_tokens` under its newer name."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                "unsupported_parameter",
                "{param} needs logprobs=true; set that or leave it out",
                {"param": "top_logprobs"},
            )
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise PydanticCustomError(
                "unsupported_parameter",
                "{param} and max_completion_tokens differ; set one of them",
                {"param": "max_tokens"},
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are reported beside the chosen one; None = nothing is."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(_Sampling):
    """`POST /v1/completions`."""

    without_effect = _SHARED_WITHOUT_EFFECT | {"best_of": (1,), "suffix": ("",)}

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Ids], Field(min_length=1)]
    )
    """Text (a beginning-of-text token is put before it), token ids (taken as they are), or a list of either."""
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    """Give the prompt back before its continuation."""

    @model_validator(mode="after")
    def _check_echo(self) -> "CompletionBody":
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                "unsupported_parameter",
                "{param} is not supported together with logprobs; leave one of them out",
                {"param": "echo"},
            )
        return self

    def prompts(self) -> list[str | list[int]]:
        """Return every prompt, as text or ids."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class OriginalMessage(_Body):
    """A message as nanochat's own page sends it."""

    role: Literal["user", "assistant"]
    content: Text


class OriginalBody(_Body):
    """`POST /chat/completions`, nanochat's own (2025-11), with its limits."""

    messages: list[OriginalMessage] = Field(min_length=1, max_length=500)
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1, le=4096)
    top_k: int | None = Field(None, ge=0, le=200)
    """0 = all tokens."""
