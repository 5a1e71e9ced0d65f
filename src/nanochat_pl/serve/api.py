"""OpenAI's routes: chats, completions, models."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nanochat_pl.engine import TokenLogprobs
from nanochat_pl.serve.answers import ChatCompletion, ErrorBody, ModelCard, ModelList, TextCompletion
from nanochat_pl.serve.choices import Choice, Scored, merged
from nanochat_pl.serve.context import ContextFull, Policy, Prompt, fit, fit_text
from nanochat_pl.serve.errors import ApiError
from nanochat_pl.serve.models import Served
from nanochat_pl.serve.schema import ChatBody, CompletionBody, MessageBody
from nanochat_pl.serve.server import Answer, Sampling, Server
from nanochat_pl.serve.streams import EventStream, event, unless_gone
from nanochat_pl.serve.text import Part
from nanochat_pl.serve.turns import take_turns

__all__ = ["ERRORS", "api_routes", "fitted"]

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is at fault, or there is too much to do."},
    "5XX": {"model": ErrorBody, "description": "The server is at fault, or being shut down."},
}
COMPLETION_TOKENS = 16
"""New tokens of a completion that does not say how many; OpenAI's number."""


def api_routes(server: Server) -> APIRouter:
    """Make the routes below /v1."""
    router = APIRouter(prefix="/v1")

    @router.get("/models", response_model=ModelList, responses=ERRORS)
    async def models() -> ModelList:
        """List the loaded models."""
        return ModelList(data=[_card(served) for served in server.models.values()])

    @router.get("/models/{model_id:path}", response_model=ModelCard, responses=ERRORS)
    async def model(model_id: str) -> ModelCard:
        """Describe one loaded model."""
        return _card(server.model(model_id))

    @router.post("/chat/completions", response_model=None, responses={200: _ok(ChatCompletion), **ERRORS}, name="chat")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events (stream=true)."""
        served = server.model(body.model)
        messages = await asyncio.to_thread(_conversation, body.messages, server)
        sampling = _sampling(body, server.max_tokens(body.asked_tokens), body.num_logprobs)
        prompt = await fitted(fit, messages, served, sampling, body.context or server.limits.context)
        answer = server.begin(request, served, [prompt.ids], sampling, "chatcmpl")
        if body.stream:
            events = _chat_events(answer, body.include_usage, prompt)
            return await EventStream.begin(request, events, server.limits)
        whole = await unless_gone(request.receive, _whole(answer))
        choices = [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": None if body.num_logprobs is None else _chat_logprobs(served, scored),
                "finish_reason": choice.finish_reason,
                **_truncated(prompt),
            }
            for choice, scored in zip(answer.choices, whole, strict=True)
        ]
        envelope = _envelope(answer, "chat.completion", choices) | _dropped(prompt)
        return JSONResponse(envelope | {"usage": answer.usage()})

    @router.post("/completions", response_model=None, responses={200: _ok(TextCompletion), **ERRORS}, name="complete")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue text, whole or as server-sent events (stream=true)."""
        served, prompts = server.model(body.model), body.prompts()
        server.check_chars([prompt for prompt in prompts if isinstance(prompt, str)], "prompt")
        sampling = _sampling(body, server.max_tokens(body.asked_tokens, COMPLETION_TOKENS), body.logprobs)
        if body.scores_prompt:
            sampling = replace(sampling, prompt_logprobs=body.logprobs)
        server.check_choices(len(prompts), sampling.n)  # before all of them are encoded
        policy: Policy = "refuse" if body.scores_prompt else body.context or server.limits.context
        read = [await fitted(fit_text, prompt, served, sampling, policy) for prompt in prompts]
        answer = server.begin(request, served, [prompt.ids for prompt in read], sampling, "cmpl")
        echoes = [
            _Echo(served, prompt, laid_out.ids if body.scores_prompt else ())
            for prompt, laid_out in zip(prompts if body.echo else [""] * len(prompts), read, strict=True)
            for _ in range(sampling.n)
        ]
        cuts = [_truncated(prompt) for prompt in read for _ in range(sampling.n)]
        if body.stream:
            events = _text_events(answer, body.include_usage, echoes, cuts, body.scores_prompt)
            return await EventStream.begin(request, events, server.limits)
        whole = await unless_gone(request.receive, _whole(answer))
        choices = []
        for choice, scored, echo, cut in zip(answer.choices, whole, echoes, cuts, strict=True):
            shown: dict[str, Any] = {"index": choice.index, "text": echo.text + choice.text()}
            if (parts := choice.tool_parts()) is not None:
                shown["parts"] = parts
            shown["logprobs"] = None
            if body.logprobs is not None:
                own, rest = echo.logprobs(choice), _text_logprobs(served, scored, len(echo.text))
                shown["logprobs"] = {name: [*own[name], *rest[name]] for name in rest}
            choices.append(shown | {"finish_reason": choice.finish_reason} | cut)
        return JSONResponse(_envelope(answer, "text_completion", choices) | {"usage": answer.usage()})

    return router


