"""Answer-BPB: the bits of the right answer by hand, whatever the batch, the context and the characters it has."""

import json
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat_pl.engine import Engine
from nanochat_pl.eval.answer_bpb import answer_rows, answer_scores
from nanochat_pl.eval.answer_scoring import answer_of_message, answer_of_text, score_answers
from nanochat_pl.eval.bpb import BitsPerByte
from nanochat_pl.eval.chat import evaluate_chat
from nanochat_pl.eval.core import evaluate_core
from nanochat_pl.eval.core_tasks import CoreTask
from nanochat_pl.eval.recall import evaluate_recall
from nanochat_pl.eval.results import Evaluation, ExampleLog, MetricRow, find_row
from nanochat_pl.eval.scienceqa import evaluate_scienceqa
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tasks.multiple_choice import multiple_choice
from nanochat_pl.tasks.scienceqa import format_answer, format_question
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.callbacks.evaluation import told
from tests.unit.test_core import make_model, make_tasks


def chosen(number: int, choices: tuple[str, ...], answer: str) -> dict:
    letters = [chr(65 + i) for i in range(len(choices))]
    return {"id": f"q{number}", "question": f"Which of {number}?", "choices": list(choices), "letters": letters} | {
        "answer": answer
    }


RECORDS = [
    chosen(0, ("lion", "a grain of salt", "été"), "B"),
    chosen(1, ("the Moon", "猫 and 🙂"), "B"),
    chosen(2, ("12", "120", "7", "the sea, wide and blue"), "C"),
]
LETTERS = [multiple_choice(record) for record in RECORDS]
"""As chat asks: the list of choices, then a bare letter."""
TUTOR = [
    {
        **record,
        "messages": [
            {"role": "system", "content": "You teach."},
            {"role": "user", "content": format_question(record["question"], record["choices"])},
            {
                "role": "assistant",
                "content": format_answer(
                    record["choices"], record["letters"].index(record["answer"]), "Because it is."
                ),
            },
        ],
    }
    for record in RECORDS
]
FACTS = [
    {
        "id": f"f{number}",
        "answer": answer,
        "messages": [
            {"role": "user", "content": f"Where is {number}?"},
            {"role": "assistant", "content": f"The correct answer is {answer}."},
        ],
    }
    for number, answer in enumerate(["Asia", "the Côte d’Azur", "U.S."])
]
WORKED = [
    {
        "id": f"w{a}",
        "answer": str(a + 1),
        "messages": [
            {"role": "user", "content": f"What is {a} + 1?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": f"It is {a} + 1 = "},
                    {"type": "python", "text": f"{a}+1"},
                    {"type": "python_output", "text": str(a + 1)},
                    {"type": "text", "text": f"{a + 1}.\n#### {a + 1}"},
                ],
            },
        ],
    }
    for a in (1, 20, 300)
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [message["content"] for one in LETTERS + TUTOR + FACTS for message in one["messages"]] + [
        "f() g() h() The correct answer is lion. cat sat on a mat"
    ]
    return Tokenizer.train(texts * 20, 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer.vocab_size)


def letters(model, tokenizer, questions=LETTERS, **more):
    return evaluate_chat(model, tokenizer, None, questions, task="MMLU", kind="categorical", **more)


def worked(model, tokenizer, questions=WORKED, **more):
    reach = model.config.rotary_rows
    engine = Engine(model, tokenizer.stop_ids, tokenizer=tokenizer, context_tokens=reach)
    how = {"grade": lambda question, text: False, "max_new_tokens": 2} | more
    return evaluate_chat(model, tokenizer, engine, questions, task="GSM8K", kind="generative", **how)


def tutor(model, tokenizer, questions=TUTOR, **more):
    engine = Engine(model, tokenizer.stop_ids, tokenizer=tokenizer)
    return evaluate_scienceqa(model, tokenizer, engine, questions, **{"max_new_tokens": 2} | more)


def facts(model, tokenizer, questions=FACTS, **more):
    engine = Engine(model, tokenizer.stop_ids, tokenizer=tokenizer)
    return evaluate_recall(tokenizer, engine, questions, model=model, **{"max_new_tokens": 2} | more)


