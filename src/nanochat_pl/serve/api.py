"""OpenAI's routes: chats, completions, models.

A request takes five forms: its body (`schema`), a `Request` for the engine with the prompt's ids, the worker's
`GenerationHandle`, a `ChoiceStream` that turns tokens into text, and the model of the response (`responses`).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nanochat_pl.engine import TokenLogprobs
from nanochat_pl.serve import responses
from nanochat_pl.serve.choices import ChoiceStream, Generation, ScoredToken, TokenTexts, char_offset
from nanochat_pl.serve.context import ContextFull, FittedPrompt, fit, fit_text, take_turns
from nanochat_pl.serve.errors import ApiError
from nanochat_pl.serve.schema import ChatBody, CompletionBody, MessageBody
from nanochat_pl.serve.server import ServedModel, Server
from nanochat_pl.serve.settings import Policy
from nanochat_pl.serve.streams import EventStream, event, unless_gone
from nanochat_pl.serve.text import ContentPart

__all__ = ["ERRORS", "api_routes", "fit_prompt"]

Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    "4XX": {"model": responses.ErrorBody, "description": "The request is at fault, or the server is busy."},
    "5XX": {"model": responses.ErrorBody, "description": "The server is at fault, or shutting down."},
}
COMPLETION_TOKENS = 16
"""Default limit on the new tokens of a completion, as in OpenAI's API."""


def api_routes(server: Server) -> APIRouter:
    """Make the routes under /v1."""
    router = APIRouter(prefix="/v1")

    @router.get("/models", response_model=responses.ModelList, responses=ERRORS)
    async def models() -> responses.ModelList:
        """List the loaded models."""
        return responses.ModelList(data=[_card(served) for served in server.models.values()])

    @router.get("/models/{model_id:path}", response_model=responses.ModelCard, responses=ERRORS)
    async def model(model_id: str) -> responses.ModelCard:
        """Describe one loaded model."""
        return _card(server.model(model_id))

    chat_responses: Responses = {200: _ok(responses.ChatCompletion, responses.ChatChunk), **ERRORS}

    @router.post("/chat/completions", response_model=None, responses=chat_responses, name="chat")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events (stream=true)."""
        served = server.model(body.model)
        # 1) Encode the conversation as in training. Long ones take a while, so this runs outside the event loop.
        messages = await asyncio.to_thread(_conversation, body.messages, server)
        max_tokens = server.max_tokens(body.requested_tokens)
        prompt = await fit_prompt(fit, messages, served, max_tokens, body.context or server.limits.context)
        # 2) Queue the request; the worker assigns rows as they become free.
        generation = server.generate(
            request, served, body, [prompt.ids], max_tokens, "chatcmpl", logprobs=body.num_logprobs
        )
        # 3) Stream the answer, or wait for the whole of it; either way a client that disconnects frees the row.
        if body.stream:
            events = _chat_events(generation, served.texts, body.include_usage, prompt)
            return await EventStream.begin(request, events, server.limits)
        await unless_gone(request.receive, generation.finish())
        choices = [
            responses.ChatChoice(
                index=choice.index,
                message=responses.AnswerMessage(
                    role="assistant", content=choice.text(), refusal=None, parts=choice.tool_parts()
                ),
                logprobs=None if body.num_logprobs is None else _chat_logprobs(served.texts, choice.scored),
                finish_reason=choice.finish_reason,
                truncated=prompt.truncated,
            )
            for choice in generation.choices
        ]
        answer = responses.ChatCompletion(
            **generation.envelope,
            object="chat.completion",
            choices=choices,
            dropped_messages=prompt.dropped,
            usage=generation.usage(),
        )
        return JSONResponse(answer.sent())

    completion_responses: Responses = {200: _ok(responses.TextCompletion, responses.TextChunk), **ERRORS}

    @router.post("/completions", response_model=None, responses=completion_responses, name="complete")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue text, whole or as server-sent events (stream=true)."""
        served, prompts, n = server.model(body.model), body.prompts(), body.n or 1
        server.check_chars([prompt for prompt in prompts if isinstance(prompt, str)], "prompt")
        max_tokens = server.max_tokens(body.requested_tokens, COMPLETION_TOKENS)
        server.check_choices(len(prompts), n)  # before the prompts are encoded
        policy: Policy = "refuse" if body.scores_prompt else body.context or server.limits.context
        fitted_prompts = [await fit_prompt(fit_text, prompt, served, max_tokens, policy) for prompt in prompts]
        generation = server.generate(
            request,
            served,
            body,
            [prompt.ids for prompt in fitted_prompts],
            max_tokens,
            "cmpl",
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.scores_prompt else None,
        )
        echoes = [  # one for each answer
            _Echo(served, prompt if body.echo else "", fitted, body.scores_prompt)
            for prompt, fitted in zip(prompts, fitted_prompts, strict=True)
            for _ in range(n)
        ]
        if body.stream:
            events = _text_events(generation, served.texts, body.include_usage, echoes, body.scores_prompt)
            return await EventStream.begin(request, events, server.limits)
        await unless_gone(request.receive, generation.finish())
        choices = []
        for choice, echo in zip(generation.choices, echoes, strict=True):
            logprobs = None
            if body.logprobs is not None:
                logprobs = echo.logprobs(choice) + _text_logprobs(served.texts, choice.scored, len(echo.text))
            choices.append(
                responses.TextChoice(
                    index=choice.index,
                    text=echo.text + choice.text(),
                    parts=choice.tool_parts(),
                    logprobs=logprobs,
                    finish_reason=choice.finish_reason,
                    truncated=echo.is_cut,
                )
            )
        answer = responses.TextCompletion(
            **generation.envelope, object="text_completion", choices=choices, usage=generation.usage()
        )
        return JSONResponse(answer.sent())

    return router


