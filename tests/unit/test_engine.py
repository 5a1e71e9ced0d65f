"""Laws of generation: what a request yields is its own affair."""

import copy
import math
import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from nanochat_pl import decoding
from nanochat_pl.decoding import DecodingSession
from nanochat_pl.engine import Completion, Engine, Request
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [4], [18, 19, 20, 21, 22]]
START, END, OUTPUT_START, OUTPUT_END, STOP = 50, 51, 52, 53, 54


class Characters:
    """A tokenizer of single characters, digits and signs at ids 30 and up."""

    letters = "0123456789+-*/(). "
    special = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")

    def special_id(self, name: str) -> int:
        return START + self.special.index(name)

    def encode(self, text: str) -> list[int]:
        return [30 + self.letters.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[i - 30] if 30 <= i < 48 else "?" for i in ids)


def script(text: str) -> list[int]:
    """Ids of a text in which `[` and `]` stand for python start and end, and `$` for the stop token."""
    return [{"[": START, "]": END, "$": STOP}.get(c) or Characters().encode(c)[0] for c in text]


class ScriptedSession(DecodingSession):
    """Requests that have a script want its token at each place, whatever the model says; the others are as ever."""

    def __init__(self, session: DecodingSession, scripts: Mapping[int, Sequence[int]]):
        vars(self).update(vars(session))
        self.scripts = scripts

    def _choose(self, rows, draws, logits: Tensor, events) -> None:
        logits = logits.clone()
        for place, row in enumerate(rows):
            if row.number in self.scripts:
                logits[place] = -10.0
                logits[place, self.scripts[row.number][len(row.completion.tokens)]] = 10.0
        super()._choose(rows, draws, logits, events)


class ScriptedEngine(Engine):
    """An engine whose n-th submitted request wants the tokens of scripts[n]."""

    scripts: Mapping[int, Sequence[int]] = {}

    def session(self, batch_size: int = 32) -> DecodingSession:
        return ScriptedSession(super().session(batch_size), self.scripts)


