"""What a server holds out: too many, too long, too slow, gone, without a key; and how it ends."""

import asyncio
import contextlib
import gzip
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from starlette.applications import Starlette
from starlette.routing import Mount

from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.serve.server import ServedModel
from nanochat_pl.serve.settings import Limits
from nanochat_pl.tokenizer import Tokenizer
from tests.integration.serving import (
    engine_of,
    get,
    options,
    post,
    running,
    served,
    tiny_model,
    tiny_tokenizer,
    wait_until,
)
from tests.integration.serving import stream as open_stream

BODY = {"messages": [{"role": "user", "content": "where does the river run?"}], "temperature": 0}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer: Tokenizer) -> Iterator[ServedModel]:
    model = served(tokenizer, batch_size=2, queue_limit=2)
    engine_of(model).step_s = 0.02
    yield model
    engine_of(model).step_s = 0.0
    model.worker.close()


def state(url: str, model: str = "sft/tiny") -> dict:
    return get(f"{url}/stats").json()["models"][model]


def test_a_full_queue_is_429_with_retry_after_and_clients_try_again(model):
    with running(model) as url, ThreadPoolExecutor(8) as pool:
        body = BODY | {"max_tokens": 25}
        answers = list(pool.map(lambda _: post(url + CHAT, json=body, timeout=30), range(8)))
        refused = [answer for answer in answers if answer.status_code != 200]
        texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.status_code == 200}
        assert len(texts) == 1
        assert refused and {answer.status_code for answer in refused} == {429}
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
        assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=20) as client:
            ask = client.chat.completions.create
            again = list(pool.map(lambda _: ask(model="sft/tiny", max_tokens=5, **BODY), range(5)))
        assert len(again) == 5  # the client came again by itself


