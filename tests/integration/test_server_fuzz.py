"""Whatever is sent, the server answers, and never with a fault of its own."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.integration.serving import get, running, served, tiny_tokenizer

MODEST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "n", "stop", "seed", "stream", "stream_options", "logprobs", "top_logprobs", "context", "echo", "tools", "user",
    "response_format", "logit_bias", "best_of", "functions", "store",
)  # fmt: skip
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]) | JSON},
            optional={
                "content": st.text(max_size=40)
                | JSON
                | st.lists(
                    st.fixed_dictionaries(
                        {"type": st.sampled_from(["text", "python", "python_output", "image_url"]), "text": st.text()}
                    ),
                    max_size=3,
                ),
                "parts": JSON,
                "name": JSON,
            },
        ),
        max_size=4,
    ),
    "prompt": st.text(max_size=40)
    | st.lists(st.integers(-2, 310), max_size=8)
    | st.lists(st.text(max_size=9) | st.lists(st.integers(0, 310), max_size=4), max_size=3),
    "max_tokens": st.integers(0, 12),
    "max_completion_tokens": st.integers(0, 12),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(0, 400),
    "min_p": st.floats(0, 1),
    "n": st.integers(0, 4),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5),
    "seed": st.integers(),
    "stream": st.booleans(),
    "logprobs": st.booleans() | st.integers(0, 6),
    "top_logprobs": st.integers(0, 21),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "context": st.sampled_from(["drop", "refuse", "x"]),
    "echo": st.booleans(),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(served(tiny_tokenizer(), stop=True), max_tokens=16) as url:
        yield url


def bodies(base: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Make requests most of which are nearly right."""
    optional = {name: LIKELY.get(name, JSON) for name in FIELDS if name not in base}
    return st.fixed_dictionaries(base, optional={**optional, "unheard_of": JSON}).filter(lambda body: len(body) < 8)


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert '"error"' not in response.text
        assert response.text.endswith(("data: [DONE]\n\n", 'data: {"done":true}\n\n'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/chat/completions", "messages"),
    ],
)
def test_no_body_is_a_5xx(url, path, needed):
    with httpx.Client(base_url=url, timeout=30, verify=False) as client:

        @MODEST
        @given(
            bodies({needed: LIKELY[needed], "max_tokens": LIKELY["max_tokens"]})
            | st.fixed_dictionaries({needed: LIKELY[needed]}, optional={name: LIKELY[name] for name in ("n", "stop")})
            | st.dictionaries(st.sampled_from(FIELDS), JSON)
            | JSON
        )
        def ask(body: Any) -> None:
            # NaN, infinity and lone surrogates are no JSON, but Python's parser reads them
            check(client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}))

        ask()
        assert client.get("/stats").json()["models"]["sft/tiny"]["active"] == 0


@pytest.mark.slow
def test_no_bytes_are_a_5xx(url):
    with httpx.Client(base_url=url, timeout=30, verify=False) as client:

        @MODEST
        @given(st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "", "multipart/form-data"]))
        def ask(body: bytes, kind: str) -> None:
            check(client.post("/v1/chat/completions", content=body, headers={"Content-Type": kind}))

        ask()


@pytest.mark.slow
def test_nothing_that_openapi_allows_is_a_5xx(url):
    schema = schemathesis.openapi.from_dict(get(f"{url}/openapi.json").json())
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(MODEST, max_examples=25)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            response = case.call(base_url=url, timeout=30)
            case.validate_response(response, checks=[not_a_server_error])

        ask()
