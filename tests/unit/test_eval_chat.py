"""Chat evaluation: letters against a plain forward, generated answers with a scripted engine, ChatCORE by hand."""

import threading
from types import SimpleNamespace

import pytest
import torch

from nanochat_pl.engine import Completion, Engine
from nanochat_pl.eval.ask import by_room, render_prompts
from nanochat_pl.eval.chat import CHATCORE_BASELINES, chatcore, evaluate_chat, summarize_chat, with_ids
from nanochat_pl.eval.results import ExampleLog, MetricRow, find_row, proportion_row
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tasks.arc import ARC
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.humaneval import HumanEval
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.multiple_choice import is_right_letter, multiple_choice
from nanochat_pl.tokenizer import Tokenizer


def choice(number, answer="B", letters="ABC", **extras):
    return multiple_choice(
        {
            "id": f"q{number}",
            "question": f"Question {number}? {'long ' * number}",
            "choices": [f"{letter.lower()}{number}" for letter in letters],
            "letters": list(letters),
            "answer": answer,
            **extras,
        }
    )


def sum_of(a, b):
    messages = [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": f"#### {a + b}"}]
    return {"id": f"{a}+{b}", "messages": messages, "answer": str(a + b)}


CHOICES = [
    choice(0, subject="law"),
    choice(1, subject="law", answer="A"),
    choice(2, subject="art", letters="AB"),
    choice(9, letters="1234", answer="3"),
]
SUMS = [sum_of(a, b) for a, b in ((1, 1), (2, 3), (4, 4), (20, 22), (5, 9))]


def grade(question, completion):
    return completion.endswith(question["answer"])


class ScriptedEngine:
    """Answers each sum by a list of texts, one a sample."""

    model = SimpleNamespace(config=GPTConfig(sequence_len=64))

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.requests = tokenizer, texts, []

    def run(self, requests, batch_size=32):
        self.requests += requests
        return [self.answer(request) for request in requests]

    def answer(self, request):
        _, question, sample = request.seed.split("/")
        ids = self.tokenizer.encode(self.texts[question][int(sample)])[: request.max_new_tokens]
        stop = None if len(ids) == request.max_new_tokens else 7
        return Completion(ids, [1] * len(ids), stop, tool_calls=len(ids) % 2, tool_errors=0)


@pytest.fixture(scope="module")
def tokenizer():
    text = [m["content"] for q in CHOICES + SUMS for m in q["messages"]]
    return Tokenizer.train(text * 20, 290)


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = GPTConfig(
        sequence_len=256, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, softcap=30.0
    )
    model = GPT(shape)
    draw = torch.Generator().manual_seed(0)
    model.init_weights(draw)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


def by_letter(model, tokenizer, questions=CHOICES, **settings):
    return evaluate_chat(model, tokenizer, None, questions, task="MMLU", kind="categorical", **settings)


def in_words(tokenizer, texts, questions=SUMS, **settings):
    engine = ScriptedEngine(tokenizer, texts)
    settings = {"grade": grade, "max_new_tokens": 20} | settings
    return evaluate_chat(None, tokenizer, engine, questions, task="GSM8K", kind="generative", **settings), engine


ONCE = {"1+1": ["2"], "2+3": ["it is 5"], "4+4": ["9"], "20+22": ["42" * 30], "5+9": ["14"]}


# --- by letter


def test_categorical_answer_is_the_likeliest_letter_after_the_prompt(model, tokenizer):
    for question, record in zip(CHOICES, by_letter(model, tokenizer).records, strict=True):
        ids = tokenizer.render_for_completion(question)
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1].float()
        (one_token,) = {len(tokenizer.encode(letter)) for letter in question["letters"]}
        scores = {letter: logits[tokenizer.encode(letter)[0]].item() for letter in question["letters"]}
        assert one_token == 1
        assert record["output"] == max(scores, key=scores.get)
        assert record["correct"] == (record["output"] == question["answer"])
        assert record["letter_logprobs"] == pytest.approx(
            {letter: score - logits.logsumexp(0).item() for letter, score in scores.items()}, abs=1e-4
        )
        assert record["prompt_tokens"] == len(ids)
        assert not record["prompt_cut"]