def test_more_answers_than_rows_and_queue_hold_is_400_not_429(tokenizer):
    with running(served(tokenizer, batch_size=2, client_limit=1)) as url:
        assert post(url + CHAT, json=BODY | {"max_tokens": 2, "n": 3}).status_code == 200
        refused = post(url + CHAT, json=BODY | {"max_tokens": 2, "n": 4})
        assert refused.status_code == 400
        assert "at most 3" in refused.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_rows(model, stream):
    with running(model) as url:
        body = BODY | {"max_tokens": 200, "n": 2, "stream": stream}
        if stream:
            with open_stream("POST", url + CHAT, json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                post(url + CHAT, json=body, timeout=0.5)
        wait_until(lambda: state(url)["active"] == state(url)["waiting"] == 0, timeout_s=1)
        assert state(url)["ended"] == {"cancelled": 2}
        assert state(url)["new_tokens"] < 2 * 150
        assert post(url + CHAT, json=BODY | {"max_tokens": 2}).status_code == 200


def test_a_stop_string_frees_the_row(model):
    engine_of(model).step_s = 0.005
    with running(model) as url:
        full = post(url + CHAT, json=BODY | {"max_tokens": 40}).json()["choices"][0]["message"]["content"]
        answer = post(url + CHAT, json=BODY | {"max_tokens": 200, "stop": full[3:5]}).json()
        assert answer["choices"][0]["message"]["content"] == full[: full.index(full[3:5])]
        assert answer["usage"]["completion_tokens"] < 10
        wait_until(lambda: state(url)["active"] == 0)
        assert state(url)["new_tokens"] < 40 + 30


def test_slow_readers_get_the_whole_stream_and_delay_nobody(model):
    engine_of(model).step_s = 0.0
    with running(model) as url:
        slow = []
        for _ in range(2):
            link = socket.create_connection(httpx.URL(url).netloc.decode().split(":"))
            body = json.dumps(BODY | {"max_tokens": 200, "stream": True}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            slow.append(link)
        assert post(url + CHAT, json=BODY | {"max_tokens": 30}).status_code == 200
        wait_until(lambda: state(url)["active"] == 0)
        for link in slow:
            received = b""
            while data := link.recv(65_536):
                received += data
            link.close()
            assert received.count(b'"content":"') > 100
            assert b"[DONE]" in received


@pytest.mark.slow
def test_sixty_four_clients_get_the_answers_that_one_client_gets(tokenizer):
    model = served(tokenizer, batch_size=8, queue_limit=40)
    bodies = [
        {"messages": [{"role": "user", "content": "the rain " * (1 + i)}], "temperature": 0, "max_tokens": 10 + 9 * i}
        for i in range(8)
    ]
    statuses = set()

    def leave(number: int) -> None:
        """Ask, and hang up in the middle of the answer."""
        with open_stream("POST", url + CHAT, json=bodies[number % 8] | {"stream": True}, timeout=60) as answer:
            statuses.add(answer.status_code)
            next(answer.iter_lines())

    def ask(number: int) -> str:
        """Ask, and come again until there is an answer."""
        if number % 3 == 1:
            leave(number)
        while (answer := post(url + CHAT, json=bodies[number % 8], timeout=60)).status_code == 429:
            statuses.add(429)
            time.sleep(0.2)
        statuses.add(answer.status_code)
        return answer.json()["choices"][0]["message"]["content"]

    with running(model) as url, ThreadPoolExecutor(64) as pool:
        alone = [ask(number) for number in range(8)]
        assert list(pool.map(ask, range(128))) == alone * 16
        assert statuses <= {200, 429}
        wait_until(lambda: state(url)["active"] == state(url)["waiting"] == 0)
        assert state(url)["faults"] == 0


def test_a_stalled_reader_is_disconnected_and_logged(tokenizer, caplog):
    model = served(tokenizer, batch_size=16)
    # so many answers do not fit between the two ends of a connection whose reader takes nothing
    with caplog.at_level(logging.INFO, "nanochat_pl.serve.access"), running(model, stalled_client_s=0.3) as url:
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", httpx.URL(url).port))
        ask = {"max_tokens": 230, "n": 16, "stream": True, "logprobs": True, "top_logprobs": 20, "temperature": 1}
        body = json.dumps(BODY | ask).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: "stalled_reader" in caplog.text, timeout_s=60)
        wait_until(lambda: state(url)["active"] == 0)
        link.close()


def test_a_body_that_never_arrives_is_408(model):
    with running(model, stalled_client_s=0.3) as url:
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as link:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            link.sendall(f"{head}\r\n{{".encode())
            assert link.recv(100).startswith(b"HTTP/1.1 408")
        assert get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"POST"])
def test_headers_that_never_end_are_408_however_slowly_they_come(tokenizer, sent):
    ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(served(tokenizer), header_timeout_s=0.4) as url:
        for before in (b"", ask):  # on a new connection, and on one that was answered already
            with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as link:
                link.settimeout(10)
                if before:
                    link.sendall(before)
                    assert link.recv(4000).startswith(b"HTTP/1.1 200")
                    sent = sent or b"G"
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    for i in range(len(sent)):
                        link.sendall(sent[i : i + 1])
                        time.sleep(0.02)
                answer = b""
                while piece := link.recv(4000):
                    answer += piece
                late = answer[answer.index(b"HTTP/1.1") :]  # behind the rest of the answer before
                assert late.startswith(b"HTTP/1.1 408") and b"\r\nconnection: close\r\n" in late
                assert time.monotonic() - began < 4


def test_the_header_timeout_does_not_limit_answers_or_idle_connections(model):
    engine_of(model).step_s = 0.05
    with running(model, header_timeout_s=0.3) as url:
        assert post(url + CHAT, json=BODY | {"max_tokens": 20}).json()["usage"]["completion_tokens"] == 20
        with httpx.Client(verify=False) as client:
            for _ in range(2):
                assert client.get(f"{url}/health").status_code == 200
                time.sleep(0.5)  # an idle connection is not a head that never ends