def _ok(model: type) -> dict[str, Any]:
    return {"model": model, "description": "The answer; with stream=true, its pieces as server-sent events."}


def _card(served: Served) -> ModelCard:
    loaded = served.loaded
    return ModelCard(
        id=served.id,
        created=served.created,
        stage=loaded.stage,
        step=loaded.step,
        context_length=served.sequence_len,
        suggestions=list(served.suggestions),
    )


def _conversation(messages: Sequence[MessageBody], server: Server) -> list[dict[str, Any]]:
    said = [message.said() for message in messages]
    server.check_messages([text if isinstance(text, str) else "".join(part["text"] for part in text) for text in said])
    return take_turns(
        [
            {"role": "system" if message.role == "developer" else message.role, "content": content}
            for message, content in zip(messages, said, strict=True)
        ]
    )


def _sampling(body: ChatBody | CompletionBody, max_tokens: int, logprobs: int | None) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        seed=body.seed,
        stop=body.stop_strings(),
        n=body.n or 1,
        logprobs=logprobs,
    )


async def fitted(how: Any, content: Any, served: Served, sampling: Sampling, policy: Policy) -> Prompt:
    """Lay out what a model is to read, away from the event loop: long texts take their time.

    Args:
        how: `fit` for a conversation, `fit_text` for text or token ids.
        content: what is laid out.
        served: the model.
        sampling: its `max_tokens` need room.
        policy: see `fit`.

    Raises:
        ApiError: it cannot be read.
    """
    param = "messages" if how is fit else "prompt"
    try:
        if how is fit_text and not isinstance(content, str):
            return Prompt(_checked(content, served, sampling.max_tokens))
        return await asyncio.to_thread(
            how, content, served.loaded.tokenizer, served.sequence_len, sampling.max_tokens, policy
        )
    except ContextFull as error:
        raise ApiError(400, str(error), param=param, code="context_length_exceeded") from None
    except ValueError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None


def _checked(ids: list[int], served: Served, max_tokens: int) -> list[int]:
    """Refuse ids that the model cannot read."""
    vocab_size = served.loaded.tokenizer.vocab_size
    if not ids:
        raise ValueError(f"a prompt has no ids; begin it with {served.loaded.tokenizer.bos_id}")
    if max(ids) >= vocab_size:
        raise ValueError(f"a prompt holds the id {max(ids)}; this model knows 0 to {vocab_size - 1}")
    if len(ids) > served.sequence_len - min(1, max_tokens):
        raise ContextFull(
            f"a prompt has {len(ids)} tokens; this model's maximum context length is {served.sequence_len} tokens"
            + ", the answer among them" * (max_tokens > 0)
        )
    return ids


async def _whole(answer: Answer) -> list[list[Scored]]:
    """Wait for all answers; return the scores of each."""
    scored: list[list[Scored]] = [[] for _ in answer.choices]
    async with answer.noted():
        async for choice, piece in merged(answer.choices):
            if piece is not None:
                scored[choice.index] += piece.scored
    return scored


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text(), "refusal": None}
    if (parts := choice.tool_parts()) is not None:
        message["parts"] = parts
    return message


def _envelope(answer: Answer, kind: str, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.served.id,
        "choices": choices,
    }


def _dropped(prompt: Prompt) -> dict[str, int]:
    return {"dropped_messages": prompt.dropped} if prompt.dropped else {}


def _truncated(prompt: Prompt) -> dict[str, bool]:
    return {"truncated": True} if prompt.truncated else {}


async def _chat_events(answer: Answer, include_usage: bool, prompt: Prompt) -> AsyncGenerator[str, None]:
    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        cut = {} if index in begun else _truncated(prompt)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish, **cut}
        usage = {"usage": None} if include_usage else {}
        return event(_envelope(answer, "chat.completion.chunk", [choice]) | usage | extra)

    begun: set[int] = set()
    extra = _dropped(prompt)
    async with answer.noted():
        async for choice, piece in merged(answer.choices):
            if choice.index not in begun:
                yield chunk(choice.index, {"role": "assistant", "content": ""})
                begun.add(choice.index)
                extra = {}
            if piece is None:
                yield chunk(choice.index, {}, choice.finish_reason)
                continue
            # a token's score goes with the first part that it completed
            logprobs = _chat_logprobs(answer.served, piece.scored) if piece.scored else None
            deltas: list[dict[str, Any]] = [
                {"content": text} if kind == "text" else {"part": {"type": kind, "text": text}}
                for kind, text in piece.parts
            ]
            for i, delta in enumerate(deltas or [{}]):
                yield chunk(choice.index, delta, logprobs=logprobs if i == 0 else None)
        if include_usage:
            yield event(_envelope(answer, "chat.completion.chunk", []) | {"usage": answer.usage()})
        yield event("[DONE]")