def test_letter_does_not_depend_on_the_batch(model, tokenizer):
    together, alone = by_letter(model, tokenizer), by_letter(model, tokenizer, max_batch_tokens=1)
    for one, other in zip(together.records, alone.records, strict=True):
        assert one["output"] == other["output"]
        assert one["letter_logprobs"] == pytest.approx(other["letter_logprobs"], abs=1e-5)


def test_accuracy_has_chance_and_majority_baselines_overall_and_by_subject(model, tokenizer):
    evaluation = by_letter(model, tokenizer)
    row = evaluation.rows[0]
    assert (row.task, row.metric, row.n) == ("MMLU", "accuracy", 4)
    assert row.count == sum(r["correct"] for r in evaluation.records)
    assert row.interval.low <= row.value <= row.interval.high
    assert row.baseline["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 4) / 4)
    assert (row.baseline["majority"], row.baseline["majority_letter"]) == (0.5, "B")
    parts = {r.group["subject"]: r for r in evaluation.rows if r.group}
    assert [(name, r.n) for name, r in parts.items()] == [("art", 1), ("law", 2)]
    assert parts["law"].baseline == {"chance": pytest.approx(1 / 3), "majority": 0.5, "majority_letter": "B"}


def test_question_beyond_the_context_is_read_up_to_the_rotary_limit(model, tokenizer, caplog):
    """Its letter is that of the whole question, where a cut one would have lost its choices."""
    context = model.config.sequence_len
    long = choice(10 + context)
    evaluation = by_letter(model, tokenizer, [long, CHOICES[0]])
    record, short = evaluation.records
    ids = tokenizer.render_for_completion(long, max_tokens=10**6)
    assert context < len(ids) == record["prompt_tokens"] <= model.config.rotary_rows
    assert not record["prompt_cut"] and short["prompt_tokens"] <= context
    with torch.no_grad():
        expected = model.logits(model.hidden(torch.tensor([ids]))[:, -1]).float().log_softmax(-1)[0]
    for letter, logprob in record["letter_logprobs"].items():
        assert logprob == pytest.approx(expected[tokenizer.encode(letter)[0]].item(), abs=1e-4)
    assert f"1 questions are longer than the model's context of {context} tokens; 1 were read" in caplog.text


def test_question_beyond_the_rotary_limit_loses_its_beginning_not_its_choices(model, tokenizer, caplog):
    long = choice(10 + model.config.rotary_rows)
    [record] = by_letter(model, tokenizer, [long]).records
    assert record["prompt_cut"] and record["prompt_tokens"] == model.config.rotary_rows - 1
    [prompt] = render_prompts(tokenizer, [long], context_tokens=80, max_new_tokens=1)
    text = tokenizer.decode(prompt.ids)
    assert text.startswith("<|bos|><|user_start|>") and len(prompt.ids) == 79
    assert text.endswith("Respond only with the letter of the correct answer.<|user_end|><|assistant_start|>")
    assert all(f"- {choice}={letter}" in text for choice, letter in zip(long["choices"], long["letters"]))
    assert "0 were read beyond it, 1 lost their beginning" in caplog.text


def test_oldest_turns_are_dropped_first(tokenizer):
    turns = [m for number in range(4) for m in sum_of(number, number)["messages"]]
    whole = render_prompts(tokenizer, [{"messages": turns}], context_tokens=1000, max_new_tokens=1)[0]
    [prompt] = render_prompts(tokenizer, [{"messages": turns}], context_tokens=len(whole.ids), max_new_tokens=1)
    assert prompt.cut
    assert tokenizer.decode(prompt.ids) == tokenizer.decode(whole.ids).replace(
        "<|user_start|>0+0<|user_end|><|assistant_start|>#### 0<|assistant_end|>", ""
    )


def test_a_prompt_that_does_not_fit_is_cut_and_counted(model, tokenizer):
    evaluation = by_letter(model, tokenizer, max_prompt_tokens=20)
    assert find_row(evaluation.rows, "prompt_cut_rate").value == 1.0
    assert {r["prompt_tokens"] for r in evaluation.records} == {20}


# --- in its own words


def test_the_task_grades_what_was_generated(tokenizer):
    evaluation, engine = in_words(tokenizer, ONCE)
    assert [r["correct"] for r in evaluation.records] == [True, True, False, True, True]
    assert [r["output"] for r in evaluation.records][:3] == ["2", "it is 5", "9"]
    assert [r["expected"] for r in evaluation.records] == ["2", "5", "8", "42", "14"]
    row = evaluation.rows[0]
    assert (row.metric, row.value, row.count, row.n) == ("accuracy", 0.8, 4, 5)
    assert row.interval.low < 0.8 < row.interval.high
    assert find_row(evaluation.rows, "truncation_rate").count == 1
    lengths = [r["output_tokens"] for r in evaluation.records]
    assert find_row(evaluation.rows, "output_tokens").value == sum(lengths) / 5
    assert find_row(evaluation.rows, "tool_calls").value == sum(length % 2 for length in lengths) / 5
    assert all(request.temperature == 0 and request.max_new_tokens == 20 for request in engine.requests)


def test_pass_at_k_is_the_mean_share_of_subsets_with_a_right_sample(tokenizer):
    texts = {"1+1": ["2", "3", "2"], "2+3": ["1", "1", "5"], "4+4": ["a", "b", "c"]}
    evaluation, engine = in_words(tokenizer, texts, SUMS[:3], num_samples=3, temperature=0.8, top_k=50)
    assert [r["num_right"] for r in evaluation.records] == [2, 1, 0]
    values = [row.value for row in evaluation.rows[:3]]
    assert [row.metric for row in evaluation.rows[:3]] == ["pass@1", "pass@2", "pass@3"]
    assert values == pytest.approx([(2 / 3 + 1 / 3) / 3, (1 + 2 / 3) / 3, 2 / 3])
    assert [(r["output"], r["correct"]) for r in evaluation.records] == [("2", True), ("5", True), ("a", False)]
    assert [[s["output"] for s in r["samples"]] for r in evaluation.records] == list(texts.values())
    assert find_row(evaluation.rows, "truncation_rate").n == 9
    assert {(r.temperature, r.top_k) for r in engine.requests} == {(0.8, 50)}
    assert len({r.seed for r in engine.requests}) == 9


def test_pass_at_k_of_zero_right_samples_has_an_interval_above_zero(tokenizer):
    texts = {question["id"]: ["x", "y"] for question in SUMS}
    evaluation, _ = in_words(tokenizer, texts, num_samples=2, temperature=1.0)
    for row in evaluation.rows[:2]:
        assert (row.value, row.count, row.interval.low) == (0.0, 0, 0.0)
        assert row.interval.high > 0.3


def test_grading_threads_run_in_parallel_and_grades_stay_in_order(tokenizer):
    both = threading.Barrier(2, timeout=30)

    def meet(question, completion):
        both.wait()
        return grade(question, completion)

    texts = {"1+1": ["2", "3"], "2+3": ["4", "5"]}
    settings = {"num_samples": 2, "temperature": 1.0}
    evaluation, _ = in_words(tokenizer, texts, SUMS[:2], grade=meet, grading_threads=2, **settings)
    assert [[s["correct"] for s in r["samples"]] for r in evaluation.records] == [[True, False], [False, True]]


def test_a_sample_does_not_depend_on_the_batch_nor_on_the_other_questions(model, tokenizer):
    engine = Engine(model, [tokenizer.special_id("<|assistant_end|>")], tokenizer, dtype="float32")
    settings = {"task": "t", "kind": "generative", "grade": grade, "max_new_tokens": 6}
    settings |= {"num_samples": 2, "temperature": 1.0}
    together = evaluate_chat(model, tokenizer, engine, SUMS, **settings)
    alone = evaluate_chat(model, tokenizer, engine, SUMS[3:], batch_size=1, **settings)
    assert [r["samples"] for r in together.records[3:]] == [r["samples"] for r in alone.records]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat_pl.eval.chat.CHUNK_ROWS", 2)
    path = tmp_path / "examples.jsonl"
    whole, _ = in_words(tokenizer, ONCE)

    def stop_after_four(answered, asked):
        if answered == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_words(tokenizer, ONCE, log=ExampleLog(path, "c"), progress=stop_after_four)
    seen = []
    resumed, engine = in_words(tokenizer, ONCE, log=ExampleLog(path, "c"), progress=lambda *counts: seen.append(counts))
    assert (len(engine.requests), resumed.num_answered, seen) == (1, 1, [(5, 5)])
    assert resumed.rows == whole.rows


# --- ids, refusals


def test_a_conversation_without_id_gets_the_same_one_in_every_run():
    bare = [{key: value for key, value in question.items() if key != "id"} for question in SUMS]
    ids = [question["id"] for question in with_ids([*bare, bare[0], bare[0], SUMS[0]])]
    assert [question["id"] for question in with_ids(reversed(bare))] == ids[4::-1]
    assert ids[5:] == [f"{ids[0]}-2", f"{ids[0]}-3", "1+1"]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "categorical", "grade": None, "num_samples": 2}, "no effect on kind=categorical"),
        ({"kind": "categorical"}, "no effect on kind=categorical"),
        ({"kind": "categorical", "grade": None}, r"question 1\+1: the answer '2' and the letters \[\]"),
        ({"grade": None}, "needs grade"),
        ({"num_samples": 4}, "4 times the same answer"),
        ({"grading_threads": 0}, "at least 1"),
        ({"num_samples": 0}, "at least 1"),
        ({"kind": "both"}, "categorical or generative"),
        ({"conversations": []}, "the task is empty"),
        ({"conversations": [SUMS[0], SUMS[0]]}, "an earlier one"),
        ({"conversations": [{"id": "x", "messages": SUMS[0]["messages"][:1]}]}, "must be the assistant's"),
    ],
)
def test_invalid_questions_and_settings_are_refused_before_any_generation(tokenizer, settings, message):
    engine = ScriptedEngine(tokenizer, ONCE)
    settings = {"conversations": SUMS, "task": "t", "kind": "generative", "grade": grade} | settings
    conversations = settings.pop("conversations")
    with pytest.raises(ValueError, match=message):
        evaluate_chat(engine.model, tokenizer, engine, conversations, **settings)
    assert not engine.requests