def test_a_silent_stream_sends_heartbeat_comments(model):
    engine_of(model).step_s = 0.3
    body = BODY | {"max_tokens": 4, "stream": True, "temperature": 0}
    with running(model, heartbeat_s=0.1) as url:
        lines = post(url + CHAT, json=body).text.split("\n\n")
        silent = [line for line in lines if line.startswith(":")]
        assert lines[0].startswith(":") and len(silent) >= 4
        assert lines[-2:] == ["data: [DONE]", ""]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
            answer = client.chat.completions.create(model="sft/tiny", max_tokens=4, stream=True, **BODY)
            assert sum(bool(chunk.choices[0].delta.content) for chunk in answer) >= 3
        engine_of(model).fails = 1
        assert '"code":"engine_fault"' in post(url + CHAT, json=body).text  # after a comment, when 200 was said
    engine_of(model).step_s = 0.0
    with running(model) as url:
        assert ":" not in [line[:1] for line in post(url + CHAT, json=body).text.split("\n\n")]


def test_more_answers_than_max_choices_is_400_naming_prompt_or_n(tokenizer):
    model = served(tokenizer, batch_size=16)
    with running(model) as url:
        body = {"prompt": ["the river"] * 32, "max_tokens": 2}
        assert len(post(f"{url}/v1/completions", json=body).json()["choices"]) == 32
        error = post(f"{url}/v1/completions", json=body | {"prompt": ["the river"] * 33}).json()["error"]
        assert error["param"] == "prompt" and error["message"].startswith("33 answers in one request; ")
        error = post(f"{url}/v1/completions", json=body | {"n": 2}).json()["error"]
        assert error["param"] == "n" and error["message"].startswith("64 answers in one request, 2 to each of 32")


def test_the_request_timeout_is_504_waiting_or_running(model):
    with running(model, request_timeout_s=0.5) as url, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(url + CHAT, json=BODY | {"max_tokens": 200}), range(4)))
        assert [answer.status_code for answer in answers] == [504] * 4
        assert answers[0].json()["error"]["code"] == "request_timeout"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
            began = time.monotonic()
            stream = client.chat.completions.create(model="sft/tiny", max_tokens=200, stream=True, **BODY)
            with pytest.raises(openai.APIError, match="time limit"):
                assert len(list(stream)) > 1
            assert time.monotonic() - began < 10  # and it did not try again
        assert state(url)["active"] == 0


def test_an_engine_fault_is_500_and_the_next_request_is_answered(model):
    engine = engine_of(model)
    with running(model) as url:
        engine.fails = 1
        answer = post(url + CHAT, json=BODY | {"max_tokens": 5})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_fault"
        assert "broke" not in answer.text
        engine.refuses = True
        assert post(url + CHAT, json=BODY | {"max_tokens": 5}).status_code == 400
        engine.refuses = False
        assert post(url + CHAT, json=BODY | {"max_tokens": 5}).status_code == 200
        assert get(f"{url}/health").status_code == 200


def test_without_a_key_all_but_the_page_and_health_is_401(model):
    with running(model, api_keys=("first", "s3cret")) as url:
        for path in ("/v1/models", "/v1/models/x", "/stats", "/metrics", "/openapi.json", "/v1/nowhere"):
            for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}, {"Authorization": "é"}):
                answer = get(url + path, headers={k: v.encode("latin-1") for k, v in headers.items()})
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                fault = "the API key is wrong" if headers else "there is no API key"
                assert answer.json()["error"]["message"].startswith(fault)
        assert post(f"{url}/chat/completions", json=BODY).status_code == 401
        assert get(f"{url}/health").status_code == 200
        assert get(f"{url}/").status_code == 200
        for key in ("first", "s3cret"):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
                assert [model.id for model in client.models.list()] == ["sft/tiny"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="third") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_mounted_application_is_401_without_a_key_too(model):
    from nanochat_pl.serve.app import create_app

    async def scenario() -> None:
        app = create_app([model], Limits(api_keys=("k",)))
        for outer in (Starlette(routes=[Mount("/below", app)]), Starlette(routes=[Mount("/v1/below", app)])):
            place = outer.routes[0].path
            async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://server") as client:
                for path in ("/v1/models", "/stats", "/chat/completions"):
                    assert (await client.get(place + path)).status_code == 401
                key = {"Authorization": "Bearer k"}
                assert (await client.get(f"{place}/v1/models", headers=key)).status_code == 200

    asyncio.run(scenario())


