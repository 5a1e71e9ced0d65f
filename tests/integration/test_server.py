"""The official OpenAI client against a real server: what it asks for is what it gets."""

import json
import math
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
import torch

from nanochat_pl.engine import Engine, Request
from nanochat_pl.serve.context import fit
from nanochat_pl.serve.server import ServedModel
from nanochat_pl.serve.streams import event
from nanochat_pl.tokenizer import Tokenizer
from tests.integration.serving import engine_of, get, post, running, served, tiny_model, tiny_tokenizer
from tests.integration.serving import stream as open_stream

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "where does the river run?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> list[ServedModel]:
    return [
        served(tokenizer, "sft/tiny"),
        served(tokenizer, "base/tiny", model=tiny_model(tokenizer, seed=2, sequence_len=128)),
    ]


@pytest.fixture(scope="module")
def url(models: list[ServedModel]) -> Iterator[str]:
    with running(*models, max_tokens=200, max_choices=8) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def greedy(model: ServedModel, messages: list, max_tokens: int) -> tuple[list[int], list[int]]:
    """Return the prompt's ids and the engine's own answer."""
    tokenizer = model.loaded.tokenizer
    prompt = fit(messages, tokenizer, model.sequence_len, max_tokens).ids
    return prompt, Engine(model.loaded.model, [], tokenizer, "float32").generate([prompt], max_tokens)[0].tokens


def test_a_greedy_chat_equals_the_engine(client, models, tokenizer):
    answer = client.chat.completions.create(model="sft/tiny", messages=QUESTION, temperature=0, max_tokens=20)
    prompt, tokens = greedy(models[0], QUESTION, 20)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == tokenizer.decode([token for token in tokens if token < 291])
    assert choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == len(prompt) + 20
    assert answer.model == "sft/tiny"
    assert answer.object == "chat.completion"


def test_a_stream_equals_the_whole_answer(client):
    asked = {"model": "sft/tiny", "messages": QUESTION, "seed": 3, "max_tokens": 30, "n": 3}
    whole = client.chat.completions.create(**asked)
    texts, reasons, usages = ["", "", ""], [None] * 3, []
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        assert chunk.id and chunk.object == "chat.completion.chunk"
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usages[-1] == whole.usage
    assert set(usages[:-1]) == {None}


def test_a_seed_repeats_an_answer_and_no_seed_does_not(client):
    def ask(**more):
        answer = client.chat.completions.create(
            model="sft/tiny", messages=QUESTION, temperature=2, max_tokens=24, **more
        )
        return answer.choices[0].message.content

    assert ask(seed=5) == ask(seed=5)
    assert ask(seed=5) != ask(seed=6)
    assert ask() != ask()