def _ok(model: type, chunk: type) -> dict[str, Any]:
    """Describe a response, whole and in chunks; `app` adds the schemas of chunks, which FastAPI does not collect."""
    stream = {"text/event-stream": {"schema": {"$ref": f"#/components/schemas/{chunk.__name__}"}}}
    what = "The answer; with stream=true, its pieces as server-sent events."
    return {"model": model, "description": what, "content": stream}


def _card(served: ServedModel) -> responses.ModelCard:
    loaded = served.loaded
    return responses.ModelCard(
        id=served.id,
        created=served.created,
        stage=loaded.stage,
        step=loaded.step,
        context_length=served.sequence_len,
        suggestions=list(served.suggestions),
    )


def _conversation(messages: Sequence[MessageBody], server: Server) -> list[dict[str, Any]]:
    contents = [message.conversation_content() for message in messages]
    server.check_messages([c if isinstance(c, str) else "".join(part["text"] for part in c) for c in contents])
    return take_turns(
        [
            {"role": "system" if message.role == "developer" else message.role, "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
    )


async def fit_prompt(how: Any, content: Any, served: ServedModel, max_tokens: int, policy: Policy) -> FittedPrompt:
    """Encode a prompt in another thread, since long texts would block the event loop.

    `how` is `fit` for a conversation, `fit_text` for text or token ids.

    Raises:
        ApiError: status 400, the prompt is invalid or too long.
    """
    param = "messages" if how is fit else "prompt"
    try:
        if how is fit_text and not isinstance(content, str):
            return FittedPrompt(_check_ids(content, served, max_tokens))
        return await asyncio.to_thread(how, content, served.loaded.tokenizer, served.sequence_len, max_tokens, policy)
    except ContextFull as error:
        raise ApiError(400, str(error), param=param, code="context_length_exceeded") from None
    except ValueError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None


def _check_ids(ids: list[int], served: ServedModel, max_tokens: int) -> list[int]:
    """Return `ids`, or raise ValueError if the model cannot read them."""
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


async def _chat_events(
    generation: Generation, texts: TokenTexts, include_usage: bool, prompt: FittedPrompt
) -> AsyncGenerator[str, None]:
    def chunk(choices: list[responses.ChatChunkChoice], **more: Any) -> str:
        body = responses.ChatChunk(**generation.envelope, object="chat.completion.chunk", choices=choices, **more)
        return event(body.sent())

    def piece(
        index: int, delta: dict[str, Any], finish: responses.FinishReason | None = None, logprobs: Any = None
    ) -> str:
        dropped = 0 if begun else prompt.dropped  # in the first chunk only; `truncated` is in the first of each choice
        choice = responses.ChatChunkChoice(
            index=index,
            delta=responses.ChatDelta(**delta),
            logprobs=logprobs,
            finish_reason=finish,
            truncated=prompt.truncated and index not in begun,
        )
        begun.add(index)
        return chunk([choice], dropped_messages=dropped, **no_usage)

    no_usage: dict[str, Any] = {"usage": None} if include_usage else {}
    begun: set[int] = set()
    async with generation.recorded():
        async for choice, delta in generation.deltas():
            if choice.index not in begun:
                yield piece(choice.index, {"role": "assistant", "content": ""})
            if delta is None:
                yield piece(choice.index, {}, choice.finish_reason)
                continue
            # a token's score goes with the first part that it completed
            logprobs = _chat_logprobs(texts, delta.scored) if delta.scored else None
            contents: list[dict[str, Any]] = [
                {"content": text} if kind == "text" else {"part": {"type": kind, "text": text}}
                for kind, text in delta.parts
            ]
            for i, content in enumerate(contents or [{}]):
                yield piece(choice.index, content, logprobs=logprobs if i == 0 else None)
        if include_usage:
            yield chunk([], usage=generation.usage())
        yield event("[DONE]")


async def _text_events(
    generation: Generation, texts: TokenTexts, include_usage: bool, echoes: Sequence["_Echo"], scores_prompt: bool
) -> AsyncGenerator[str, None]:
    def chunk(choices: list[responses.TextChunkChoice], **more: Any) -> str:
        body = responses.TextChunk(**generation.envelope, object="text_completion", choices=choices, **more)
        return event(body.sent())

    def piece(
        index: int, text: str, finish: responses.FinishReason | None = None, logprobs: Any = None, part: Any = None
    ) -> str:
        choice = responses.TextChunkChoice(
            index=index,
            text=text,
            part=part,
            logprobs=logprobs,
            finish_reason=finish,
            truncated=echoes[index].is_cut and index not in begun,  # in the first chunk of a choice only
        )
        begun.add(index)
        return chunk([choice], **no_usage)

    no_usage: dict[str, Any] = {"usage": None} if include_usage else {}
    begun: set[int] = set()
    pending = dict(enumerate(echoes))  # echoes that were not sent yet
    async with generation.recorded():
        for index, echo in enumerate(echoes if not scores_prompt else ()):
            if pending.pop(index).text:
                yield piece(index, echo.text)
        async for choice, delta in generation.deltas():
            if choice.index in pending:
                echo = pending.pop(choice.index)
                yield piece(choice.index, echo.text, logprobs=echo.logprobs(choice))
            if delta is None:
                yield piece(choice.index, "", choice.finish_reason)
                continue
            before = len(echoes[choice.index].text)
            logprobs = _text_logprobs(texts, delta.scored, before) if delta.scored else None
            for i, (kind, text) in enumerate(delta.parts or [ContentPart("text", "")]):
                part = None if kind == "text" else {"type": kind, "text": text}
                yield piece(choice.index, "" if part else text, logprobs=logprobs if i == 0 else None, part=part)
        if include_usage:
            yield chunk([], usage=generation.usage())
        yield event("[DONE]")


class _Echo:
    """A prompt that is returned before its continuation (unless it is empty), with log-probabilities if `is_scored`."""

    def __init__(self, served: ServedModel, prompt: str | list[int], fitted: FittedPrompt, is_scored: bool):
        self.text = prompt if isinstance(prompt, str) else served.loaded.tokenizer.decode(prompt)
        self.is_cut = fitted.truncated
        self._served, self._ids = served, fitted.ids if is_scored else []
        self._begin = int(isinstance(prompt, str))  # text follows <|bos|>

    def logprobs(self, choice: ChoiceStream) -> responses.TextLogprobs:
        """Return the log-probabilities of the prompt's tokens."""
        texts, tokenizer = self._served.texts, self._served.loaded.tokenizer
        report = responses.TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        num_chars = 0
        for token, score in zip(self._ids[self._begin :], choice.prompt_logprobs[self._begin :]):
            offset, num_chars = char_offset(tokenizer.decode_bytes([token]), num_chars)
            report.tokens.append(texts.text(token))
            report.token_logprobs.append(None if score is None else score.logprob)
            report.top_logprobs.append(None if score is None else _top_logprobs(texts, score))
            report.text_offset.append(offset)
        return report


# Log-probabilities


def _chat_logprobs(texts: TokenTexts, scored: Sequence[ScoredToken]) -> responses.ChatLogprobs:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": logprob, "bytes": texts.bytes(token)}

    content = [
        responses.TokenLogprob(
            **entry(each.token, each.logprobs.logprob),
            top_logprobs=[responses.TopLogprob(**entry(*alternative)) for alternative in each.logprobs.top],
        )
        for each in scored
    ]
    return responses.ChatLogprobs(content=content, refusal=None)


def _top_logprobs(texts: TokenTexts, score: TokenLogprobs) -> dict[str, float]:
    """Return the likeliest tokens by their texts; of two with the same text the likelier one counts."""
    return {texts.text(token): logprob for token, logprob in reversed(score.top)}


def _text_logprobs(texts: TokenTexts, scored: Sequence[ScoredToken], before: int) -> responses.TextLogprobs:
    """Return the log-probabilities of an answer's tokens, which follow an echo of `before` characters."""
    return responses.TextLogprobs(
        tokens=[texts.text(each.token) for each in scored],
        token_logprobs=[each.logprobs.logprob for each in scored],
        top_logprobs=[_top_logprobs(texts, each.logprobs) for each in scored],
        text_offset=[before + each.offset for each in scored],
    )
