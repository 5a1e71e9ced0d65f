"""The bodies of HTTP requests: OpenAI's, with a few extensions.

A setting that cannot take effect is an error. Unknown fields are refused, and so are fields that OpenAI and
other servers know but this one does not support, unless their value changes nothing. Labels are accepted. The
extensions are `top_k`, `min_p`, `repetition_penalty`, `context`, and an assistant's `parts`, which separate its text
from its use of tools.

Where a field has several forms, the type of the value selects one, and errors mention that form alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from nanochat_pl.requests import RANGES, Request
from nanochat_pl.serve.settings import Policy
from nanochat_pl.serve.text import PartType

__all__ = ["ChatBody", "CompletionBody", "MessageBody", "NanochatBody", "PartBody", "SamplingBody"]

Role = Literal["system", "developer", "user", "assistant"]
Text = Annotated[str, Field(min_length=1)]
Ids = list[Annotated[int, Field(ge=0)]]


def unsupported(param: str, problem: str) -> PydanticCustomError:
    """Make the error about one field; clients read the field's name followed by `problem`."""
    return PydanticCustomError("unsupported_parameter", "{problem}", {"param": param, "problem": problem})


def _within(setting: str, **narrower: Any) -> Any:
    """Declare an optional field with the range that the engine gives this setting."""
    allowed = RANGES[setting]
    bounds: dict[str, Any] = {"gt" if allowed.above else "ge": allowed.low}
    if allowed.high < math.inf:
        bounds["le"] = allowed.high
    return Field(None, **bounds | narrower)


def _is_empty(value: Any) -> bool:
    """Return whether a value is null, or a list or object that holds nothing else at any depth."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict | list):
            pending += item.values() if isinstance(item, dict) else item
        elif item is not None:
            return False
    return True


def _changes_nothing(value: Any, neutral: Any) -> bool:
    if callable(neutral):
        return bool(neutral(value))
    return value is None or any(type(value) in (type(one), int, float) and value == one for one in neutral)


def _form(value: Any) -> str | None:
    """Choose between text and a list by the type of the value."""
    return "#text" if isinstance(value, str) else "#list" if isinstance(value, list) else None


def _form_of_prompt(value: Any) -> str | None:
    """Choose a prompt's form by its first element."""
    if not isinstance(value, list):
        return "#text" if isinstance(value, str) else None
    first = value[0] if value else ""
    return "#texts" if isinstance(first, str) else "#lists" if isinstance(first, list) else "#ids"