def test_choices_of_one_request_differ(client):
    answer = client.chat.completions.create(
        model="sft/tiny", messages=QUESTION, temperature=2, max_tokens=24, n=6, seed=1
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.message.content for choice in answer.choices}) == 6
    assert answer.usage.completion_tokens == 6 * 24


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_ends_before_a_stop_string(client, stream):
    asked = {"model": "sft/tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    full = client.chat.completions.create(**asked).choices[0].message.content
    middle = full[len(full) // 2 : len(full) // 2 + 3]
    asked |= {"stop": [middle, "nowhere to be found"], "logprobs": True}
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        reason, scored = chunks[-1].finish_reason, [t for c in chunks if c.logprobs for t in c.logprobs.content]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        text, reason, scored = choice.message.content, choice.finish_reason, choice.logprobs.content
    assert text == full[: full.index(middle)]
    assert reason == "stop"
    assert "".join(token.token for token in scored).startswith(text[:-3])
    assert len("".join(token.token for token in scored)) < len(text) + 12


def test_logprobs_are_those_of_a_full_forward(client, models, tokenizer):
    answer = client.chat.completions.create(
        model="sft/tiny", messages=QUESTION, temperature=1.5, seed=2, max_tokens=25, logprobs=True, top_logprobs=4
    )
    scored = answer.choices[0].logprobs.content
    assert len(scored) == 25
    names = {models[0].texts.text(i): i for i in range(256, tokenizer.vocab_size)}
    tokens = [entry.bytes[0] if entry.bytes and len(entry.bytes) == 1 else names[entry.token] for entry in scored]
    prompt = fit(QUESTION, tokenizer, 256, 25).ids
    with torch.inference_mode():
        logits = models[0].loaded.model(torch.tensor([prompt + tokens]))
    expected = logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    for entry, token, row in zip(scored, tokens, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=2e-3)
        values = row.topk(4).values.tolist()
        assert [rival.logprob for rival in entry.top_logprobs] == pytest.approx(values, abs=2e-3)
        if entry.bytes is not None:
            assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_an_answers_message_can_be_sent_back(client):
    first = client.chat.completions.create(model="sft/tiny", messages=QUESTION, max_tokens=8, temperature=0)
    messages = [{"role": "developer", "content": "be brief"}, *QUESTION, first.choices[0].message]
    messages.append({"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "then?"}]})
    second = client.chat.completions.create(model="sft/tiny", messages=messages, max_tokens=8, temperature=0)
    plain = [
        {"role": "system", "content": "be brief"},
        *QUESTION,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and then?"},
    ]
    again = client.chat.completions.create(model="sft/tiny", messages=plain, max_tokens=8, temperature=0)
    assert second.choices[0].message.content == again.choices[0].message.content
    assert second.usage == again.usage


TOOL_PARTS = [
    {"type": "text", "text": "it is "},
    {"type": "python", "text": "12+30"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": ": 42"},
]


def test_tool_parts_are_separate_from_text_whole_streamed_and_sent_back(client, url, models, tokenizer):
    asked = {"model": "sft/tiny", "messages": QUESTION, "temperature": 0}
    said = {"role": "assistant", "content": TOOL_PARTS}
    ids, _ = tokenizer.render_conversation({"messages": [*QUESTION, said]})
    script = ids[ids.index(tokenizer.special_id("<|assistant_start|>")) + 1 : -1]
    asked["max_tokens"] = len(script)
    engine_of(models[0]).script = script
    try:
        whole = client.chat.completions.create(**asked, logprobs=True)
        chunks = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
        original = post(f"{url}/chat/completions", json={"messages": QUESTION, "max_tokens": len(script)}).text
    finally:
        engine_of(models[0]).script = ()
    message = whole.choices[0].message
    assert message.content == "it is : 42"
    assert message.parts == TOOL_PARTS
    assert [delta.part for delta in chunks if hasattr(delta, "part")] == TOOL_PARTS[1:3]
    assert "".join(delta.content or "" for delta in chunks) == message.content
    forced = len(tokenizer.encode("42")) + 2
    assert len(whole.choices[0].logprobs.content) == len(script) - forced
    tokens = [json.loads(line.removeprefix("data: ")).get("token", "") for line in original.splitlines() if line]
    tool = "<|python_start|>12+30<|python_end|><|output_start|>42<|output_end|>"
    assert "".join(tokens) == f"it is {tool}: 42"
    thanks = {"role": "user", "content": "thanks"}
    for history in ([*QUESTION, message, thanks], [*QUESTION, said, thanks]):
        answer = client.chat.completions.create(**asked | {"messages": history})
        expected, _ = tokenizer.render_conversation({"messages": [*QUESTION, said, thanks]})
        assert answer.usage.prompt_tokens == len(expected) + 1


def test_completions_take_text_ids_and_lists_of_them(client, models, tokenizer):
    text = "the rain "
    ids = tokenizer.encode(text, prepend="<|bos|>")
    tokens = Engine(models[1].loaded.model, [], tokenizer, "float32").generate([ids], 12)[0].tokens
    expected = tokenizer.decode([token for token in tokens if token < 291])
    for prompt in (text, [text], ids, [ids], [text, text]):
        answer = client.completions.create(model="base/tiny", prompt=prompt, temperature=0, max_tokens=12)
        assert [choice.text for choice in answer.choices] == [expected] * (2 if prompt == [text, text] else 1)
        assert answer.object == "text_completion"
    echoed = client.completions.create(model="base/tiny", prompt=text, temperature=0, max_tokens=12, echo=True)
    assert echoed.choices[0].text == text + expected
    assert echoed.usage.prompt_tokens == len(ids)


def test_streamed_completions_have_the_logprobs_of_whole_ones(client):
    asked = {"model": "base/tiny", "prompt": "the sea", "seed": 1, "max_tokens": 12, "logprobs": 2, "n": 2}
    whole = client.completions.create(**asked)
    texts, tokens = ["", ""], [[], []]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    told = whole.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 12
    assert all(logprob <= 0 and math.isfinite(logprob) for logprob in told.token_logprobs)
    assert told.text_offset[:2] == [0, len(told.tokens[0])]


@pytest.fixture
def says(models: list[ServedModel]) -> Iterator[Callable[[list[int]], None]]:
    """Let the first model want these tokens, whatever it would say."""

    def script(tokens: list[int]) -> None:
        engine_of(models[0]).script = tokens

    yield script
    script([])


def test_tokens_cut_by_a_stop_string_have_no_logprobs(client, says):
    says(list(b"abx....."))  # when b comes, a is certain, and b may begin the second stop string
    asked = {"model": "sft/tiny", "messages": QUESTION, "stop": ["aq", "bx"], "logprobs": True, "temperature": 0}
    choice = client.chat.completions.create(**asked, max_tokens=8).choices[0]
    assert choice.message.content == "a"
    assert [entry.token for entry in choice.logprobs.content] == ["a"]


def test_text_offsets_count_characters_of_the_text(client, says, tokenizer):
    tool = [tokenizer.special_id("<|python_start|>"), *b"1+1", tokenizer.special_id("<|python_end|>")]
    result = [tokenizer.special_id("<|output_start|>"), *b"2", tokenizer.special_id("<|output_end|>")]
    script = [*"aé🌍b".encode(), *tool, *result, *b"c"]
    says(script)
    asked = {"model": "sft/tiny", "prompt": "x", "max_tokens": len(script), "logprobs": 0, "temperature": 0}
    choice = client.completions.create(**asked).choices[0]
    assert choice.text == "aé🌍bc"
    assert choice.logprobs.text_offset == [0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4]
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [offset for told in streamed if told for offset in told.text_offset] == choice.logprobs.text_offset


def test_models_are_listed_with_stage_step_and_context(client):
    assert [model.id for model in client.models.list()] == ["sft/tiny", "base/tiny"]
    model = client.models.retrieve("base/tiny")
    assert (model.stage, model.step, model.context_length) == ("base", 7, 128)
    with pytest.raises(openai.NotFoundError, match=r"sft/tiny, base/tiny") as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def error_of(url: str, body: object, path: str = "/v1/chat/completions", status: int = 400) -> dict:
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    response = post(url + path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "pydantic" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"logit_bias": {"5": 3}}, "logit_bias", "unsupported_parameter"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "0.5"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 99}, "n", "invalid_value"),
        ({"max_tokens": 201}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 201}, "max_completion_tokens", "invalid_value"),
        ({"ignore_eos": True}, "ignore_eos", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "type": "tool"}]}, "messages[0].type", "unsupported_parameter"),
        ({"continue_final_message": True}, "continue_final_message", "unsupported_parameter"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "unsupported_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [*QUESTION, {"role": "user", "content": 3}]}, "messages[1].content", "invalid_value"),
        ({"messages": [*QUESTION, {"role": "system"}, 5]}, "messages[2]", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "the sea " * 400}]}, "messages", "context_length_exceeded"),
    ],
)
def test_an_unsupported_or_wrong_field_is_400_with_param_and_code(url, change, param, code):
    error = error_of(url, {"model": "sft/tiny", "messages": QUESTION} | change)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "change",
    [
        {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "metadata": {"a": "b"}, "store": False},
        {"n": None, "temperature": None, "stop": None, "stream": None, "max_tokens": None, "seed": None},
        {"store": True, "service_tier": "flex", "reasoning_effort": "none", "verbosity": "medium"},
        {"top_k": 0, "repetition_penalty": 1.0, "ignore_eos": False, "logit_bias": {"5": 0}, "min_tokens": 0},
        {"top_k": -1, "top_logprobs": 0, "stream_options": {"include_usage": False}, "stop": []},
        {"continue_final_message": False, "add_generation_prompt": True},
        {
            "continue_final_message": True,
            "add_generation_prompt": False,
            "messages": [*QUESTION, {"role": "assistant", "content": "to"}],
        },
        {"guided_json": None, "mood": None, "extra": {}, "plugins": [], "nested": {"a": None, "b": [{}]}},
        {"messages": [{"role": "user", "content": "where?", "type": "text", "id": "m1", "name": None}]},
        {"messages": [{"role": "user", "name": "ann", "content": "where?", "tool_calls": [], "thinking": None}]},
    ],
)
def test_fields_without_effect_are_accepted(url, change):
    body = {"messages": QUESTION, "max_completion_tokens": 3} | change
    assert post(f"{url}/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools is not supported by this server; leave it out"),
        ({"mood": 1}, "mood is unknown here, and a setting without effect is refused; leave it out"),
        ({"temperature": 3}, "temperature must be 2 or less; found 3"),
        ({"temperature": "hot"}, "temperature must be a number; found text"),
        ({"n": 1.5}, "n must be a whole number; found 1.5"),
        ({"stream": 1}, "stream must be true or false; found 1"),
        ({"stop": ["a"] * 5}, "stop must be a list of 4 or fewer; found 5"),
        ({"stop": ["a", 3]}, "stop[1] must be text; found 3"),
        ({"stop": {}}, "stop must be text or a list of texts; found an object"),
        ({"stop": ""}, "stop must be text that is not empty; found empty text"),
        ({"messages": "hello"}, "messages must be a list; found text"),
        ({"messages": []}, "messages must be a list of 1 or more; found 0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is missing"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0] must be an object; found text"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role must be one of 'system', 'developer', 'user' or 'assistant'; found 'tool'",
        ),
        (
            {"messages": [{"role": "tool", "tool_call_id": "call_1", "content": [{"type": "tool_result"}]}]},
            "messages[0].role must be one of 'system', 'developer', 'user' or 'assistant'; found 'tool'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "python", "text": "1"}]}]},
            "messages[0].content[0].type 'python' belongs to an assistant's message",
        ),
    ],
)
def test_a_wrong_field_has_one_error_about_the_form_that_was_sent(url, change, message):
    assert error_of(url, {"messages": QUESTION} | change)["message"] == message


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt must be a list of 1 or more; found 0"),
        (["x", 3], "prompt[1] must be text; found 3"),
        ([3, "x"], "prompt[1] must be a whole number; found text"),
        ([[3, -1]], "prompt[0][1] must be 0 or more; found -1"),
        ({"a": 1}, "prompt must be text, a list of token ids, or a list of either; found an object"),
    ],
)
def test_the_first_element_of_a_prompt_decides_its_form(url, prompt, message):
    assert error_of(url, {"prompt": prompt}, "/v1/completions")["message"] == message


