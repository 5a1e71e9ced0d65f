"""Multiple-choice evaluation: every figure from records made by hand, then the whole way with a scripted engine."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nanochat_pl.engine import Completion, Engine
from nanochat_pl.eval.ask import render_prompts
from nanochat_pl.eval.recall import evaluate_recall
from nanochat_pl.eval.results import ExampleLog, find_row
from nanochat_pl.eval.scienceqa import evaluate_scienceqa, summarize
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tasks.scienceqa import ScienceQA
from nanochat_pl.tokenizer import Tokenizer


def question(number, answer="B", choices=("lion", "salt", "the Moon"), **extras):
    letters = [chr(65 + i) for i in range(len(choices))]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices))
    user = {"role": "user", "content": f"Question {number}?\n\n{listed}"}
    told = {"role": "assistant", "content": f"The correct answer is {answer}. {choices[letters.index(answer)]}"}
    return {
        "id": f"q{number}",
        "messages": [{"role": "system", "content": "You teach."}, user, told],
        "letters": letters,
        "choices": list(choices),
        "answer": answer,
        **extras,
    }


QUESTIONS = [
    question(0, subject="natural science", grade="grade2", solution="Salt dissolves in water."),
    question(1, subject="natural science", grade="grade10", solution="Salt is not alive."),
    question(2, answer="A", choices=("yes", "no"), subject="social science", has_image=True),
    question(3, answer="A", choices=("yes", "no")),
    question(4, answer="C"),
]
OUTPUTS = [
    "The correct answer is B. salt\n\nExplanation: Salt dissolves in water.",
    "The correct answer is A. salt\n\nExplanation: Only the moon is not alive.",
    "a bird would say so",
    "A. yes",
    "C",
]


class ScriptedEngine:
    """Answers by the question's number; counts what it was asked."""

    model = SimpleNamespace(config=GPTConfig(sequence_len=64))

    def __init__(self, tokenizer, outputs):
        self.tokenizer, self.outputs, self.num_asked = tokenizer, outputs, 0

    def generate(self, prompts, max_new_tokens, temperature=0.0, top_k=None, seed=0, batch_size=32):
        assert temperature == 0.0
        self.num_asked += len(prompts)
        numbers = [self.number(place, prompt) for place, prompt in enumerate(prompts)]
        tokens = [self.tokenizer.encode(self.outputs[number]) for number in numbers]
        return [
            Completion(
                ids[:max_new_tokens], [1] * min(len(ids), max_new_tokens), 7 if len(ids) < max_new_tokens else None
            )
            for ids in tokens
        ]

    def number(self, place, prompt):
        return int(self.tokenizer.decode(prompt).split("Question ")[1].split("?")[0])