async def _text_events(
    answer: Answer,
    include_usage: bool,
    echoes: Sequence["_Echo"],
    cuts: Sequence[dict[str, bool]],
    scores_prompt: bool,
) -> AsyncGenerator[str, None]:
    def chunk(index: int, text: str, finish: str | None = None, logprobs: Any = None, part: Any = None) -> str:
        tool = {} if part is None else {"part": part}
        cut = untold.pop(index, {})
        choice = {"index": index, "text": text, **tool, "logprobs": logprobs, "finish_reason": finish, **cut}
        return event(_envelope(answer, "text_completion", [choice]) | ({"usage": None} if include_usage else {}))

    untold = dict(enumerate(cuts))  # the first chunk of a choice says it
    silent = dict(enumerate(echoes))  # echoes that are still to be given
    async with answer.noted():
        for index, echo in enumerate(echoes if not scores_prompt else ()):
            if silent.pop(index).text:
                yield chunk(index, echo.text)
        async for choice, piece in merged(answer.choices):
            if choice.index in silent:
                echo = silent.pop(choice.index)
                yield chunk(choice.index, echo.text, logprobs=echo.logprobs(choice))
            if piece is None:
                yield chunk(choice.index, "", choice.finish_reason)
                continue
            before = len(echoes[choice.index].text)
            logprobs = _text_logprobs(answer.served, piece.scored, before) if piece.scored else None
            for i, (kind, text) in enumerate(piece.parts or [Part("text", "")]):
                tool = None if kind == "text" else {"type": kind, "text": text}
                yield chunk(choice.index, "" if tool else text, logprobs=logprobs if i == 0 else None, part=tool)
        if include_usage:
            yield event(_envelope(answer, "text_completion", []) | {"usage": answer.usage()})
        yield event("[DONE]")


class _Echo:
    """A prompt that is given back.

    Args:
        served: the model that reads it.
        prompt: as it was sent.
        scored: its ids, where their log-probabilities are given as well; empty = they are not.
    """

    def __init__(self, served: Served, prompt: str | list[int], scored: Sequence[int]):
        is_text = isinstance(prompt, str)
        self.text = prompt if isinstance(prompt, str) else served.loaded.tokenizer.decode(prompt)
        self._served, self._ids, self._begin = served, scored, int(is_text)  # text begins behind <|bos|>

    def logprobs(self, choice: Choice) -> dict[str, list[Any]]:
        """Return what is reported of the prompt's tokens."""
        texts, tokenizer = self._served.texts, self._served.loaded.tokenizer
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        num_chars = 0
        for token, score in zip(self._ids[self._begin :], choice.prompt_logprobs[self._begin :]):
            begun = [
                byte & 0xC0 != 0x80 for byte in tokenizer.decode_bytes([token])
            ]  # else it goes on with a character
            told["tokens"].append(texts.text(token))
            told["token_logprobs"].append(None if score is None else score.logprob)
            told["top_logprobs"].append(None if score is None else _rivals(self._served, score))
            told["text_offset"].append(max(0, num_chars - (begun[:1] == [False])))
            num_chars += sum(begun)
        return told


def _chat_logprobs(served: Served, scored: Sequence[Scored]) -> dict[str, Any]:
    entry = served.texts.entry
    content = [
        entry(each.token, each.logprobs.logprob) | {"top_logprobs": [entry(*rival) for rival in each.logprobs.top]}
        for each in scored
    ]
    return {"content": content, "refusal": None}


def _rivals(served: Served, score: TokenLogprobs) -> dict[str, float]:
    """Name the likeliest tokens by their texts; of two that look alike the likelier counts."""
    return {served.texts.text(token): logprob for token, logprob in reversed(score.top)}


def _text_logprobs(served: Served, scored: Sequence[Scored], before: int) -> dict[str, list[Any]]:
    """Return what is reported of an answer's tokens, behind so many characters of an echo."""
    return {
        "tokens": [served.texts.text(each.token) for each in scored],
        "token_logprobs": [each.logprobs.logprob for each in scored],
        "top_logprobs": [_rivals(served, each.logprobs) for each in scored],
        "text_offset": [before + each.offset for each in scored],
    }