def test_best_of_must_equal_n(client, url):
    many = client.completions.create(model="sft/tiny", prompt="the sea", n=3, best_of=3, max_tokens=2)
    assert len(many.choices) == 3
    fault = error_of(url, {"prompt": "the sea", "n": 3, "best_of": 4}, "/v1/completions")
    assert fault["message"] == "best_of must equal n, which is 3: all that is written is given back"
    assert fault["param"] == "best_of"


def test_an_empty_list_of_parts_leaves_the_content(url):
    def prompt_tokens(**fields: object) -> int:
        messages = [*QUESTION, {"role": "assistant", "content": "to the sea", **fields}, *QUESTION]
        body = {"messages": messages, "max_tokens": 1}
        return post(f"{url}/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]

    assert prompt_tokens(parts=[]) == prompt_tokens(parts=None) == prompt_tokens()


def said(role: str, content: object) -> dict:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "read_as"),
    [
        ([said("system", "a"), said("developer", "b"), said("user", "c")], "user:a\n\nb\n\nc"),
        ([said("user", "a"), said("system", "b"), said("user", "c")], "user:a\n\nb\n\nc"),
        ([said("user", "a"), said("assistant", "b"), said("system", "c")], "user:a assistant:b user:c"),
        ([said("user", "a"), said("user", ""), said("user", "b")], "user:a\n\nb"),
        ([said("system", "a")], "user:a"),
        ([said("assistant", "a"), said("user", "b")], "user: assistant:a user:b"),
        (
            [said("user", "a"), said("assistant", "b"), said("assistant", "c"), said("user", "d")],
            "user:a assistant:b\n\nc user:d",
        ),
        ([said("user", "a"), said("assistant", "the")], "user:a continue:the"),
        ([said("user", "a"), said("assistant", None)], "user:a"),
    ],
)
def test_messages_in_any_order_are_read_by_the_stated_rules(url, tokenizer, messages, read_as):
    expected = [tokenizer.bos_id]
    for turn in read_as.split(" "):
        role, _, text = turn.partition(":")
        end = [] if role == "continue" else [tokenizer.special_id(f"<|{role}_end|>")]
        expected += [tokenizer.special_id(f"<|{role.replace('continue', 'assistant')}_start|>")]
        expected += [*tokenizer.encode(text), *end]
    if "continue" not in read_as:
        expected.append(tokenizer.special_id("<|assistant_start|>"))
    body = {"max_tokens": 8, "temperature": 0}
    chat = post(url + CHAT, json=body | {"messages": messages}).json()
    assert chat["usage"]["prompt_tokens"] == len(expected)
    text = post(f"{url}/v1/completions", json=body | {"prompt": expected}).json()
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]