@pytest.fixture(scope="module")
def tokenizer():
    text = [message["content"] for q in QUESTIONS for message in q["messages"]]
    return Tokenizer.train(text * 20, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = GPT(
        GPTConfig(sequence_len=64, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def evaluation(model, tokenizer):
    return evaluate_scienceqa(model, tokenizer, ScriptedEngine(tokenizer, OUTPUTS), QUESTIONS)


def test_each_question_leaves_one_record_in_order(evaluation):
    assert [r["id"] for r in evaluation.records] == [q["id"] for q in QUESTIONS]
    assert [r["strict_letter"] for r in evaluation.records] == ["B", "A", None, "A", "C"]
    assert [r["regex_letter"] for r in evaluation.records] == ["B", "A", "A", "A", "C"]
    assert [r["correct"] for r in evaluation.records] == [True, False, False, True, True]
    assert [r["output"] for r in evaluation.records] == OUTPUTS
    assert [list(r["letter_logprobs"]) for r in evaluation.records] == [q["letters"] for q in QUESTIONS]
    assert evaluation.records[0]["prompt"].startswith("Question 0?")
    assert evaluation.num_answered == 5


def test_an_unparseable_answer_is_wrong_not_left_out(evaluation):
    asked = find_row(evaluation.rows, "strict/accuracy_over_asked")
    scored = find_row(evaluation.rows, "strict/accuracy_over_scored")
    parsed = find_row(evaluation.rows, "strict/parse_rate")
    assert (asked.count, asked.n, asked.value) == (3, 5, 0.6)
    assert (scored.count, scored.n, scored.value) == (3, 4, 0.75)
    assert (parsed.count, parsed.n) == (4, 5)
    assert asked.interval.low < 0.6 < asked.interval.high
    assert asked.bootstrap is not None
    assert find_row(evaluation.rows, "letter_regex/accuracy_over_asked").count == 4


def test_chance_and_majority_letter_stand_beside_accuracy(evaluation):
    for metric in ("strict/accuracy_over_asked", "strict/accuracy_over_scored", "loglikelihood/accuracy"):
        baseline = find_row(evaluation.rows, metric).baseline
        assert baseline["chance"] == pytest.approx((3 / 3 + 2 / 2) / 5)
        assert (baseline["majority"], baseline["majority_letter"]) == (0.4, "A")  # two A, two B, one C


def test_groups_add_up_to_the_whole_and_are_sorted_naturally(evaluation):
    rows = [row for row in evaluation.rows if row.metric == "strict/accuracy_over_asked" and row.group]
    for by in ("subject", "grade", "topic", "num_choices", "image"):
        parts = [row for row in rows if by in row.group]
        assert sum(row.n for row in parts) == 5
        assert sum(row.count for row in parts) == 3
    assert [r.group["grade"] for r in rows if "grade" in r.group] == ["grade2", "grade10", "not given"]
    two = next(row for row in rows if row.group == {"num_choices": "2"})
    assert (two.n, two.count, two.baseline["chance"], two.baseline["majority"]) == (2, 1, 0.5, 1.0)


def test_explanations_are_scored_only_where_a_reference_exists(evaluation):
    assert [r["rouge_l"] is None for r in evaluation.records] == [False, False, True, True, True]
    assert evaluation.records[0]["rouge_l"] == 1.0
    assert find_row(evaluation.rows, "explanation/rouge_l").n == 2
    agreement = find_row(evaluation.rows, "explanation/agrees_with_answer")
    assert (agreement.count, agreement.n) == (1, 2)  # question 1 answers "lion" and speaks of the Moon
    own = find_row(evaluation.rows, "explanation/names_own_choice")
    assert (own.count, own.n) == (2, 3)


def test_truncated_answers_and_cut_prompts_are_counted(model, tokenizer):
    class InOrder(ScriptedEngine):
        """Answers in the order asked: a question that lost its beginning has no number."""

        def number(self, place, prompt):
            return place

    engine = InOrder(tokenizer, OUTPUTS)
    short = evaluate_scienceqa(model, tokenizer, engine, QUESTIONS, max_new_tokens=5, max_prompt_tokens=15)
    lengths = [len(tokenizer.encode(output)) for output in OUTPUTS]
    assert find_row(short.rows, "truncation_rate").count == sum(length >= 5 for length in lengths)
    assert find_row(short.rows, "prompt_cut_rate").value == 1.0
    assert all(r["prompt_tokens"] == 15 and r["output_tokens"] <= 5 for r in short.records)


def test_the_likely_letter_does_not_depend_on_the_batch(model, tokenizer, evaluation):
    engine = ScriptedEngine(tokenizer, OUTPUTS)
    alone = evaluate_scienceqa(model, tokenizer, engine, QUESTIONS, batch_size=1, max_batch_tokens=1)
    for one, other in zip(alone.records, evaluation.records):
        assert one["likely_letter"] == other["likely_letter"]
        assert one["letter_logprobs"] == pytest.approx(other["letter_logprobs"], abs=1e-5)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(model, tokenizer, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat_pl.eval.ask.CHUNK_ROWS", 2)
    path = tmp_path / "scienceqa" / "examples.jsonl"

    class Interrupted(ScriptedEngine):
        def generate(self, prompts, *args, **kwargs):
            if self.num_asked >= 4:
                raise KeyboardInterrupt
            return super().generate(prompts, *args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        evaluate_scienceqa(model, tokenizer, Interrupted(tokenizer, OUTPUTS), QUESTIONS, log=ExampleLog(path, "c"))
    engine, seen = ScriptedEngine(tokenizer, OUTPUTS), []
    resumed = evaluate_scienceqa(
        model, tokenizer, engine, QUESTIONS, log=ExampleLog(path, "c"), progress=lambda *counts: seen.append(counts)
    )
    assert (engine.num_asked, resumed.num_answered, seen) == (1, 1, [(5, 5)])
    # Bits of an answer that was read in other company, and so padded otherwise, may differ in the last place.
    for row, whole in zip(resumed.rows, evaluation.rows, strict=True):
        if row.metric in ("answer_bpb", "wrong_bpb", "answer_margin"):
            figures = [(one.value, one.interval.low, one.interval.high) for one in (row, whole)]
            assert figures[0] == pytest.approx(figures[1], rel=1e-6)
            row = replace(row, value=whole.value, interval=whole.interval)
        assert row == whole
    again = evaluate_scienceqa(model, tokenizer, engine, QUESTIONS, log=ExampleLog(path, "c"))
    assert (engine.num_asked, again.num_answered, again.rows) == (1, 0, resumed.rows)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "the task is empty"),
        ([QUESTIONS[0], QUESTIONS[0]], "question 1 has the id q0 of an earlier one"),
        ([{key: value for key, value in QUESTIONS[0].items() if key != "id"}], "no id"),
        ([{**QUESTIONS[0], "letters": []}], "has no letters"),
        ([{**QUESTIONS[0], "answer": "D"}], "the answer among them"),
        ([{**QUESTIONS[0], "choices": ["x", "y"]}], "a letter for each choice"),
    ],
)
def test_questions_that_cannot_be_evaluated_are_refused_before_any_is_asked(model, tokenizer, questions, message):
    engine = ScriptedEngine(tokenizer, OUTPUTS)
    with pytest.raises(ValueError, match=message):
        evaluate_scienceqa(model, tokenizer, engine, questions)
    assert engine.num_asked == 0


def test_summarizing_no_records_is_an_error():
    with pytest.raises(ValueError, match="no records"):
        summarize([])


def test_a_model_that_never_answers_has_no_accuracy_over_scored(model, tokenizer):
    mute = evaluate_scienceqa(model, tokenizer, ScriptedEngine(tokenizer, [""] * 5), QUESTIONS)
    scored = find_row(mute.rows, "strict/accuracy_over_scored")
    assert (scored.n, scored.value, scored.interval) == (0, None, None)
    assert find_row(mute.rows, "strict/accuracy_over_asked").value == 0.0


def test_a_prompt_that_fills_the_context_is_cut_and_its_answer_counts_as_truncated(tokenizer):
    long = {**question(0), "messages": [{"role": "user", "content": "x " * 200}, {"role": "assistant", "content": "y"}]}
    (whole,) = render_prompts(tokenizer, [long], context_tokens=2000, max_new_tokens=100, max_prompt_tokens=2000)
    assert not whole.cut
    (cut,) = render_prompts(tokenizer, [long], context_tokens=64, max_new_tokens=100, max_prompt_tokens=2000)
    assert (cut.cut, len(cut.ids)) == (True, 32)
    assert cut.ids[-1] == whole.ids[-1] == tokenizer.special_id("<|assistant_start|>")
    exact = len(whole.ids)
    (fits,) = render_prompts(tokenizer, [long], context_tokens=2000, max_new_tokens=100, max_prompt_tokens=exact)
    assert (fits.cut, fits.ids) == (False, whole.ids)
    with pytest.raises(ValueError, match="leaves no room"):
        render_prompts(tokenizer, [long], context_tokens=32, max_new_tokens=100, max_prompt_tokens=2000)


def test_a_real_model_and_engine_give_the_same_answers_in_a_batch_and_alone(model, tokenizer):
    engine = Engine(model, [tokenizer.special_id("<|assistant_end|>")], dtype="float32")
    together = evaluate_scienceqa(model, tokenizer, engine, QUESTIONS, max_new_tokens=8)
    alone = evaluate_scienceqa(model, tokenizer, engine, QUESTIONS, max_new_tokens=8, batch_size=1, max_batch_tokens=1)
    assert [r["output"] for r in together.records] == [r["output"] for r in alone.records]
    assert find_row(together.rows, "strict/accuracy_over_asked") == find_row(alone.rows, "strict/accuracy_over_asked")
    recall = evaluate_recall(tokenizer, engine, QUESTIONS, max_new_tokens=8)
    assert [r["output"] for r in recall.records] == [r["output"] for r in together.records]


def test_recall_counts_exact_answers_after_normalisation(tokenizer, tmp_path):
    facts = [
        {**question(number), "answer": answer} for number, answer in enumerate(["salt", "the Moon", "lion", "salt"])
    ]
    engine = ScriptedEngine(tokenizer, ["Salt.", "The answer is the moon.\nIt shines.", "a lioness", "It is salt."])
    log = ExampleLog(tmp_path / "examples.jsonl", "c")
    evaluation = evaluate_recall(tokenizer, engine, facts, log=log)
    assert [r["correct"] for r in evaluation.records] == [True, True, False, False]
    row = find_row(evaluation.rows, "exact_match")
    assert (row.value, row.count, row.n) == (0.5, 2, 4)
    assert row.baseline == {"majority": 0.5, "majority_answer": "salt"}
    assert evaluate_recall(tokenizer, engine, facts, log=ExampleLog(log.path, "c")).num_answered == 0
    with pytest.raises(ValueError, match="no `answer` text"):
        evaluate_recall(tokenizer, engine, [{**facts[0], "answer": ""}])
    with pytest.raises(ValueError, match="empty"):
        evaluate_recall(tokenizer, engine, [])


def test_evaluation_and_reward_grade_alike(evaluation):
    for asked, record in zip(QUESTIONS, evaluation.records, strict=True):
        assert ScienceQA.grade(None, asked, record["output"]) is record["correct"]
    assert {record["correct"] for record in evaluation.records} == {True, False}