@torch.no_grad()
def bits(model: GPT, given: list[int], written: list[int]) -> float:
    """-log2 p(written | given) in the plain way: one row, a log-softmax, a sum."""
    logits = model(torch.tensor([[*given, *written]])).float()
    logprobs = torch.log_softmax(logits[0, len(given) - 1 : -1], dim=-1)
    return -sum(logprobs[place, token].item() for place, token in enumerate(written)) / math.log(2)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_of_a_letter_task_the_text_of_the_choice_is_measured_after_the_question_alone(model, tokenizer):
    for question, record in zip(LETTERS, letters(model, tokenizer).records, strict=True):
        plain = {"messages": [{"role": "user", "content": question["question"]}, {"role": "assistant", "content": ""}]}
        prompt = tokenizer.render_for_completion(plain)
        found = [bits(model, prompt, tokenizer.encode(choice)) for choice in question["choices"]]
        right = question["letters"].index(question["answer"])
        others = [index for index in range(len(found)) if index != right]
        assert record["answer_bits"] == pytest.approx(found[right], rel=1e-4)
        assert record["wrong_bits"] == pytest.approx([found[index] for index in others], rel=1e-4)
        assert record["answer_bytes"] == len(question["choices"][right].encode())
        assert record["wrong_bytes"] == [len(question["choices"][index].encode()) for index in others]


def test_of_the_tutor_letter_and_text_are_measured_after_what_introduces_every_answer(model, tokenizer):
    for question, record in zip(TUTOR, tutor(model, tokenizer).records, strict=True):
        prompt = tokenizer.render_for_completion(question)
        given = tokenizer.encode("The correct answer is")
        texts = [f" {letter}. {choice}" for letter, choice in zip(question["letters"], question["choices"])]
        right = question["letters"].index(question["answer"])
        assert question["messages"][-1]["content"].startswith(f"The correct answer is{texts[right]}\n")
        found = [bits(model, [*prompt, *given], tokenizer.encode(text)) for text in texts]
        assert [record["answer_bits"], *record["wrong_bits"]] == pytest.approx(
            [found[right], *found[:right], *found[right + 1 :]], rel=1e-4
        )
        assert record["answer_bytes"] == len(texts[right].encode())


def test_of_a_fact_what_follows_the_introduction_is_measured(model, tokenizer):
    for question, record in zip(FACTS, facts(model, tokenizer).records, strict=True):
        given = [*tokenizer.render_for_completion(question), *tokenizer.encode("The correct answer is")]
        text = f" {question['answer']}."
        assert record["answer_bits"] == pytest.approx(bits(model, given, tokenizer.encode(text)), rel=1e-4)
        assert (record["answer_bytes"], record["wrong_bits"]) == (len(text.encode()), [])
    assert "wrong_bpb" not in {row.metric for row in facts(model, tokenizer).rows}
    bare = [{**one, "messages": [*one["messages"][:1], {"role": "assistant", "content": "Asia"}]} for one in FACTS]
    assert {record["answer_bytes"] for record in facts(model, tokenizer, bare).records} == {4}


def test_a_worked_answer_is_measured_as_validation_measures_its_tokens(model, tokenizer):
    """Supervised tokens that spell text: no end of the turn, no marks of a call, nothing that the tool wrote."""
    evaluation, total = worked(model, tokenizer), BitsPerByte(tokenizer.token_bytes())
    for question, record in zip(WORKED, evaluation.records, strict=True):
        ids, mask = (torch.tensor([part]) for part in tokenizer.render_conversation(question))
        targets = torch.where(mask[:, 1:] == 1, ids[:, 1:], -1)
        alone = BitsPerByte(tokenizer.token_bytes())
        with torch.no_grad():
            losses = model(ids[:, :-1], targets, reduction="none")
        for measured in (alone, total):
            measured.update(losses, targets)
        assert record["answer_bits"] / record["answer_bytes"] == pytest.approx(float(alone.compute()), rel=1e-4)
        said = [part["text"] for part in question["messages"][-1]["content"] if part["type"] != "python_output"]
        assert record["answer_bytes"] == len("".join(said).encode())
    assert find_row(evaluation.rows, "answer_bpb").value == pytest.approx(float(total.compute()), rel=1e-4)