def random_model(seed: int, scale: float, **shape: int) -> GPT:
    settings = {"sequence_len": 24, "vocab_size": 61, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32} | shape
    model = GPT(GPTConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(3, 0.3)


def engine_of(model: GPT, stop_ids=(), **settings) -> Engine:
    return Engine(model, stop_ids, dtype="float32", **settings)


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


@torch.inference_mode()
def naive_greedy(model: GPT, prompt: list[int], max_new_tokens: int, stop_ids: set[int]) -> list[int]:
    """Read the whole row anew for every token."""
    new: list[int] = []
    while len(new) < max_new_tokens and len(prompt) + len(new) < model.config.sequence_len:
        token = int(model(torch.tensor([prompt + new]))[0, -1].argmax())
        if token in stop_ids:
            break
        new.append(token)
    return new


def common_stop(model: GPT) -> set[int]:
    """A token that some prompts reach early and others late or never."""
    rows = [naive_greedy(model, prompt, 12, set()) for prompt in PROMPTS]
    return {rows[0][4]}


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.5}],
    ids=str,
)
def test_logits_that_are_not_finite_are_an_error_and_no_token_is_drawn(settings: dict[str, float]):
    broken = random_model(5, 0.3)
    with torch.no_grad():
        broken.lm_head.weight[7, 3] = math.nan
    with pytest.raises(ValueError, match="values that are not finite"):
        engine_of(broken).run([Request((1, 2), 4, **settings), Request((3,), 4, **settings)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values that are not finite"):
        engine_of(broken).run([Request((1, 2), 1, prompt_logprobs=1)])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_greedy_equals_reading_each_row_anew(model, batch_size):
    stop_ids = common_stop(model)
    expected = [naive_greedy(model, prompt, 12, stop_ids) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1, "rows must end at different times for this test to mean anything"
    assert tokens(engine_of(model, stop_ids).generate(PROMPTS, 12, batch_size=batch_size)) == expected


@torch.inference_mode()
@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_the_logits_of_every_step_equal_reading_the_row_anew_whatever_the_order_of_finishing(
    monkeypatch, batch_size, n_kv_head
):
    model, chance = random_model(5, 0.2, n_kv_head=n_kv_head), random.Random(batch_size)
    prompts = [[chance.randrange(61) for _ in range(chance.randint(1, 15))] for _ in range(20)]
    seen: dict[tuple[int, ...], Tensor] = {}
    choose = DecodingSession._choose

    def record(session, rows, draws, logits, events):
        for row, of_row in zip(rows, logits, strict=True):
            seen[(*row.prompt, *row.completion.tokens)] = of_row
        choose(session, rows, draws, logits, events)

    monkeypatch.setattr(DecodingSession, "_choose", record)
    requests = [Request(p, chance.randint(1, 12), temperature=1.0, seed=i) for i, p in enumerate(prompts)]
    completions = engine_of(model).run(requests, batch_size)
    assert len(seen) >= sum(len(completion.tokens) for completion in completions) * 0.9
    for row, logits in seen.items():
        torch.testing.assert_close(logits, model(torch.tensor([row]))[0, -1], atol=1e-4, rtol=0)


def test_greedy_tokens_do_not_depend_on_the_neighbours_but_for_ties():
    model, chance, ties = random_model(7, 0.15, sequence_len=64), random.Random(1), 0
    prompts = [[chance.randrange(61) for _ in range(chance.randint(1, 30))] for _ in range(120)]
    engine = engine_of(model)
    alone = tokens([engine.generate([prompt], 12)[0] for prompt in prompts])
    for prompt, one, other in zip(prompts, alone, tokens(engine.generate(prompts, 12, batch_size=50)), strict=True):
        if one != other:
            same = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
            with torch.inference_mode():
                first, second = model(torch.tensor([prompt + one[:same]]))[0, -1].topk(2).values.tolist()
            assert first - second < 1e-3
            ties += 1
    assert ties <= 0.01 * sum(map(len, alone))


SAMPLED = {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "min_p": 0.01}


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("settings", [SAMPLED, {"temperature": 1.3}], ids=["restricted", "free"])
def test_a_sample_depends_on_prompt_settings_and_seed_only(model, batch_size, settings):
    engine = engine_of(model, common_stop(model))
    together = engine.generate(PROMPTS, 10, seed=5, num_samples=3, **settings)
    assert engine.generate(PROMPTS, 10, seed=5, num_samples=3, batch_size=batch_size, **settings) == together
    assert engine.generate(PROMPTS[:2], 10, seed=5, num_samples=3, **settings) == together[:6]
    assert engine.generate(PROMPTS, 10, seed=5, **settings) == together[::3]
    requests = [Request(p, 10, seed=f"5/{i}/{j}", **settings) for i, p in enumerate(PROMPTS) for j in range(3)]
    order = random.Random(0).sample(range(len(requests)), len(requests))
    shuffled = engine.run([requests[i] for i in order], batch_size)
    assert shuffled == [together[i] for i in order]
    assert engine.generate(PROMPTS, 10, seed=6, num_samples=3, **settings) != together


def test_samples_of_one_prompt_equal_separate_prompts(model):
    requests = [Request([4, 5], 8, temperature=1.0, seed=seed) for seed in range(12)]
    engine = engine_of(model)
    assert engine.run(requests) == [engine.run([request])[0] for request in requests]


@pytest.mark.parametrize("batch_size", [3, 5, 64])
def test_a_prompt_is_read_once_whatever_the_number_of_its_samples(model, monkeypatch, batch_size):
    read: list[tuple[int, ...]] = []
    original = DecodingSession._read_prompts
    monkeypatch.setattr(
        DecodingSession, "_read_prompts", lambda self, prompts, *a: read.extend(prompts) or original(self, prompts, *a)
    )
    engine_of(model).generate(PROMPTS, 4, temperature=1.0, num_samples=8, batch_size=batch_size)
    assert sorted(read) == sorted({tuple(prompt) for prompt in PROMPTS})


def test_each_sample_draws_its_own_first_token(model):
    rows = tokens(engine_of(model).generate([[4]], 10, temperature=1.0, num_samples=16))
    assert len({tuple(row) for row in rows}) == 16
    assert len({row[0] for row in rows}) > 3


def test_every_request_has_settings_of_its_own(model):
    stop = naive_greedy(model, [4], 6, set())[3]
    requests = [
        Request([4], 6),
        Request([4], 3),
        Request([4], 6, stop_ids={stop}),
        Request([4], 6, temperature=2.0, seed=1),
        Request([4], 6, temperature=2.0, top_k=1, seed=1),
        Request([4], 6, temperature=2.0, top_p=1e-6, seed="a"),
        Request([4], 6, temperature=2.0, min_p=1.0, seed=2),
        Request([4], 0),
    ]
    greedy, short, stopped, free, *likeliest, none = engine_of(model).run(requests)
    assert greedy.tokens == naive_greedy(model, [4], 6, set())
    assert (short.tokens, short.stop_token) == (greedy.tokens[:3], None)
    assert (stopped.tokens, stopped.stop_token) == (greedy.tokens[: greedy.tokens.index(stop)], stop)
    assert free.tokens != greedy.tokens
    assert all(completion == greedy for completion in likeliest)
    assert none == Completion()


def test_results_are_new_tokens_without_the_stop_token(model):
    [first] = tokens(engine_of(model).generate([PROMPTS[0]], 6))
    stop = first[3]
    [completion] = engine_of(model, {stop}).generate([PROMPTS[0]], 6)
    new = first[: first.index(stop)]
    assert completion == Completion(new, [1] * len(new), stop)


def test_max_new_tokens_is_respected(model):
    for n in (0, 1, 5):
        assert [len(row) for row in tokens(engine_of(model).generate(PROMPTS, n))] == [n] * len(PROMPTS)
    assert engine_of(model).generate([], 5) == []


def test_a_row_stops_when_the_context_is_full(model):
    rows = tokens(engine_of(model).generate([[1] * 23, [1] * 20, [1]], 100))
    assert [len(row) for row in rows] == [1, 4, 23]


def test_on_token_is_called_for_every_new_token_and_false_ends_the_request(model):
    engine, heard = engine_of(model, common_stop(model)), {i: [] for i in range(len(PROMPTS))}
    whole = engine.generate(PROMPTS, 8)
    assert engine.generate(PROMPTS, 8, batch_size=3, on_token=lambda i, *what: heard[i].append(what)) == whole
    assert [[token for token, _ in heard[i]] for i in heard] == tokens(whole)
    count = dict.fromkeys(heard, 0)

    def enough(i: int, token: int, sampled: bool) -> bool:
        count[i] += 1
        return i % 2 == 0 or count[i] < 3

    cut = engine.generate(PROMPTS, 8, batch_size=3, on_token=enough)
    assert cut[::2] == whole[::2]
    assert tokens(cut[1::2]) == [row[:3] for row in tokens(whole[1::2])]
    assert all(completion.stop_token is None for completion in cut[1::2] if len(completion.tokens) == 3)


def test_requests_may_come_and_go_while_others_run(model):
    engine = engine_of(model)
    requests = [Request(p, 9, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]
    session, completions, streamed = engine.session(batch_size=3), {}, {i: [] for i in range(len(PROMPTS))}
    for turn in range(100):
        if turn < len(requests):
            assert session.submit(requests[turn]) == turn
        events = session.step()
        assert len({event.id for event in events}) == len(events) <= 3
        for event in events:
            streamed[event.id].append(event.token)
            if event.completion is not None:
                completions[event.id] = event.completion
        if turn == 4:
            cancelled = session.cancel(1)
            assert session.cancel(1) is None
        if not session.num_unfinished:
            break
    else:
        pytest.fail("the session never ended")
    expected = engine.run(requests)
    assert cancelled is not None
    assert cancelled.tokens == streamed.pop(1) == expected[1].tokens[: len(cancelled.tokens)]
    assert 0 < len(cancelled.tokens) < 9
    assert completions == {i: expected[i] for i in streamed}
    assert list(streamed.values()) == [expected[i].tokens for i in streamed]
    assert session.step() == []


def test_a_waiting_request_can_be_cancelled(model):
    session = engine_of(model).session(batch_size=1)
    for prompt in PROMPTS[:3]:
        session.submit(Request(prompt, 2))
    session.step()
    assert session.cancel(1) == Completion()
    ended = [event.id for _ in range(5) for event in session.step() if event.completion]
    assert ended == [0, 2]


def run_scripts(model: GPT, *scripts: str, max_new_tokens: int = 20) -> list[Completion]:
    engine = ScriptedEngine(model, {STOP}, tokenizer=Characters(), dtype="float32")
    engine.scripts = {i: script(text) for i, text in enumerate(scripts)}
    return engine.run([Request([7], max_new_tokens, seed=i) for i in range(len(scripts))])


@pytest.mark.parametrize(
    ("text", "forced", "calls", "errors"),
    [
        ("1[12*7]....2$", {7: "84"}, 1, 0),
        ("[1/0]3$", {}, 1, 1),
        ("[]3$", {}, 0, 0),
        ("1]3$", {}, 0, 0),
        ("[9[3+4]...5$", {7: "7"}, 1, 0),
        ("[1+1]...[2+2]...$", {5: "2", 13: "4"}, 2, 0),
        ("[1+1$", {}, 0, 0),
    ],
)
def test_the_calculator_answers_between_the_marks(model, text, forced, calls, errors):
    [completion] = run_scripts(model, text)
    expected, mask = script(text)[:-1], [1] * (len(text) - 1)
    for begin, result in forced.items():
        answer = [OUTPUT_START, *Characters().encode(result), OUTPUT_END]
        expected[begin : begin + len(answer)] = answer
        mask[begin : begin + len(answer)] = [0] * len(answer)
    assert completion == Completion(expected, mask, STOP, calls, errors)


def test_forced_tokens_count_against_the_limit(model):
    for limit in range(1, 12):
        [completion] = run_scripts(model, "[12*7]....123456789", max_new_tokens=limit)
        assert len(completion.tokens) == len(completion.mask) == limit
        assert completion.mask == ([1] * 6 + [0] * 4 + [1] * 9)[:limit]


def test_without_a_tokenizer_tool_tokens_are_ordinary(model):
    engine = ScriptedEngine(model, {STOP}, dtype="float32")
    engine.scripts = {0: script("[1+1]222$")}
    [completion] = engine.run([Request([7], 20)])
    assert completion == Completion(script("[1+1]222"), [1] * 8, STOP)


def test_a_row_that_uses_a_tool_does_not_disturb_its_neighbours(model):
    engine = ScriptedEngine(model, {STOP}, tokenizer=Characters(), dtype="float32")
    requests = [Request([7 + i], 15, temperature=1.0, seed=i, stop_ids=()) for i in range(5)]
    plain = engine.run(requests)
    engine.scripts = {2: script("1[2*3]...4$..........")}
    used = engine.run(requests)
    assert used[2].tool_calls == 1
    assert [used[i] for i in (0, 1, 3, 4)] == [plain[i] for i in (0, 1, 3, 4)]


def test_a_forced_token_is_read_like_any_other(model):
    engine = ScriptedEngine(model, {STOP}, tokenizer=Characters(), dtype="float32")
    opening = script("[2*3]...")
    opening[5:8] = [OUTPUT_START, 36, OUTPUT_END]
    engine.scripts = {0: script("[2*3]...")}
    assert engine.run([Request([7], 8)])[0].tokens == opening
    [after] = engine_of(model).run([Request([7, *opening], 6)])

    class Ends(ScriptedSession):
        def _choose(self, rows, draws, logits, events):
            if len(rows[0].completion.tokens) >= 8:
                self.scripts = {}
            super()._choose(rows, draws, logits, events)

    session = Ends(engine_of(model, tokenizer=Characters()).session(), engine.scripts)
    session.submit(Request([7], 14))
    events = [event for _ in range(14) for event in session.step()]
    assert [event.token for event in events] == opening + after.tokens
    assert [event.sampled for event in events] == [True] * 5 + [False] * 3 + [True] * 6


def test_the_engine_follows_the_weights():
    model = random_model(3, 0.3)
    engine = engine_of(model)
    before = tokens(engine.generate(PROMPTS, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    assert tokens(engine.generate(PROMPTS, 6)) == tokens(engine_of(model).generate(PROMPTS, 6)) != before
    for parameter in model.parameters():
        parameter.data.mul_(-2)
    engine.refresh()
    assert tokens(engine.generate(PROMPTS, 6)) == before


def test_bfloat16_gives_mostly_the_same_greedy_tokens():
    model = random_model(11, 0.3, sequence_len=64)
    prompts = [[i, 2 * i, 3 * i] for i in range(20)]
    exact = engine_of(model).generate(prompts, 1)
    rounded = Engine(model, (), dtype="bfloat16").generate(prompts, 1)
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) >= 17


def test_the_dtype_is_checked_and_auto_is_one_of_them(model):
    assert Engine(model, ()).dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"engine\.dtype='half'.*auto, float32 or bfloat16"):
        Engine(model, (), dtype="half")


def test_many_long_prompts_are_read_in_portions(model, monkeypatch):
    monkeypatch.setitem(decoding.PREFILL_TOKENS, "cpu", 10)
    expected = [naive_greedy(model, prompt, 5, set()) for prompt in PROMPTS]
    assert tokens(engine_of(model).generate(PROMPTS, 5)) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [{}, SAMPLED, {"temperature": 1.0, "top_p": 0.9}], ids=["greedy", "all", "top-p"])
def test_a_gpu_gives_what_the_cpu_gives(model, settings):
    on_gpu = copy.deepcopy(model).to("cuda")
    expected = engine_of(model).generate(PROMPTS, 10, num_samples=3, **settings)
    ours = engine_of(on_gpu).generate(PROMPTS, 10, num_samples=3, batch_size=5, **settings)
    assert sum(a == b for a, b in zip(ours, expected, strict=True)) >= len(expected) - 1
    assert all(Engine(on_gpu, (), dtype="bfloat16").generate(PROMPTS, 10, num_samples=3, **settings))


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], [1] * 24], {}, r"prompt 1 has 24 tokens.*sequence_len=24.*cut it to 23"),
        ([[]], {}, "prompt 0 is empty"),
        ([[1, 61]], {}, "prompt 0 holds ids from 1 to 61"),
        ([[1]], {"temperature": -1.0}, r"temperature=-1\.0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan"),
        ([[1]], {"top_k": 0}, "top_k=0"),
        ([[1]], {"top_p": 0.0}, r"top_p=0\.0"),
        ([[1]], {"top_p": 1.5}, r"top_p=1\.5"),
        ([[1]], {"min_p": -0.1}, r"min_p=-0\.1"),
        ([[1]], {"repetition_penalty": 0.0}, r"repetition_penalty=0\.0 must lie between 0\.1 and 10"),
        ([[1]], {"frequency_penalty": 2.5}, r"frequency_penalty=2\.5 must lie between -2 and 2"),
        ([[1]], {"presence_penalty": float("nan")}, "presence_penalty=nan"),
        ([[1]], {"batch_size": 0}, "batch_size=0"),
        ([[1]], {"num_samples": 0}, "num_samples=0"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
    ],
)
def test_a_request_that_cannot_be_generated_is_refused_with_the_remedy(model, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        engine_of(model).generate(prompts, **{"max_new_tokens": 3} | settings)


@torch.inference_mode()
def naive_penalized(model: GPT, request: Request, stop: int) -> list[int]:
    """Read the whole row anew for every token, and apply the penalties by their definitions."""
    prompt, new = list(request.prompt), []
    while len(new) < request.max_new_tokens and len(prompt) + len(new) < model.config.sequence_len:
        logits = model(torch.tensor([prompt + new]))[0, -1].float()
        for token in set(range(model.config.vocab_size)) - {stop}:
            if token in prompt + new:
                logits[token] *= (1 / request.repetition_penalty) if logits[token] > 0 else request.repetition_penalty
            logits[token] -= request.frequency_penalty * new.count(token)
            logits[token] -= request.presence_penalty * (token in new)
        if (token := int(logits.argmax())) == stop:
            break
        new.append(token)
    return new


PENALTIES = [
    {"repetition_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"presence_penalty": 1.2},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.4},
    {"repetition_penalty": 0.5},
    {},
    {"frequency_penalty": -2.0, "presence_penalty": 2.0},
]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_penalties_are_what_their_definitions_say_row_by_row(model, batch_size):
    (stop,) = common_stop(model)
    requests = [Request(prompt, 14, **settings) for prompt, settings in zip(PROMPTS, PENALTIES, strict=True)]
    found = tokens(engine_of(model, [stop]).run(requests, batch_size))
    assert found == [naive_penalized(model, request, stop) for request in requests]
    plain = tokens(engine_of(model, [stop]).run([Request(prompt, 14) for prompt in PROMPTS], batch_size))
    assert found[5] == plain[5] and sum(a != b for a, b in zip(found, plain, strict=True)) >= 4


def test_without_penalties_no_logit_is_touched_whoever_shares_the_batch(model, monkeypatch):
    requests = [Request(p, 8, temperature=1.0, top_p=0.9, seed=i) for i, p in enumerate(PROMPTS)]
    alone = engine_of(model).run(requests)
    neighbours = [Request(prompt, 8, repetition_penalty=3.0, presence_penalty=1.0) for prompt in PROMPTS]
    mixed = engine_of(model).run([r for pair in zip(requests, neighbours, strict=True) for r in pair])[::2]
    assert [completion.tokens for completion in mixed] == [completion.tokens for completion in alone]
    monkeypatch.setattr(decoding, "penalize", None)
    assert engine_of(model).run(requests) == alone


def test_penalties_leave_ends_and_tools_alone_and_what_a_tool_wrote_was_not_sampled(model):
    engine = ScriptedEngine(model, [STOP], tokenizer=Characters(), dtype="float32")
    engine.scripts = {0: script("[2+3]***5[2+3]***5$")}
    seen = []

    class Watching(ScriptedSession):
        def _penalties_of(self, rows):
            seen.append(rows[0].penalized((START, END, OUTPUT_START, OUTPUT_END)))
            return super()._penalties_of(rows)

    session = Watching(Engine.session(engine), engine.scripts)
    session.submit(Request([1, 2, STOP], 21, frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=1.1))
    while session.num_unfinished:
        done = [event.completion for event in session.step() if event.completion]
    assert done[0].stop_token == STOP
    assert {START, END, OUTPUT_START, OUTPUT_END, STOP}.isdisjoint(seen[-1])
    five = Characters().encode("5")[0]
    # Each 5 stands twice in the row, once of the model's own doing.
    assert seen[-1][five] == 0.5 * 2 + 0.25 and done[0].tokens.count(five) == 4
    assert seen[-1][1] == seen[-1][2] == 0


def test_penalties_are_sent_to_the_device_before_it_reads(model, monkeypatch):
    order = []
    for name in ("_penalties_of", "_read_tokens"):
        original = getattr(DecodingSession, name)
        monkeypatch.setattr(
            DecodingSession, name, lambda self, rows, o=original, n=name: order.append(n) or o(self, rows)
        )
    monkeypatch.setattr(decoding, "penalize", lambda logits, *_: order.append("penalize") or logits)
    engine_of(model).run([Request([1, 2], 3, presence_penalty=0.5)])
    assert order[-3:] == ["_penalties_of", "_read_tokens", "penalize"]


def test_an_engine_may_have_penalties_for_all(model):
    requests = [Request(prompt, 8, repetition_penalty=1.5) for prompt in PROMPTS]
    everyone = engine_of(model, penalties={"repetition_penalty": 1.5}).generate(PROMPTS, 8)
    assert everyone == engine_of(model).run(requests) == engine_of(model).generate(PROMPTS, 8, repetition_penalty=1.5)


def test_logprobs_are_those_of_a_full_forward(model: GPT):
    asked = [None, 0, 3, 5, 61, 2, 4]
    requests = [
        Request(prompt, 6, temperature=0.0 if i % 2 else 1.3, top_k=20, seed=i, logprobs=count)
        for i, (prompt, count) in enumerate(zip(PROMPTS, asked, strict=True))
    ]
    streamed: dict[int, list] = {i: [] for i in range(len(requests))}
    session = engine_of(model).session(3)
    for request in requests:
        session.submit(request)
    completions = {}
    while session.num_unfinished:
        for event in session.step():
            streamed[event.id].append(event.logprobs)
            completions[event.id] = event.completion or completions.get(event.id)
    for i, request in enumerate(requests):
        completion = completions[i]
        if request.logprobs is None:
            assert completion.logprobs == [] and set(streamed[i]) == {None}
            continue
        assert completion.logprobs == streamed[i] and len(completion.logprobs) == len(completion.tokens)
        ids = torch.tensor([[*request.prompt, *completion.tokens]])
        with torch.no_grad():
            logs = model(ids)[0].float().log_softmax(-1)[len(request.prompt) - 1 : -1]
        for place, (token, told) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
            assert told.logprob == pytest.approx(float(logs[place, token]), abs=1e-4)
            wanted = logs[place].sort(descending=True)
            assert [value for _, value in told.top] == pytest.approx(
                wanted.values[: request.logprobs].tolist(), abs=1e-4
            )
            assert len(told.top) == request.logprobs
            for other, value in told.top:
                assert value == pytest.approx(float(logs[place, other]), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_logprobs_of_a_prompt_are_those_of_a_full_forward_with_and_without_an_answer(model, batch_size):
    whole = [list(range(1, 25))]  # as long as the context: it can be read, and nothing can follow
    asked = [1, 0, None, 5, 61, 2, 4, 3]
    requests = [
        Request(prompt, 0 if i % 2 or len(prompt) == 24 else 3, prompt_logprobs=count)
        for i, (prompt, count) in enumerate(zip([*PROMPTS, *whole], asked, strict=True))
    ]
    requests += [Request(PROMPTS[0], 5), Request(PROMPTS[0], 0, prompt_logprobs=7), Request(PROMPTS[0], 2)]
    session = engine_of(model).session(batch_size)
    firsts, completions = {}, {}
    for request in requests:
        session.submit(request)
    while session.num_unfinished:
        for event in session.step():
            told = firsts.setdefault(event.id, event.prompt_logprobs)
            assert event.prompt_logprobs is None or told is event.prompt_logprobs
            completions[event.id] = event.completion or completions.get(event.id)
    plain = engine_of(model).run([Request(r.prompt, r.max_new_tokens) for r in requests])
    for i, request in enumerate(requests):
        assert completions[i].tokens == plain[i].tokens
        if request.prompt_logprobs is None:
            assert completions[i].prompt_logprobs == [] and firsts[i] is None
            continue
        assert completions[i].prompt_logprobs == firsts[i] and len(firsts[i]) == len(request.prompt)
        assert firsts[i][0] is None
        with torch.no_grad():
            logs = model(torch.tensor([request.prompt]))[0].float().log_softmax(-1)
        for place, told in enumerate(firsts[i][1:]):
            assert told.logprob == pytest.approx(float(logs[place, request.prompt[place + 1]]), abs=1e-4)
            wanted = logs[place].sort(descending=True).values[: request.prompt_logprobs].tolist()
            assert [value for _, value in told.top] == pytest.approx(wanted, abs=1e-4)


def test_a_prompt_longer_than_the_context_cannot_be_scored(model):
    with pytest.raises(ValueError, match="25 tokens"):
        engine_of(model).run([Request(list(range(25)), 0, prompt_logprobs=1)])


def test_tokens_of_tools_have_no_logprobs(model: GPT):
    engine = ScriptedEngine(model, [STOP], tokenizer=Characters(), dtype="float32")
    engine.scripts = {0: script("[2+3]***4$")}
    (completion,) = engine.run([Request([1, 2], 15, logprobs=1)])
    assert [told is None for told in completion.logprobs] == [not sampled for sampled in completion.mask]
    assert 0 in completion.mask and 1 in completion.mask


def test_more_logprobs_than_there_are_tokens_are_refused(model: GPT):
    for count in (-1, 62):
        with pytest.raises(ValueError, match="logprobs="):
            engine_of(model).run([Request([1], 2, logprobs=count)])
