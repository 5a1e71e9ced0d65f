"""The engine against recorded generation of nanochat (2025-11): greedy tokens, scripted tools, what sampling may give.

Where the two differ on purpose, the difference is written down here:

- sampled tokens: there one random generator serves all rows, here each row has its own; so only what a row can draw is
  compared, not what it drew;
- the first sampled token: there drawn once for all samples of a prompt, here by each sample;
- rows that ended: there computed until the last one ends, here they leave (what they yield is the same);
- `10/2`: there printed as 5.0, here as 5 (`test_calculator_parity.py`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nanochat_pl.engine import Completion, Engine, Request
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer
from tests.parity.test_model_parity import load
from tests.unit.test_engine import ScriptedEngine

STOPS = ("<|assistant_end|>", "<|bos|>")


@pytest.fixture(scope="module")
def cases(reference_root: Path) -> list[dict]:
    return json.loads((reference_root / "generate.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(reference_root: Path) -> Tokenizer:
    return Tokenizer.load(reference_root / "base/tokenizer")


@pytest.fixture(scope="module")
def model(reference_root: Path) -> GPT:
    return load(reference_root, "main")


def engine_of(model: GPT, tokenizer: Tokenizer) -> Engine:
    return Engine(model, [tokenizer.special_id(name) for name in STOPS], tokenizer=tokenizer, dtype="float32")


def split(case: dict, record: dict) -> list[tuple[list[int], list[int]]]:
    """New tokens and mask of each recorded row, which begin with the prompt there."""
    n = len(case["prompt_ids"])
    assert all(row[:n] == case["prompt_ids"] and not any(mask[:n]) for row, mask in zip(record["ids"], record["mask"]))
    return [(row[n:], mask[n:]) for row, mask in zip(record["ids"], record["mask"], strict=True)]


def yielded(completions: Sequence[Completion]) -> list[tuple[list[int], list[int]]]:
    return [(completion.tokens, completion.mask) for completion in completions]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_greedy_tokens_and_masks_equal_the_recorded_for_all_prompts_together(cases, model, tokenizer, batch_size):
    prompts = [case["prompt_ids"] for case in cases]
    length = max(len(case["naive_greedy"]) for case in cases)
    new = Engine(model, (), dtype="float32").generate(prompts, length, batch_size=batch_size)
    assert [completion.tokens for completion in new] == [case["naive_greedy"] for case in cases]
    ours = yielded(engine_of(model, tokenizer).generate(prompts, length, batch_size=batch_size))
    assert ours == [split(case, case["engine_greedy"])[0] for case in cases]


def test_greedy_samples_of_a_model_with_shared_heads_equal_the_recorded(reference_root, cases, tokenizer):
    engine = engine_of(load(reference_root, "gqa"), tokenizer)
    recorded = [split(case, case["gqa_engine_greedy_2"]) for case in cases]
    length = max(len(tokens) for rows in recorded for tokens, _ in rows)
    ours = yielded(engine.generate([case["prompt_ids"] for case in cases], length, num_samples=2))
    assert ours == [row for rows in recorded for row in rows]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("key", "samples", "settings"),
    [
        ("engine_3_samples_t1_k10_seed5", 3, {"temperature": 1.0, "top_k": 10}),
        ("engine_2_samples_t0.7_seed9", 2, {"temperature": 0.7}),
    ],
)
def test_sampled_tokens_have_the_recorded_support_and_likelihood(cases, model, tokenizer, key, samples, settings):
    """Their tokens and ours lie in the same top k and are about equally likely."""
    recorded = [[tokens for tokens, _ in split(case, case[key])] for case in cases]
    length = max(len(tokens) for rows in recorded for tokens in rows)
    prompts = [case["prompt_ids"] for case in cases]
    ours = engine_of(model, tokenizer).generate(prompts, length, num_samples=4 * samples, seed=1, **settings)
    theirs_likely, ours_likely = [], []
    for i, prompt in enumerate(prompts):
        mine = [completion.tokens for completion in ours[i * 4 * samples : (i + 1) * 4 * samples]]
        for likely, rows in ((theirs_likely, recorded[i]), (ours_likely, mine)):
            for row in rows:
                logits = model(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1] / settings["temperature"]
                for token, of_token in zip(row, logits, strict=True):
                    allowed = of_token.topk(settings.get("top_k", len(of_token)))
                    assert token in allowed.indices
                    likely.append(float(of_token[token] - allowed.values.logsumexp(0)))
        firsts = {row[0] for row in recorded[i]}
        assert len(firsts) == 1, "the original draws the first token once"
    theirs, mine = torch.tensor(theirs_likely), torch.tensor(ours_likely)
    error = (theirs.var() / len(theirs) + mine.var() / len(mine)).sqrt()
    assert abs(theirs.mean() - mine.mean()) < 4 * error


def test_each_sample_draws_its_own_first_token_unlike_the_original(cases, model, tokenizer):
    [case, *_] = cases
    ours = engine_of(model, tokenizer).generate([case["prompt_ids"]], 1, temperature=1.0, top_k=10, num_samples=30)
    assert len({completion.tokens[0] for completion in ours if completion.tokens}) > 3


def scripted_cases(reference_root: Path) -> list[dict]:
    return json.loads((reference_root / "engine_scripts.json").read_text())


def test_scripted_rows_yield_the_recorded_tokens_and_masks(reference_root, model, tokenizer):
    """Each case alone, then all rows of all cases in one batch."""
    cases = scripted_cases(reference_root)
    assert {"tool_ok", "tool_bad_expr", "tool_unclosed_restart"} <= {case["name"] for case in cases}
    requests, scripts, expected = [], {}, []
    engine = ScriptedEngine(model, [tokenizer.special_id(name) for name in STOPS], tokenizer=tokenizer, dtype="float32")
    for case in cases:
        mine = [Request(case["prompt_ids"], case["max_tokens"]) for _ in case["scripted_rows"]]
        engine.scripts = dict(enumerate(case["scripted_rows"]))
        recorded = split(case, {"ids": case["batch_ids"], "mask": case["batch_masks"]})
        assert yielded(engine.run(mine)) == recorded, case["name"]
        scripts |= {len(requests) + i: row for i, row in enumerate(case["scripted_rows"])}
        requests += mine
        expected += recorded
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
    assert order == list(range(len(requests))), "scripts go by the order of submission"
    engine.scripts = scripts
    completions = engine.run(requests)
    assert yielded(completions) == expected
    names = [case["name"] for case in cases for _ in case["scripted_rows"]]
    errors = {name: completion.tool_errors for name, completion in zip(names, completions, strict=True)}
    assert (errors["tool_bad_expr"], errors["tool_empty"], errors["tool_ok"]) == (1, 0, 0)


def test_scripted_rows_end_by_the_recorded_token(reference_root, model, tokenizer):
    engine = ScriptedEngine(model, [tokenizer.special_id(name) for name in STOPS], tokenizer=tokenizer, dtype="float32")
    for case in scripted_cases(reference_root):
        engine.scripts = dict(enumerate(case["scripted_rows"]))
        requests = [Request(case["prompt_ids"], case["max_tokens"]) for _ in case["scripted_rows"]]
        for row, completion in enumerate(engine.run(requests)):
            column = [tokens[row] for tokens in case["columns"]]
            following = column[len(completion.tokens)] if len(completion.tokens) < len(column) else None
            assert completion.stop_token == following