class _Body(BaseModel):
    """An object of a request; it refuses unknown fields and numbers written as text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    without_effect: ClassVar[Mapping[str, tuple[Any, ...] | Callable[[Any], bool]]] = {}
    """Fields that are known but not supported -> the values besides null that change nothing, or a test for them."""

    labels: ClassVar[frozenset[str]] = frozenset()
    """Fields that never change an answer, whatever their value."""

    @model_validator(mode="before")
    @classmethod
    def _drop_ineffective(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.labels:
                continue
            if name in cls.without_effect:
                if not _changes_nothing(value, cls.without_effect[name]):
                    raise unsupported(name, "is not supported by this server; leave it out")
            elif name in cls.model_fields or not _is_empty(value):
                kept[name] = value
        return kept


class PartBody(_Body):
    """A piece of a message; only an assistant's message may have pieces of tools."""

    type: PartType
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_media(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind not in get_args(PartType):
            raise unsupported(
                "type", f"{kind[:40]!r} is not supported: these models read text, so only text parts are accepted"
            )
        return data


class MessageBody(_Body):
    """One message of a conversation."""

    without_effect = {  # an answer's message can be sent back unchanged, also one from another server or client
        "name": lambda name: name is None or isinstance(name, str),
        "id": lambda name: name is None or isinstance(name, str),
        "type": ("text", "message"),  # lm-eval's and OpenAI's names for what every message here is
        "refusal": ("",),
        "annotations": _is_empty,
        "audio": _is_empty,
        "function_call": _is_empty,
        "tool_calls": _is_empty,
        "tool_call_id": ("",),
        "reasoning": ("",),
        "reasoning_content": ("",),
        "provider_specific_fields": _is_empty,
    }

    role: Role
    content: (
        Annotated[
            Annotated[str, Tag("#text")] | Annotated[list[PartBody], Tag("#list")],
            Discriminator(_form, custom_error_type="form", custom_error_message="text or a list of text parts"),
        ]
        | None
    ) = None
    parts: list[PartBody] | None = None
    """Text and tools of an assistant that used a tool; they replace `content`."""

    @model_validator(mode="before")
    @classmethod
    def _check_role_first(cls, data: Any) -> Any:
        """Report an unknown role rather than the fields that only a message of that role has."""
        if isinstance(data, dict) and "role" in data and data["role"] not in get_args(Role):
            return {"role": data["role"]}
        return data

    @model_validator(mode="after")
    def _check_tools(self) -> "MessageBody":
        for field, parts in (("content", self.content), ("parts", self.parts)):
            for i, part in enumerate(parts if isinstance(parts, list) and self.role != "assistant" else ()):
                if part.type != "text":
                    raise unsupported(f"{field}[{i}].type", f"{part.type!r} belongs to an assistant's message")
        return self

    def conversation_content(self) -> str | list[dict[str, str]]:
        """Return the content as a conversation holds it; null becomes the empty text."""
        parts = self.parts or self.content  # an empty list of parts does not replace the content
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


class SamplingBody(_Body):
    """Settings that both kinds of requests share; null = the default."""

    labels = frozenset(
        ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "store")
        + ("request_id", "cache_prompt")
    )

    model: str | None = None
    """Id of a loaded model; the first one where left out."""
    max_tokens: int | None = _within("max_new_tokens", ge=1)
    temperature: float | None = _within("temperature", le=2)
    """0 = greedy; the default is 1."""
    top_p: float | None = _within("top_p")
    top_k: int | None = _within("top_k", ge=-1)
    """Sample among this many tokens; 0, -1 = all."""
    min_p: float | None = _within("min_p")
    frequency_penalty: float | None = _within("frequency_penalty")
    """Subtracted from a token's logit for each time that it occurs in the answer."""
    presence_penalty: float | None = _within("presence_penalty")
    """Subtracted from a token's logit if it occurs in the answer."""
    repetition_penalty: float | None = _within("repetition_penalty")
    """Above 1, tokens of the prompt and the answer are repeated less often (as in vLLM)."""
    n: int | None = Field(None, ge=1)
    stop: (
        Annotated[
            Annotated[Text, Tag("#text")] | Annotated[list[Text], Field(max_length=4), Tag("#list")],
            Discriminator(_form, custom_error_type="form", custom_error_message="text or a list of texts"),
        ]
        | None
    ) = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    """Equal seeds give equal answers; the default is a random one."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    context: Policy | None = None
    """Whether a prompt that is too long loses its oldest turns (a text: its beginning) or is refused; by default the
    server decides."""

    @model_validator(mode="after")
    def _check_stream_options(self) -> "SamplingBody":
        if self.include_usage and not self.stream:
            raise unsupported("stream_options", "needs stream=true; set that or leave it out")
        return self

    @property
    def requested_tokens(self) -> dict[str, int | None]:
        """The limit on new tokens, by the names of the fields that can set it."""
        return {"max_tokens": self.max_tokens}

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def request(self, prompt: Sequence[int], max_new_tokens: int, seed: str, **reports: Any) -> Request:
        """Return the engine's request; settings that are not set get OpenAI's defaults."""
        settings = {name: getattr(self, name) for name in RANGES if getattr(self, name, None) is not None}
        if settings.get("top_k", 1) < 1:  # all tokens
            del settings["top_k"]
        return Request(prompt, max_new_tokens, **{"temperature": 1.0} | settings, seed=seed, **reports)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


_SHARED_WITHOUT_EFFECT: dict[str, tuple[Any, ...] | Callable[[Any], bool]] = {
    "logit_bias": lambda bias: _is_empty(bias) or (isinstance(bias, dict) and not any(bias.values())),
    # of vLLM and llama.cpp
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "stop_token_ids": _is_empty,
    "bad_words": _is_empty,
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "priority": (0,),
}


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    without_effect = _SHARED_WITHOUT_EFFECT | {
        "tools": _is_empty,
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": _is_empty,
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": _is_empty,
        "prediction": _is_empty,
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "chat_template": (),
        "chat_template_kwargs": _is_empty,
        "echo": (False,),
    }

    messages: list[MessageBody] = Field(min_length=1)
    continue_final_message: bool | None = None
    """Whether the assistant's last message is continued (as in vLLM): it always is, and no other message ever is."""
    add_generation_prompt: bool | None = None
    """Whether a new answer begins: it always does, except where a message is continued."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """`max_tokens` under its newer name."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _check_combinations(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise unsupported("top_logprobs", "needs logprobs=true; set that or leave it out")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise unsupported("max_tokens", "and max_completion_tokens differ; set one of them")
        continued = self.messages[-1].role == "assistant"
        whose = "the assistant's, which is continued" if continued else "not the assistant's"
        for name, happens in (("continue_final_message", continued), ("add_generation_prompt", not continued)):
            if getattr(self, name) not in (None, happens):
                raise unsupported(name, f"must be {str(happens).lower()} where the last message is {whose}")
        return self

    @property
    def requested_tokens(self) -> dict[str, int | None]:
        """See `SamplingBody`."""
        return {"max_completion_tokens": self.max_completion_tokens, "max_tokens": self.max_tokens}

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are reported along with the chosen one; None = nothing is reported."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    without_effect = _SHARED_WITHOUT_EFFECT | {"suffix": ("",)}

    prompt: Annotated[
        Annotated[str, Tag("#text")]
        | Annotated[list[str], Field(min_length=1), Tag("#texts")]
        | Annotated[Ids, Field(min_length=1), Tag("#ids")]
        | Annotated[list[Ids], Field(min_length=1), Tag("#lists")],
        Discriminator(
            _form_of_prompt,
            custom_error_type="form",
            custom_error_message="text, a list of token ids, or a list of either",
        ),
    ]
    """Text (a beginning-of-text token is put before it), token ids (taken as they are), or a list of either."""
    max_tokens: int | None = Field(None, ge=0)
    """The default is 16; 0 generates nothing and needs `echo`."""
    logprobs: int | None = Field(None, ge=0, le=5)
    """Report each token's log-probability and this many of the likeliest tokens; with `echo` also for the prompt."""
    echo: bool | None = None
    """Return the prompt before its continuation."""
    best_of: int | None = Field(None, ge=1)
    """Must equal `n`, since all answers are returned."""

    @model_validator(mode="after")
    def _check_combinations(self) -> "CompletionBody":
        if self.max_tokens == 0 and not self.echo:
            raise unsupported("max_tokens", "must be 1 or more where there is no echo=true; found 0")
        if self.scores_prompt and self.context == "drop":
            raise unsupported("context", "must not be 'drop' where echo and logprobs ask for the whole prompt")
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of", f"must equal n, which is {self.n or 1}: all that is written is given back")
        return self

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own tokens are scored."""
        return bool(self.echo) and self.logprobs is not None

    def prompts(self) -> list[str | list[int]]:
        """Return every prompt, as text or ids."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class NanochatMessage(_Body):
    """A message as nanochat's own page sends it."""

    role: Literal["user", "assistant"]
    content: Text


class NanochatBody(_Body):
    """`POST /chat/completions` of nanochat's own server (2025-11), with its limits."""

    messages: list[NanochatMessage] = Field(min_length=1, max_length=500)
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1, le=4096)
    top_k: int | None = Field(None, ge=0, le=200)
    """0 = all tokens."""