def test_pass_at_k_of_records_with_different_num_samples_is_refused(tokenizer):
    one, _ = in_words(tokenizer, ONCE)
    two, _ = in_words(tokenizer, {"1+1": ["2", "3"]}, SUMS[:1], num_samples=2, temperature=1.0)
    with pytest.raises(ValueError, match=r"\[1, 2\] samples"):
        summarize_chat([*one.records, *two.records], task="GSM8K")
    with pytest.raises(ValueError, match="no records"):
        summarize_chat([], task="GSM8K")


# --- ChatCORE


def scores(**changed):
    values = {"ARC-Easy": 40, "ARC-Challenge": 25, "MMLU": 30, "GSM8K": 10, "HumanEval": 5, "SpellingBee": 90}
    values |= {name.replace("_", "-"): value for name, value in changed.items()}
    return {
        name: proportion_row(name, "accuracy", [i < value for i in range(100)])
        for name, value in values.items()
        if value is not None
    }


def test_chatcore_is_the_mean_of_scores_above_chance():
    row = chatcore(scores() | {"ScienceQA": proportion_row("ScienceQA", "accuracy", [True])})
    assert (row.task, row.metric, row.n) == ("ChatCORE", "chatcore_metric", 600)
    assert row.value == pytest.approx((0.15 / 0.75 + 0 + 0.05 / 0.75 + 0.10 + 0.05 + 0.90) / 6)
    assert row.baseline == CHATCORE_BASELINES


