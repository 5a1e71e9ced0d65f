"""How likely a text is, asked over HTTP as lm-eval's `local-completions` asks it: what our own harness says."""

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from nanochat_pl.engine import Engine
from nanochat_pl.eval.harness_model import HarnessModel
from nanochat_pl.serve.server import ServedModel
from nanochat_pl.tokenizer import Tokenizer
from tests.integration.serving import engine_of, post, running, served, tiny_tokenizer

COMPLETIONS = "/v1/completions"
PAIRS = [
    ("the river runs", " to the sea"),
    ("what is 12 + 30?", " it is 42"),
    ("the rain", " comes back to the hills"),
    ("the river runs to the sea and the rain comes back", " t"),
    ("ünï 🌍", " 🌍 the sea"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> ServedModel:
    return served(tokenizer)


@pytest.fixture(scope="module")
def url(model: ServedModel) -> Iterator[str]:
    with running(model) as url:
        yield url


@pytest.fixture(scope="module")
def ours(model: ServedModel, tokenizer: Tokenizer) -> HarnessModel:
    return HarnessModel(model.loaded.model, tokenizer, Engine(model.loaded.model, [], tokenizer, "float32"))


def asked(*pairs: tuple[str, ...]) -> list[Any]:
    return [SimpleNamespace(args=pair, task_name="t", doc_id=i) for i, pair in enumerate(pairs)]


def parsed(answer: dict, lengths: list[int], extra: int) -> list[tuple[float, bool]]:
    """Read an answer as lm-eval 0.4 does: `extra` tokens at the end are the model's own."""
    found = []
    for choice, length in zip(sorted(answer["choices"], key=lambda choice: choice["index"]), lengths, strict=True):
        end = len(choice["logprobs"]["token_logprobs"]) - extra
        scores = choice["logprobs"]["token_logprobs"][length:end]
        tops = choice["logprobs"]["top_logprobs"][length:end]
        found.append((sum(scores), all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))))
    return found