def test_cors_allows_only_the_named_origins(tokenizer):
    asking = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    with running(served(tokenizer)) as url:
        assert "access-control-allow-origin" not in get(f"{url}/health", headers=asking).headers
        assert options(url + CHAT, headers=asking).status_code == 405
    with running(served(tokenizer), cors_origins=("http://page.example",), api_keys=("k",)) as url:
        preflight = options(url + CHAT, headers=asking)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "http://page.example"
        refused = post(url + CHAT, json=BODY, headers=asking)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "http://page.example"
        other = get(f"{url}/health", headers={"Origin": "http://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_host_that_is_not_allowed_is_421(tokenizer):
    with running(served(tokenizer), hosts=("localhost", "127.0.0.1", "[::1]")) as url:
        for host, status in (
            ("evil.example", 421),
            ("evil.example:8000", 421),
            ("127.0.0.1.evil.example", 421),
            ("localhost", 200),
            ("LOCALHOST:8000", 200),
            ("[::1]:8000", 200),
            ("127.0.0.1:1", 200),
            ("localhost.", 200),  # the same name, written to its end
            ("localhost.:8000", 200),
            ("localhost:", 200),
            ("[0:0:0:0:0:0:0:1]", 200),
            ("localhost..", 421),
            ("[::1%1]", 421),
            ("[::ffff:127.0.0.1]", 421),
            ("[::1].evil.example", 421),
            ("[::1]evil:80", 421),
            ("127.0.0.1:80.evil.example", 421),
            ("localhost:evil", 421),
            ("localhost@evil.example", 421),
            ("evil.example/localhost", 421),
        ):
            assert get(f"{url}/v1/models", headers={"Host": host}).status_code == status
            assert get(f"{url}/", headers={"Host": host}).status_code == status
        # no page asks without the header, but checks of health do
        assert plainly(url, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def plainly(url: str, request: bytes) -> bytes:
    """Send bytes as they are, and return all that is answered."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(request)
        return b"".join(iter(lambda: link.recv(65_536), b""))


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\x02\x00\x01", b"no http\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\r\n\r\n"]
)
def test_bytes_that_are_no_http_are_400_as_json(tokenizer, request_):
    with running(served(tokenizer)) as url:
        head, _, body = plainly(url, request_).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head
        assert json.loads(body)["error"]["message"] == "this is no request of HTTP/1.1 or HTTP/1.0"


@pytest.mark.parametrize("depth", [100, 400, 900, 990, 5000])
@pytest.mark.parametrize("field", ["mood", "tools", "stop", "metadata", "messages"])
def test_deeply_nested_bodies_are_400_not_500(tokenizer, depth, field):
    with running(served(tokenizer)) as url:
        for open_, close in (("[", "]"), ('{"a":', "}")):
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, field: 0}
            nested = open_ * depth + "null" + close * depth
            text = json.dumps(body).replace(f'"{field}": 0', f'"{field}": {nested}')
            answer = post(url + CHAT, content=text, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400), answer.text
            if depth > 1000:
                assert answer.json()["error"]["message"].startswith("the body cannot be read as JSON")


def test_the_content_security_policy_allows_only_our_own_files(tokenizer):
    with running(served(tokenizer)) as url:
        page = get(f"{url}/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert page.headers["cache-control"] == "no-cache" and page.headers["etag"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert get(f"{url}/../app.py").status_code == 404
        assert get(f"{url}/%2e%2e/app.py").status_code == 404


def test_a_body_above_the_limit_is_413_before_it_is_read(tokenizer):
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    with running(served(tokenizer), max_body_bytes=10_000) as url:
        headers = {"Content-Type": "application/json"}
        assert post(url + CHAT, content=b" " * 10_001, headers=headers).status_code == 413
        assert post(url + CHAT, content=endless(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("limit", "messages"),
    [
        ({"max_messages": 2}, 3),
        ({"max_message_chars": 3}, 1),
        ({"max_total_chars": 8}, 3),
    ],
)
def test_conversations_above_the_limits_are_400(tokenizer, limit, messages):
    talk = [{"role": ("user", "assistant")[i % 2], "content": "four"} for i in range(messages)]
    with running(served(tokenizer), **limit) as url:
        answer = post(url + CHAT, json={"messages": talk})
        assert answer.status_code == 400
        assert str(*limit.values()) in answer.json()["error"]["message"]
        if "max_total_chars" in limit:
            assert post(f"{url}/v1/completions", json={"prompt": ["four"] * 3}).status_code == 400


@pytest.mark.parametrize(
    "limit", [{"max_messages": 1}, {"max_message_chars": 3}, {"max_total_chars": 8}, {}], ids=lambda limit: str(limit)
)
def test_whatever_is_too_long_is_context_length_exceeded_to_clients(tokenizer, limit):
    talk = [{"role": ("user", "assistant")[i % 2], "content": "the rain " * 40} for i in range(3)]
    with running(served(tokenizer), **limit) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x")
        with client, pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="sft/tiny", messages=talk)
        assert caught.value.code == "context_length_exceeded"  # langchain and pydantic-ai go by it
        # and litellm by one of these phrases
        said = caught.value.body["message"].lower()
        assert "this model's maximum context length is" in said or "exceed context limit" in said
        too_much = json.dumps({"messages": [*talk, {"role": "user", "content": "x" * 2_000_000}]})
        answer = post(url + CHAT, content=too_much, headers={"Content-Type": "application/json"})
        assert (answer.status_code, "exceed context limit" in answer.text) == (413, True)


def test_the_message_that_is_too_long_is_named(tokenizer):
    long = {"role": "user", "content": "x" * 9999}
    short = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    with running(served(tokenizer)) as url:
        error = post(url + CHAT, json={"messages": [*short, long]}).json()["error"]
        assert error["message"].startswith("your message has 9,999 characters, which exceed context limits: this")
        assert error["param"] == "messages[2].content"
        error = post(url + CHAT, json={"messages": [long, short[1], short[0]]}).json()["error"]
        assert error["message"].startswith("message 1 of 3 has 9,999 characters")


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("gzip", "Content-Encoding: gzip"), ("br, gzip", "Content-Encoding: br, gzip"), ("my secret", "an unknown")],
)
def test_a_compressed_body_is_415_naming_the_encoding(model, caplog, encoding, said):
    body = gzip.compress(json.dumps(BODY).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    with caplog.at_level(logging.INFO, "nanochat_pl.serve.access"), running(model) as url:
        answer = post(url + CHAT, content=body, headers=headers)
        plain = post(
            url + CHAT, content=json.dumps(BODY | {"max_tokens": 1}), headers=headers | {"Content-Encoding": "identity"}
        )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_content_encoding")
    assert f"is sent with {said}" in error["message"] and "send it uncompressed" in error["message"]
    assert answer.headers["accept-encoding"] == "identity" and plain.status_code == 200
    assert "secret" not in "".join(record.getMessage() for record in caplog.records if "nanochat_pl" in record.name)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ],
)
def test_images_and_audio_are_400_naming_the_part(tokenizer, part):
    talk = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, part]}]
    with running(served(tokenizer)) as url:
        answer = post(url + CHAT, json={"messages": talk})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert "only text parts are accepted" in error["message"]
        assert part["type"] in error["message"]
        assert error["param"] == "messages[0].content[1].type"


def test_access_logs_hold_counts_and_never_contents(model, caplog):
    engine_of(model).step_s = 0.0
    with caplog.at_level(logging.INFO, "nanochat_pl.serve.access"), running(model) as url:
        answer = post(url + CHAT, json=BODY | {"max_tokens": 7}, headers={"X-Request-Id": "mine"})
        get(f"{url}/v1/a-secret-path")
        get(f"{url}/?q=secret")
    # What the client that asks here logs of its own addresses is not the server's.
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("nanochat_pl")]
    chat, lost, page = map(json.loads, lines)
    assert (chat["request_id"], chat["route"], chat["status"], chat["model"]) == ("mine", CHAT, 200, "sft/tiny")
    assert chat["completion_tokens"] == 7 and chat["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert 0 < chat["first_token_s"] <= chat["seconds"]
    assert (lost["route"], lost["status"]) == ("other", 404)
    assert (page["route"], page["status"]) == ("page", 200)
    assert "river" not in "".join(lines) and "secret" not in "".join(lines)


def test_the_access_log_of_a_refused_request_has_error_param_and_reason(model, caplog):
    with caplog.at_level(logging.INFO, "nanochat_pl.serve.access"), running(model, hosts=("127.0.0.1",)) as url:
        post(url + CHAT, json=BODY | {"tools": [{"secret": 1}]})
        post(url + CHAT, json=BODY | {"stop": "", "messages": [{"role": "user", "content": "secret"}]})
        post(url + CHAT, json={"messages": [{"role": "user", "content": "secret " * 1000}]})
        post(url + CHAT, json={"messages": [{"role": "user", "content": [{"type": "text", "text": 1, "secret": {}}]}]})
        get(f"{url}/health", headers={"Host": "evil"})
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("nanochat_pl")]
    lines = list(map(json.loads, messages))
    assert [line["status"] for line in lines] == [400, 400, 400, 400, 421]
    assert [line["param"] for line in lines[:4]] == ["tools", "stop", "messages", "messages[0].content[0].text"]
    assert lines[0]["reason"] == "tools is not supported by this server; leave it out"
    assert lines[0]["error"] == "unsupported_parameter" and lines[2]["error"] == "context_length_exceeded"
    assert lines[4]["error"] == "wrong_host"
    assert "secret" not in "".join(messages)


def test_a_draining_server_finishes_answers_and_refuses_with_503(model):
    from nanochat_pl.serve.app import create_app

    async def scenario() -> None:
        app = create_app([model])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            under_way = asyncio.ensure_future(client.post(CHAT, json=BODY | {"max_tokens": 40}, timeout=30))
            while not model.worker.state().active:
                await asyncio.sleep(0.01)
            app.state.server.drain(30)
            late = await client.post(CHAT, json=BODY)
            assert late.status_code == 503
            assert late.json()["error"]["code"] == "shutting_down"
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            assert (await under_way).json()["usage"]["completion_tokens"] == 40

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(tokenizer, sequence_len=4096)
    file = tmp_path_factory.mktemp("outputs") / "sft" / "tiny" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    whose = checkpoint_metadata("sft", model.config, {}, tokenizer)
    torch.save(
        {"state_dict": state, "nanochat_pl": whose, "global_step": 3, "pytorch-lightning_version": "2.6.4"}, file
    )
    return file.parent.parent


def command(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "nanochat_pl.cli.main", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("grace", ["30", "1"])
def test_sigterm_ends_the_command_after_its_answers_or_the_grace_period(checkpoint, grace):
    with command(
        f"tutor={checkpoint}", str(checkpoint), "--port", "0", "--api-key-env", "KEY", "--grace", grace, KEY="k"
    ) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[0].startswith("tutor: ") and lines[1].startswith("sft/tiny: ")
        assert "only this machine" in lines[3]
        url = lines[2].split()[1].rstrip("/")
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tutor", "sft/tiny"]
            max_tokens = 40 if grace == "30" else 2000
            stream = client.chat.completions.create(
                model="tutor",
                max_tokens=max_tokens,
                stream=True,
                temperature=0,
                messages=BODY["messages"],
                logprobs=True,
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            if grace == "30":
                tokens = [t for chunk in stream for c in chunk.choices if c.logprobs for t in c.logprobs.content]
                assert 39 <= len(tokens) <= 40
            else:
                with pytest.raises(openai.APIError, match="shutting down"):
                    list(stream)
        assert process.wait(30) == 0
        errors = process.stderr.read()
    assert "Traceback" not in errors
    logged = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert logged[-1]["route"] == CHAT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        ([], "CKPT"),
        (["{run}", "--api-key-env", "NOT_SET_AT_ALL"], "NOT_SET_AT_ALL"),
        (["{run}", "--port", "70000"], "--port"),
        (["{run}", "--host", "203.0.113.1"], "cannot listen"),
        (["{run}", "--batch-size", "0"], "--batch-size 0 must"),
        (["{run}", "--queue", "-1"], "--queue -1 must"),
        (["{run}", "--queue-per-client", "0"], "--queue-per-client 0 must"),
        (["{run}", "--max-tokens", "-5"], "--max-tokens -5 must"),
        (["{run}", "--max-total-chars", "0"], "--max-total-chars 0 must"),
        (["{run}", "--request-timeout", "0"], "--request-timeout 0 must"),
        (["{run}", "--request-timeout", "nan"], "--request-timeout nan must"),
        (["{run}", "--cors", "example.com"], "no scheme, and an origin has one; write https://example.com"),
        (["{run}", "--cors", "https://Example.com/"], "write https://example.com"),
        (["{run}", "--cors", "https://"], "names no host"),
        (["{run}", "--grace", "inf"], "--grace"),
        (["{run}", "--header-timeout", "0"], "--header-timeout 0 must"),
        (["{run}", "--max-choices", "0"], "--max-choices 0 must"),
        (["{run}", "--allow-host", "https://Chat.example.com:8/"], "write chat.example.com, or *"),
        (["{run}", "--allow-host", "a b"], "--allow-host a b is no name"),
        (["{run}", "--grace", "-1"], "--grace"),
        (["{run}", "{run}"], "two models"),
        (["a={run}", "a={run}/last"], "two models would be called a"),
        (["{run}", "sft/tiny={run}"], "two models would be called sft/tiny"),
        (["={run}"], "name"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_naming_the_option(checkpoint, capsys, arguments, message, monkeypatch):
    from nanochat_pl.cli.serve import main

    monkeypatch.setattr("nanochat_pl.checkpoint.load_model", lambda *_: pytest.fail("a model was loaded"))

    assert main(["--port", "0", *(text.replace("{run}", str(checkpoint)) for text in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--queue", "-1"], ["--cors", "example.com"], ["{run}/last"]])
def test_a_wrong_option_is_refused_before_torch_is_loaded(checkpoint, wrong):
    code = "import sys; from nanochat_pl.cli.serve import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    arguments = [str(checkpoint), *(text.replace("{run}", str(checkpoint)) for text in wrong)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--port", "0"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["2", "False"], done.stderr


@pytest.mark.parametrize("origin", ["*", "https://example.com", "http://localhost:3000", "http://[::1]:8080"])
def test_origins_as_browsers_send_them_are_accepted(origin):
    from nanochat_pl.cli.serve import _check_origin

    _check_origin(origin)


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ([], {"localhost", "127.0.0.1", "[::1]"}),
        (["--trust-proxy", "127.0.0.1"], {"localhost", "127.0.0.1", "[::1]"}),
        (["--allow-host", "chat.example.com"], {"localhost", "127.0.0.1", "[::1]", "chat.example.com"}),
        (["--allow-host", "*"], set()),
        (["--host", "0.0.0.0"], set()),
        (["--host", "0.0.0.0", "--allow-host", "me"], {"localhost", "127.0.0.1", "[::1]", "me", "0.0.0.0"}),
    ],
)
def test_allowed_hosts_follow_host_and_allow_host_not_trust_proxy(arguments, called):
    from nanochat_pl.cli.serve import _allowed_hosts, _parser

    options = _parser().parse_args(["model", *arguments])
    with socket.create_server((options.host, 0)) as listening:
        assert set(_allowed_hosts(options, listening)) == called


@pytest.mark.parametrize(("host", "page"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost")])
def test_the_printed_address_can_be_opened(capsys, host, page):
    from nanochat_pl.cli.serve import _print_addresses

    with socket.create_server((host, 0)) as listening:
        _print_addresses(listening, True)
        port = listening.getsockname()[1]
    out = capsys.readouterr().out
    assert out.startswith(f"page: http://{page}:{port}/ ")
    assert (f"for others: http://<this machine's name or address>:{port}/" in out) == (host == "0.0.0.0")


def test_help_shows_every_default(capsys):
    from nanochat_pl.cli.serve import main

    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for default in ("refuse", "auto", "120", "20"):
        assert f"(default: {default})" in said