def test_chatcore_without_spelling_bee_is_named_chatcore_5():
    row = chatcore(scores(SpellingBee=None))
    assert row.task == "ChatCORE-5"
    assert row.value == pytest.approx((0.15 / 0.75 + 0 + 0.05 / 0.75 + 0.10 + 0.05) / 5)
    assert "SpellingBee" not in row.baseline and len(row.baseline) == 5


def test_chatcore_of_missing_tasks_is_refused():
    with pytest.raises(ValueError, match="MMLU, HumanEval"):
        chatcore(scores(MMLU=None, HumanEval=None))
    empty = MetricRow(task="GSM8K", metric="accuracy", value=None, n=0)
    with pytest.raises(ValueError, match="score of GSM8K"):
        chatcore(scores() | {"GSM8K": empty})


def test_the_interval_of_chatcore_is_narrower_than_those_of_its_tasks_and_covers():
    row = chatcore(scores())
    widths = [(r.interval.high - r.interval.low) / (1 - CHATCORE_BASELINES[name]) for name, r in scores().items()]
    # independent tasks: the width of a mean is the root of the sum of squares, over their number
    rough = sum(width**2 for width in widths) ** 0.5 / 6
    assert row.interval.high - row.interval.low == pytest.approx(rough, rel=0.1)
    draw = torch.Generator().manual_seed(0)
    truth, covered = chatcore(scores()).value, 0
    for _ in range(300):
        drawn = {name: int((torch.rand(100, generator=draw) < r.value).sum()) for name, r in scores().items()}
        interval = chatcore(scores(**{name.replace("-", "_"): count for name, count in drawn.items()})).interval
        covered += interval.low <= truth <= interval.high
    assert 0.90 < covered / 300 < 0.99
    without = chatcore(scores() | {"MMLU": MetricRow(task="MMLU", metric="accuracy", value=0.3, n=100)})
    assert without.interval is None