def close(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> bool:
    sums = [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
    return sums and [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("max_tokens", [1, 0])
@pytest.mark.parametrize("form", ["ids", "text"])
def test_loglikelihoods_over_http_equal_our_own_harness(url, tokenizer, ours, form, max_tokens):
    heads = [[tokenizer.bos_id] * (form == "ids") + tokenizer.encode(context) for context, _ in PAIRS]
    texts = [context + continuation for context, continuation in PAIRS]
    prompts: Any = texts
    if form == "ids":
        prompts = [tokenizer.encode(text, prepend=tokenizer.bos_id) for text in texts]
    body = {"model": "sft/tiny", "prompt": prompts, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
    answer = post(url + COMPLETIONS, json=body | {"max_tokens": max_tokens}).json()
    assert close(parsed(answer, list(map(len, heads)), max_tokens), ours.loglikelihood(asked(*PAIRS)))
    assert answer["usage"]["completion_tokens"] == max_tokens * len(PAIRS)


def test_a_greedy_continuation_is_reported_as_greedy(url, tokenizer, ours):
    body = {"prompt": "the river", "temperature": 0, "max_tokens": 6}
    written = post(url + COMPLETIONS, json=body).json()["choices"][0]["text"]
    ids = tokenizer.encode("the river" + written, prepend=tokenizer.bos_id)
    answer = post(url + COMPLETIONS, json={"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True}).json()
    start = 1 + len(tokenizer.encode("the river"))
    assert close(parsed(answer, [start], 1), ours.loglikelihood(asked(("the river", written))))


def test_a_stop_token_at_once_still_counts_as_a_scored_token(tokenizer, ours):
    ends = served(tokenizer, stop=True)
    engine_of(ends).script = [tokenizer.special_id("<|assistant_end|>")] * 3
    with running(ends) as url:
        text = "".join(PAIRS[0])
        body = {"prompt": text, "max_tokens": 1, "logprobs": 1, "echo": True}
        whole = post(url + COMPLETIONS, json=body).json()
        assert whole["choices"][0]["text"] == text and whole["usage"]["completion_tokens"] == 0
        assert whole["choices"][0]["logprobs"]["tokens"][-1] == "<|assistant_end|>"
        assert close(parsed(whole, [len(tokenizer.encode(PAIRS[0][0]))], 1), ours.loglikelihood(asked(PAIRS[0])))
        plain = post(url + COMPLETIONS, json=body | {"echo": False}).json()["choices"][0]
        assert plain["text"] == "" and plain["logprobs"]["tokens"] == []


@pytest.mark.parametrize("prompt", ["ids", "text"])
def test_an_echo_with_logprobs_is_equal_streamed_and_whole_with_right_offsets(url, tokenizer, prompt):
    text = "the rün to 🌍 the sea"
    sent: Any = [tokenizer.encode(text, prepend=tokenizer.bos_id)] if prompt == "ids" else text
    body = {"prompt": sent, "max_tokens": 5, "temperature": 0, "logprobs": 2, "echo": True, "n": 2}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        whole = client.completions.create(model="sft/tiny", **body)
        streamed: dict[int, dict] = {i: {"text": "", "token_logprobs": [], "text_offset": []} for i in range(2)}
        for chunk in client.completions.create(model="sft/tiny", stream=True, **body):
            for choice in chunk.choices:
                streamed[choice.index]["text"] += choice.text
                for name in ("token_logprobs", "text_offset") if choice.logprobs else ():
                    streamed[choice.index][name] += getattr(choice.logprobs, name)
    for choice in whole.choices:
        told = choice.logprobs
        assert streamed[choice.index]["text"] == choice.text
        assert streamed[choice.index]["token_logprobs"] == told.token_logprobs
        assert streamed[choice.index]["text_offset"] == told.text_offset
        assert choice.text.startswith(text if prompt == "text" else f"<|bos|>{text}")
        assert (told.token_logprobs[0] is None) == (told.top_logprobs[0] is None) == (prompt == "ids")
        assert all(len(top) <= 2 for top in told.top_logprobs if top)
        assert all(
            choice.text[offset:].startswith(token)
            for token, offset in zip(told.tokens, told.text_offset, strict=True)
            if "\ufffd" not in token
        )


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "where there is no echo=true"),
        ({"prompt": "x", "echo": True, "logprobs": 1, "context": "drop"}, "context", "echo and logprobs"),
        ({"prompt": [1] * 257, "echo": True, "max_tokens": 0}, "prompt", "257 tokens; this model's maximum context"),
        ({"prompt": [1] * 256, "echo": True, "max_tokens": 1}, "prompt", "the answer among them"),
    ],
)
def test_prompts_that_cannot_be_scored_are_400(url, body, param, said):
    error = post(url + COMPLETIONS, json=body).json()["error"]
    assert error["param"] == param and said in error["message"]


def test_a_prompt_as_long_as_the_context_can_be_scored_and_echoed(url):
    body = {"prompt": [5] * 256, "echo": True, "max_tokens": 0}
    assert post(url + COMPLETIONS, json=body).json()["choices"][0]["finish_reason"] == "length"
    answer = post(url + COMPLETIONS, json=body | {"logprobs": 0}).json()["choices"][0]
    assert len(answer["logprobs"]["token_logprobs"]) == 256 and answer["logprobs"]["top_logprobs"][1] == {}


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_evals_own_client_gets_the_metrics_of_our_harness(url, tokenizer, ours):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Client(LocalCompletionsAPI):
        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return tokenizer.encode(string, prepend=tokenizer.bos_id)

    class Known:
        eos_token, eos_token_id, bos_token_id, pad_token_id = "<|bos|>", *[tokenizer.bos_id] * 3

    client = Client(
        base_url=url + COMPLETIONS, model="sft/tiny", tokenizer_backend="None", max_length=256, batch_size=3
    )
    client.tokenizer, client.tokenizer_backend, client.tokenized_requests = Known(), "huggingface", True
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    assert close(client.loglikelihood(requests), ours.loglikelihood(asked(*PAIRS)))