def test_an_answer_that_repeats_the_question_is_measured_from_its_end_on(model, tokenizer):
    asked, body = "f() g()\n", "    cat on a mat\n"
    told = [{"role": "user", "content": asked}, {"role": "assistant", "content": asked + body}]
    question = {"id": "h", "messages": told, "answer": "x"}
    (record,) = worked(model, tokenizer, [question]).records
    whole, given = tokenizer.encode(asked + body), [*tokenizer.render_for_completion(question)]
    begun = tokenizer.encode(asked)
    assert whole[: len(begun)] == begun
    assert record["answer_bits"] == pytest.approx(bits(model, [*given, *begun], whole[len(begun) :]), rel=1e-4)
    assert record["answer_bytes"] == len(body)


def test_in_core_the_whole_answer_counts_also_where_choices_begin_alike(tokenizer, model):
    questions = [{"query": "the cat", "choices": ["sat on a mat", "sat on a cat", "sat"], "gold": 2}]
    task = CoreTask(
        label="t", type="multiple_choice", num_fewshot=0, baseline=0.3, examples=questions, delimiter="\n- "
    )
    (record,) = evaluate_core(model, tokenizer, [task]).records
    given = [tokenizer.bos_id, *tokenizer.encode("the cat\n-")]
    found = [bits(model, given, tokenizer.encode(f" {choice}")) for choice in questions[0]["choices"]]
    assert [record["answer_bits"], *record["wrong_bits"]] == pytest.approx([found[2], *found[:2]], rel=1e-4)
    assert (record["answer_bytes"], record["wrong_bytes"]) == (4, [13, 13])
    assert record["losses"][2] is None  # for the accuracy nothing of it is its own


def test_in_a_schema_the_ending_is_measured_after_each_beginning(tokenizer, model):
    questions = [{"context_options": ["the cat", "f() or g()"], "continuation": "sat on a mat", "gold": 1}]
    task = CoreTask(label="t", type="schema", num_fewshot=0, baseline=0.5, examples=questions)
    (record,) = evaluate_core(model, tokenizer, [task]).records
    found = [
        bits(model, [tokenizer.bos_id, *tokenizer.encode(option)], tokenizer.encode(" sat on a mat"))
        for option in questions[0]["context_options"]
    ]
    assert (record["answer_bits"], record["wrong_bits"]) == (
        pytest.approx(found[1], rel=1e-4),
        [pytest.approx(found[0], rel=1e-4)],
    )


# --- what the figures are --------------------------------------------------------------------------------------------


def uniform(tokenizer: Tokenizer) -> GPT:
    model = make_model(tokenizer.vocab_size)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_a_model_without_an_idea_needs_log2_of_the_vocabulary_for_each_token(tokenizer):
    evaluation = letters(uniform(tokenizer), tokenizer)
    gold = [q["choices"][q["letters"].index(q["answer"])] for q in LETTERS]
    tokens, size = sum(len(tokenizer.encode(text)) for text in gold), sum(len(text.encode()) for text in gold)
    expected = math.log2(tokenizer.vocab_size) * tokens / size
    assert find_row(evaluation.rows, "answer_bpb").value == pytest.approx(expected, rel=1e-6)
    for question, record in zip(LETTERS, evaluation.records, strict=True):
        lengths = sorted(len(tokenizer.encode(choice)) for choice in question["choices"])
        each = sorted([record["answer_bits"], *record["wrong_bits"]])
        assert each == pytest.approx([math.log2(tokenizer.vocab_size) * length for length in lengths], rel=1e-6)


def test_bits_are_pooled_over_bytes_and_margins_are_averaged_over_questions():
    records = [
        {"id": "a", "answer_bits": 8.0, "answer_bytes": 1, "wrong_bits": [4.0, 9.0], "wrong_bytes": [1, 3]},
        {"id": "b", "answer_bits": 10.0, "answer_bytes": 9, "wrong_bits": [None, 6.0], "wrong_bytes": [0, 2]},
        {"id": "c", "answer_bits": None, "answer_bytes": 0, "wrong_bits": [5.0], "wrong_bytes": [5]},
        {"id": "old"},
    ]
    rows = {row.metric: row for row in answer_rows(records, "t")}
    assert {name: row.n for name, row in rows.items()} == {"answer_bpb": 2, "wrong_bpb": 3, "answer_margin": 2}
    assert rows["answer_bpb"].value == pytest.approx(18 / 10)
    assert rows["wrong_bpb"].value == pytest.approx(24 / 11)
    assert rows["answer_margin"].value == pytest.approx(((4 + 3) / 2 - 8 + 3 - 10 / 9) / 2)
    # Each draw of two questions: twice the first, twice the second, or both. The ratio lies between those of one alone.
    assert (rows["answer_bpb"].interval.low, rows["answer_bpb"].interval.high) == (pytest.approx(10 / 9), 8.0)
    assert answer_rows([{"id": "old"}], "t") == []
    first, *_ = answer_rows(records[2:3], "t")
    assert (first.value, first.n) == (None, 0)
    with pytest.raises(KeyError):
        answer_scores(records, "bpb")