# --- the real tasks


def test_real_multiple_choice_is_asked_by_letter(data_root, tokenizer, model):
    for name, task in {
        "MMLU": MMLU(data_root / "mmlu", "test", stop=6),
        "ARC-Easy": ARC(data_root / "arc", "ARC-Easy", "test", stop=6),
    }.items():
        evaluation = evaluate_chat(model, tokenizer, None, task, task=name, kind="categorical")
        assert [r["id"] for r in evaluation.records] == [conversation["id"] for conversation in task]
        assert evaluation.rows[0].n == 6
        for conversation, record in zip(task, evaluation.records, strict=True):
            assert record["correct"] == is_right_letter(conversation, record["output"])


def test_worked_solutions_of_real_tasks_pass_and_others_do_not(data_root, model):
    words = GSM8K(data_root / "gsm8k", "test", stop=4)
    tokenizer = Tokenizer.train([m["content"] for c in words for m in c["messages"][:1]] * 3, 300)

    class Solves(ScriptedEngine):
        model = SimpleNamespace(config=GPTConfig(sequence_len=4096))

        def answer(self, request):
            number = request.seed.partition("/")[2].rpartition("/")[0]
            ids = tokenizer.encode(self.texts[number])
            return Completion(ids, [1] * len(ids), 7)

    def solve(task, texts):
        settings = {"kind": "generative", "grade": task.grade, "max_new_tokens": 2000, "grading_threads": 2}
        return evaluate_chat(None, tokenizer, Solves(tokenizer, texts), task, task=task.name, **settings)

    right = solve(words, {c["id"]: f"so\n#### {c['answer']}" for c in words})
    assert right.rows[0].value == 1.0
    assert solve(words, {c["id"]: "#### none" for c in words}).rows[0].value == 0.0
    try:
        code = HumanEval(data_root / "humaneval", stop=3)
        assert code.isolation
    except ValueError as error:
        pytest.skip(str(error))
    bodies = {c["id"]: f"```python\n{c['messages'][-1]['content']}\n```" for c in code}
    assert solve(code, bodies).rows[0].value == 1.0
    assert solve(code, dict.fromkeys(bodies, "pass")).rows[0].value == 0.0


def test_an_answer_to_a_question_beyond_the_context_is_the_naive_one(model, tokenizer):
    """An engine told so generates as far as the positions reach; by default it keeps to the context."""
    prompt = tokenizer.render_for_completion(choice(model.config.sequence_len), max_tokens=10**6)
    assert len(prompt) > model.config.sequence_len
    with pytest.raises(ValueError, match="no room"):
        Engine(model, [], dtype="float32").generate([prompt], 4)
    engine = Engine(model, [], dtype="float32", context_tokens=model.config.rotary_rows)
    [completion] = engine.generate([prompt], 4)
    ids = list(prompt)
    with torch.no_grad():
        for token in completion.tokens:
            assert token == int(model.logits(model.hidden(torch.tensor([ids]))[:, -1]).argmax())
            ids.append(token)
    assert len(completion.tokens) == 4
    with pytest.raises(ValueError, match="context_tokens=2561 is none of the 2560 positions"):
        Engine(model, [], context_tokens=2561)


def test_rows_beyond_the_context_are_generated_in_smaller_batches():
    assert list(by_room([10, 300, 20, 1000], 256, 32)) == [([0, 2], 32), ([1, 3], 8)]
    assert list(by_room([10], 256, 32)) == [([0], 32)]
    assert list(by_room([2560], 256, 4)) == [([0], 1)]