def test_every_error_has_openais_form(url):
    assert error_of(url, {"model": "x", "messages": QUESTION}, status=404)["code"] == "model_not_found"
    assert error_of(url, "{", status=400)["code"] == "invalid_json"
    assert error_of(url, '{"a": }', status=400)["message"] == "the body is no JSON, at character 6"
    for unreadable in (b'"\xe9"', "[" * 100_000, f'{{"seed": {"9" * 5000}}}'):
        error = error_of(url, unreadable, status=400)
        assert error["message"].startswith("the body cannot be read as JSON: it must be UTF-8")
        assert error["code"] == "invalid_json"
    assert error_of(url, [], status=400)["type"] == "invalid_request_error"
    assert error_of(url, {}, status=400)["code"] == "missing_required_parameter"
    for prompt in ([], [[]], [[1], []], [400], [-1], [1.5], ["x", 3]):
        assert error_of(url, {"prompt": prompt}, "/v1/completions")["param"].startswith("prompt")
    assert error_of(url, {}, path="/v1/nowhere", status=404)["code"] == "not_found"
    assert error_of(url, {}, path="/v1/models", status=405)["code"] == "method_not_allowed"
    big = json.dumps({"messages": [{"role": "user", "content": "x" * 2_000_000}]})
    assert error_of(url, big, status=413)["code"] == "body_too_large"
    text = post(f"{url}/v1/completions", content='{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert text.status_code == 400
    assert "application/json" in text.json()["error"]["message"]


def test_context_drop_leaves_out_the_oldest_messages(client):
    turns = [*QUESTION, {"role": "assistant", "content": "to the sea"}] * 20 + QUESTION
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sft/tiny", messages=turns, max_tokens=8)
    assert caught.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(
        model="sft/tiny", messages=turns, max_tokens=8, extra_body={"context": "drop"}
    )
    assert answer.dropped_messages % 2 == 0 and 0 < answer.dropped_messages < len(turns)
    assert answer.usage.prompt_tokens <= 256 - 8
    assert not hasattr(answer.choices[0], "truncated")


def test_truncated_prompts_are_marked_in_whole_answers_and_streams(url):
    def choices(path: str, **body) -> list[dict]:
        body |= {"max_tokens": 4, "temperature": 0, "context": "drop"}
        whole = post(url + path, json=body).json()
        lines = post(url + path, json=body | {"stream": True}).text.split("\n\n")[:-2]
        told = [json.loads(line.removeprefix("data: ")) for line in lines]
        first = {chunk["choices"][0]["index"]: chunk["choices"][0] for chunk in reversed(told)}
        assert sum("truncated" in chunk["choices"][0] for chunk in told) == str(first).count("truncated")
        assert [c.get("truncated") for c in whole["choices"]] == [first[i].get("truncated") for i in sorted(first)]
        assert whole.get("dropped_messages") == told[0].get("dropped_messages")
        return [whole.get("dropped_messages"), *(choice.get("truncated") for choice in whole["choices"])]

    long, turn = "the sea " * 400, {"role": "assistant", "content": "so"}
    assert choices(CHAT, messages=[{"role": "user", "content": long}], n=2) == [None, True, True]
    assert choices(CHAT, messages=[*QUESTION, turn, {"role": "user", "content": long}]) == [2, True]
    assert choices(CHAT, messages=QUESTION) == [None, None]
    for echo in (False, True):
        assert choices("/v1/completions", prompt=["the sea", long], n=2, echo=echo) == [None, None, None, True, True]


def test_line_separators_do_not_end_a_server_sent_event():
    said = {"text": "a\x85b\u2028c\u2029d\r\n\x0b\x0c\x1c"}
    first, empty = event(said).splitlines()
    assert json.loads(first.removeprefix("data: ")) == said and not empty


def test_sampling_extensions_take_effect(client):
    asked = {"model": "sft/tiny", "messages": QUESTION, "max_tokens": 16, "temperature": 2}
    plain = client.chat.completions.create(**asked | {"temperature": 0}).choices[0].message.content
    for only_the_likeliest in ({"top_k": 1}, {"min_p": 1.0}):
        answer = client.chat.completions.create(**asked, extra_body=only_the_likeliest)
        assert answer.choices[0].message.content == plain
    assert client.chat.completions.create(**asked, top_p=1e-9).choices[0].message.content == plain


def test_penalties_equal_the_engines_and_off_changes_nothing(client, models, tokenizer):
    asked = {"model": "sft/tiny", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    engine = Engine(models[0].loaded.model, [], tokenizer, "float32")
    prompt = fit(QUESTION, tokenizer, 256, 24).ids

    def expected(**penalties: float) -> str:
        tokens = engine.run([Request(prompt, 24, **penalties)])[0].tokens
        return tokenizer.decode([token for token in tokens if token < 291])

    plain = client.chat.completions.create(**asked).choices[0].message.content
    assert plain == expected()
    off = {"frequency_penalty": 0, "presence_penalty": 0.0}
    answer = client.chat.completions.create(**asked, **off, extra_body={"repetition_penalty": 1})
    assert answer.choices[0].message.content == plain
    for penalties in ({"frequency_penalty": 1.5}, {"presence_penalty": 2.0}, {"repetition_penalty": 2.0}):
        answer = client.chat.completions.create(**asked, extra_body=penalties)
        assert answer.choices[0].message.content == expected(**penalties) != plain


def test_nanochats_route_streams_tokens_and_done(url, client):
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 16}
    with open_stream("POST", f"{url}/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    assert events[-1] == {"done": True}
    assert all(event["gpu"] == 0 for event in events[:-1])
    whole = client.chat.completions.create(model="sft/tiny", messages=QUESTION, temperature=0, max_tokens=16)
    assert "".join(event["token"] for event in events[:-1]) == whole.choices[0].message.content
    for change in ({"temperature": 2.1}, {"top_k": 201}, {"max_tokens": 4097}, {"messages": []}):
        error_of(url, body | change, "/chat/completions")
    error_of(url, {"messages": [{"role": "user", "content": "x" * 8001}]}, "/chat/completions")
    assert post(f"{url}/chat/completions", json=body | {"messages": QUESTION * 2}).status_code == 200


def test_health_stats_and_metrics_count_what_happened(url, client):
    client.chat.completions.create(model="sft/tiny", messages=QUESTION, max_tokens=4)
    health, stats = get(f"{url}/health").json(), get(f"{url}/stats").json()
    for path in ("/health", "/v1/models", "/"):
        alone = httpx.head(url + path, verify=False)
        assert alone.status_code == 200 and alone.content == b"" and int(alone.headers["content-length"]) > 0
    assert health["status"] == "ok" and health["ready"] and health["available_workers"] == 2
    assert stats["total_workers"] == 2
    assert stats["workers"][0] == {"gpu_id": 0, "device": "cpu"}
    model = stats["models"]["sft/tiny"]
    assert model["active"] == model["waiting"] == model["faults"] == 0
    assert model["new_tokens"] >= 4
    metrics = get(f"{url}/metrics").text
    assert 'nanochat_requests_total{route="/v1/chat/completions",status="200"}' in metrics
    assert 'nanochat_time_to_first_token_seconds_count{model="sft/tiny"}' in metrics
    assert 'nanochat_queue_length{model="sft/tiny"} 0.0' in metrics


def test_a_harmless_x_request_id_is_kept(url):
    assert get(f"{url}/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = get(f"{url}/health", headers={"X-Request-Id": 'a"}{'}).headers["x-request-id"]
    assert made.startswith("req_")


def test_openapi_lists_no_status_that_is_never_sent(url):
    paths = get(f"{url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/chat/completions"} <= set(paths)
    assert all("422" not in operation["responses"] for path in paths.values() for operation in path.values())