def test_over_several_tasks_each_task_weighs_the_same(model, tokenizer):
    evaluation = evaluate_core(model, tokenizer, make_tasks())
    rows = {(row.task, row.metric): row for row in evaluation.rows}
    for metric, of in (("answer_bpb", ("choice", "schema", "language")), ("answer_margin", ("choice", "schema"))):
        whole = rows["CORE", metric]
        assert whole.value == pytest.approx(sum(rows[task, metric].value for task in of) / len(of))
        assert whole.interval.low < whole.value < whole.interval.high
        scores = answer_scores(evaluation.records, metric)
        assert sum(s["score"] * s["weight"] for s in scores) / sum(s["weight"] for s in scores) == pytest.approx(
            whole.value
        )


def test_who_learns_the_right_answers_needs_fewer_bits_and_has_a_margin(tokenizer):
    model = make_model(tokenizer.vocab_size)
    before = {row.metric: row.value for row in letters(model, tokenizer).rows}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(25):
        for question in RECORDS:
            gold = question["choices"][question["letters"].index(question["answer"])]
            told = [{"role": "user", "content": question["question"]}, {"role": "assistant", "content": gold}]
            ids = torch.tensor([tokenizer.render_conversation({"messages": told})[0]])
            optimizer.zero_grad()
            model(ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step()
    after = {row.metric: row.value for row in letters(model, tokenizer).rows}
    assert after["answer_bpb"] < 0.5 < before["answer_bpb"]
    assert after["answer_margin"] > 1
    assert after["answer_margin"] > before["answer_margin"]


# --- whatever the batch, the ranks, the interruption -----------------------------------------------------------------


@pytest.mark.parametrize("evaluate", [letters, tutor])
def test_the_bits_do_not_depend_on_the_batch(model, tokenizer, evaluate):
    together, alone = evaluate(model, tokenizer), evaluate(model, tokenizer, max_batch_tokens=1)
    for one, other in zip(together.records, alone.records, strict=True):
        for key in ("answer_bits", "wrong_bits"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_answers_of_core_cost_no_forward_and_leave_its_accuracy_as_it_is(model, tokenizer, monkeypatch):
    tokens, hidden = [], model.hidden

    def counted(ids, positions=None, kv_cache=None):
        tokens.append(tuple(ids.shape))
        return hidden(ids, positions, kv_cache)

    monkeypatch.setattr(model, "hidden", counted)
    found = {}
    for wanted in (False, True):
        tokens.clear()
        found[wanted] = evaluate_core(model, tokenizer, make_tasks(), answer_bpb=wanted), list(tokens)
    (without, few), (having, many) = found[False], found[True]
    assert few == many
    for one, other in zip(without.records, having.records, strict=True):
        assert one.keys() == other.keys() - {"answer_bits", "answer_bytes", "wrong_bits", "wrong_bytes"}
        assert one["losses"] == pytest.approx(other["losses"], abs=1e-5)
        assert {**one, "losses": 0} == {key: value for key, value in {**other, "losses": 0}.items() if key in one}
    assert not any("answer" in row.metric for row in without.rows)


def _share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", timedelta(seconds=120), world_size=2, rank=rank)
    tokenizer = Tokenizer.load(folder)
    share = evaluate_core(make_model(tokenizer.vocab_size), tokenizer, make_tasks(), rank=rank, world_size=2)
    rows = {f"{row.task} {row.metric}": row.value for row in share.rows}
    Path(folder, f"{rank}.json").write_text(json.dumps([share.records, rows]))
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_measure_what_one_does(model, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    mp.spawn(_share, (str(tmp_path),), nprocs=2)
    alone = evaluate_core(model, tokenizer, make_tasks())
    for rank in range(2):
        records, rows = json.loads((tmp_path / f"{rank}.json").read_text())
        for one, other in zip(records, alone.records, strict=True):
            assert (one["id"], one["answer_bytes"]) == (other["id"], other["answer_bytes"])
            assert [one["answer_bits"], *one["wrong_bits"]] == pytest.approx(
                [other["answer_bits"], *other["wrong_bits"]], rel=1e-5
            )
        assert rows == pytest.approx({f"{row.task} {row.metric}": row.value for row in alone.rows}, rel=1e-5)


@pytest.mark.parametrize("evaluate", [letters, worked, tutor, facts])
def test_an_interrupted_evaluation_goes_on_to_the_same_bits(model, tokenizer, evaluate, tmp_path, monkeypatch):
    whole = evaluate(model, tokenizer)
    monkeypatch.setattr("nanochat_pl.eval.ask.CHUNK_ROWS", 1)
    monkeypatch.setattr("nanochat_pl.eval.chat.CHUNK_ROWS", 1)
    path = tmp_path / "examples.jsonl"

    def interrupt(answered, asked):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, log=ExampleLog(path, "c"), progress=interrupt)
    resumed = evaluate(model, tokenizer, log=ExampleLog(path, "c"))
    assert resumed.num_answered == 2
    for one, other in zip(resumed.records, whole.records, strict=True):
        assert one["answer_bits"] == pytest.approx(other["answer_bits"], rel=1e-5)


def test_answers_logged_before_the_measure_existed_are_left_out_of_it(model, tokenizer, tmp_path):
    log = ExampleLog(tmp_path / "examples.jsonl", "c")
    first = letters(model, tokenizer, LETTERS[:2], answer_bpb=False, log=log)
    assert not any("answer_bits" in record for record in first.records)
    assert "answer_bpb" not in {row.metric for row in first.rows}
    both = letters(model, tokenizer, log=ExampleLog(tmp_path / "examples.jsonl", "c"))
    assert (find_row(both.rows, "accuracy").n, find_row(both.rows, "answer_bpb").n) == (3, 1)


def test_of_many_tasks_the_line_of_the_log_tells_the_means_alone_and_never_what_has_no_better():
    def evaluation(num_tasks: int, *more: MetricRow) -> Evaluation:
        names = ("accuracy", "answer_bpb", "wrong_bpb", "num_fewshot")
        rows = [MetricRow(task=f"t{n}", metric=name, value=1.0, n=9) for n in range(num_tasks) for name in names]
        return Evaluation(records=[], rows=[*rows, *more], seconds=1.0, num_answered=9)

    over_all = [MetricRow(task="CORE", metric=name, value=2.0, n=9) for name in ("answer_bpb", "core_metric")]
    assert list(told("core", evaluation(22, *over_all))) == ["core/CORE/answer_bpb", "core_metric"]
    assert list(told("core", evaluation(2, *over_all)))[:2] == ["core/t0/accuracy", "core/t0/answer_bpb"]
    assert len(told("chat", evaluation(12))) == 24
    assert list(told("arc", evaluation(1))) == ["arc/t0/accuracy", "arc/t0/answer_bpb"]


# --- characters, lengths, borders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["été", "猫 and 🙂", "e\u0301", "ß\u00a0", "half of a pair: \ud83d"])
def test_bytes_are_those_of_utf_8(tokenizer, text):
    encoded = len(text.encode("utf-8", errors="surrogatepass"))
    told = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
    message, after = answer_of_message(tokenizer, told), answer_of_text(tokenizer, f"It is {text}", "It is ")
    assert (message.num_bytes, after.num_bytes) == (encoded, encoded + 1)
    assert list(message.ids) == tokenizer.encode(text)


def test_a_token_that_merges_question_and_answer_counts_whole_and_the_bytes_are_the_answers(tokenizer, model):
    assert len(tokenizer.encode("()")) == 1
    answer = answer_of_text(tokenizer, "f()", "f(")
    assert [token for token, own in zip(answer.ids, answer.counts) if own] == tokenizer.encode("()")
    assert answer.num_bytes == 1
    examples = [{"context": "a g(", "continuation": ") on"}]
    task = CoreTask(label="t", type="language_modeling", num_fewshot=0, baseline=0, examples=examples, delimiter="")
    (record,) = evaluate_core(model, tokenizer, [task]).records
    given = [tokenizer.bos_id, *tokenizer.encode("a g")]
    assert record["answer_bits"] == pytest.approx(bits(model, given, tokenizer.encode("() on")), rel=1e-4)
    assert record["answer_bytes"] == 4
    with pytest.raises(ValueError, match="does not begin with 'g'"):
        answer_of_text(tokenizer, "f()", "g")


def test_an_empty_answer_is_not_measured_and_said(model, tokenizer, caplog):
    questions = [
        multiple_choice(chosen(0, ("", "salt"), "A")),
        multiple_choice(chosen(1, ("", "salt"), "B")),
        multiple_choice(chosen(2, ("a mat", "", "the sea"), "A")),
    ]
    evaluation = letters(model, tokenizer, questions)
    assert [record["answer_bits"] is None for record in evaluation.records] == [True, False, False]
    assert [[b is None for b in record["wrong_bits"]] for record in evaluation.records] == [
        [False],
        [True],
        [True, False],
    ]
    assert {row.metric: row.n for row in evaluation.rows if "b" in row.metric or "margin" in row.metric} == {
        "answer_bpb": 2,
        "wrong_bpb": 2,
        "answer_margin": 1,
    }
    assert "leave out 1 of 3 questions: 1 have an empty answer, 0 one that is longer" in caplog.text


def test_a_prompt_makes_room_for_its_answer_and_an_answer_beyond_all_positions_is_not_measured(tokenizer, caplog):
    model = make_model(tokenizer.vocab_size, sequence_len=6)
    limit = model.config.rotary_rows
    told = [{"role": "user", "content": "z " * 60}, {"role": "assistant", "content": "salt"}]
    long = {"id": "long", "messages": told, "answer": "salt"}
    endless = {"id": "endless", "messages": [WORKED[0]["messages"][0], {**told[1], "content": "z" * limit}]}
    evaluation = worked(model, tokenizer, [long, endless, WORKED[0]])
    cut, none, short = evaluation.records
    ids = tokenizer.render_for_completion(long)
    answer = tokenizer.encode("salt")
    begin = [ids[0], tokenizer.special_id("<|user_start|>")]
    kept = ids[len(ids) - (limit - len(answer) - 2) :]
    assert len(ids) > limit
    assert cut["answer_bits"] == pytest.approx(bits(model, [*begin, *kept], answer), rel=1e-4)
    assert (none["answer_bits"], none["answer_bytes"]) == (None, limit)
    assert short["answer_bits"] is not None
    assert find_row(evaluation.rows, "answer_bpb").n == 2
    assert "leave out 1 of 3 questions: 0 have an empty answer, 1 one that is longer" in caplog.text
    few = score_answers(model, tokenizer, [ids], [[answer_of_message(tokenizer, long)]], max_prompt_tokens=5)
    assert few[0]["answer_bits"] == pytest.approx(bits(model, [*begin, *ids[-3:]], answer), rel=1e-4)


def test_in_core_an_answer_that_lost_its_beginning_is_not_measured(tokenizer, caplog):
    model = make_model(tokenizer.vocab_size, sequence_len=3)
    limit = model.config.rotary_rows
    examples = [{"context": "the cat", "continuation": "z" * length} for length in (limit - 1, limit, 3)]
    task = CoreTask(label="t", type="language_modeling", num_fewshot=0, baseline=0, examples=examples)
    found = {record["expected"]: record for record in evaluate_core(model, tokenizer, [task]).records}
    begins = {text: len(tokenizer.encode(f" {text}")) for text in found}
    for text, record in found.items():
        assert (record["answer_bits"] is None) == (begins[text] >= limit)
    assert sum(record["answer_bits"] is None for record in found.values()) in (1, 2)
    assert "t: the bits per byte of the answer leave out" in caplog.text


def test_broken_weights_are_named(tokenizer):
    broken = make_model(tokenizer.vocab_size)
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match="not finite"):
        score_answers(broken, tokenizer, [[1, 2, 3]], [[answer_of_text(tokenizer, "salt")]])


def test_a_wrong_choice_of_the_same_words_has_no_margin(model, tokenizer):
    (found,) = letters(model, tokenizer, [multiple_choice(chosen(0, ("salt", "salt"), "B"))]).records
    assert found["wrong_bits"] == [found["answer_bits"]]
