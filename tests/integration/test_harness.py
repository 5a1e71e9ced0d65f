"""lm-evaluation-harness on our models: every kind of request against plain forwards, the engine and CORE's scoring.

The first half needs no harness; the second runs it on local task files with all sockets shut, where it is installed.
"""

import json
import logging
import random
import socket
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from nanochat_pl.engine import Engine
from nanochat_pl.eval.core import make_rows
from nanochat_pl.eval.core_scoring import score_items
from nanochat_pl.eval.harness import run_harness
from nanochat_pl.eval.harness_model import HarnessModel, generation_settings, windows
from nanochat_pl.eval.results import ExampleLog, results_document
from nanochat_pl.eval.stats import wilson_interval
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

CONTEXT = 48
TEXT = "The cat sat on the mat. A dog ran to the red house, and the bird flew over a tall tree. 2 + 3 = 5.\n"
QUESTIONS = [
    {"question": "Where did the cat sit?", "choices": ["mat", "red house", "tall tree"], "gold": 0},
    {"question": "Who ran to the house?", "choices": ["bird", "dog", "cat"], "gold": 1},
    {"question": "What flew over a tree?", "choices": ["dog", "the bird", "mat"], "gold": 1},
    {"question": "2 + 3 =", "choices": ["5", "6", "the tree"], "gold": 0},
]


@dataclass
class Asked:
    """A request, as much of the harness's class as the model reads."""

    args: tuple
    doc_id: int = 0
    task_name: str = "test"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT] * 20 + [q["question"] for q in QUESTIONS], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = GPT(
        GPTConfig(sequence_len=CONTEXT, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    # Long enough that it writes words, so that what it writes can be encoded again.
    ids = torch.tensor([tokenizer.encode(TEXT * 2, prepend=tokenizer.bos_id)[: CONTEXT + 1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return Engine(model, {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}, tokenizer=tokenizer)


@pytest.fixture
def asks(model, tokenizer, engine):
    """Make a `HarnessModel` with settings."""
    return lambda **settings: HarnessModel(model, tokenizer, engine, **settings)


def by_forward(model, ids, start):
    """Sum ln p of ids from `start` on in one forward over the whole row, and say whether all are the likeliest."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    scored = torch.tensor(ids[start:])
    rows = logits[start - 1 :]
    return rows[torch.arange(len(scored)), scored].sum().item(), bool((rows.argmax(-1) == scored).all())


# --- log-likelihoods


def test_a_continuation_is_as_likely_as_a_plain_forward_says(asks, model, tokenizer):
    requests = [
        Asked((f"Q: {q['question']}\nA:", f" {choice}"), number)
        for number, q in enumerate(QUESTIONS)
        for choice in q["choices"]
    ]
    answers = asks().loglikelihood(requests)
    for request, (total, greedy) in zip(requests, answers, strict=True):
        context, continuation = (tokenizer.encode(text) for text in request.args)
        assert tokenizer.encode("".join(request.args)) == context + continuation
        expected, likeliest = by_forward(model, [tokenizer.bos_id, *context, *continuation], 1 + len(context))
        assert total == pytest.approx(expected, abs=1e-4)
        assert greedy == likeliest


def test_what_the_model_itself_would_write_is_greedy_and_other_words_are_not(asks, tokenizer, engine):
    context = "The cat sat on"
    written = engine.generate([tokenizer.encode(context, prepend=tokenizer.bos_id)], 6)[0].tokens
    text = tokenizer.decode(written)
    assert tokenizer.encode(context + text)[-len(written) :] == written
    answers = asks().loglikelihood([Asked((context, text)), Asked((context, f" red{text}"))])
    assert [greedy for _, greedy in answers] == [True, False]


def test_mean_losses_are_those_of_core(asks, model, tokenizer):
    for question in QUESTIONS:
        texts = [f"Question: {question['question']}\nAnswer: {choice}" for choice in question["choices"]]
        rows = make_rows("multiple_choice", tokenizer.encode(texts, prepend=tokenizer.bos_id))
        core = score_items(model, [rows])[0]
        prompt = tokenizer.decode(rows[0].ids[1 : rows[0].start])
        answers = asks().loglikelihood([Asked((prompt, text.removeprefix(prompt))) for text in texts])
        for row, score, (total, _) in zip(rows, core, answers, strict=True):
            assert -total / (len(row.ids) - row.start) == pytest.approx(score.mean_loss, abs=1e-5)


def test_white_space_before_the_border_belongs_to_the_continuation(asks, model, tokenizer):
    ((total, _),) = asks().loglikelihood([Asked(("The cat sat \n", "on"))])
    assert total == pytest.approx(
        by_forward(
            model,
            tokenizer.encode("The cat sat \non", prepend=tokenizer.bos_id),
            1 + len(tokenizer.encode("The cat sat")),
        )[0],
        abs=1e-4,
    )


def test_a_token_that_reaches_over_the_border_is_scored(asks, model, tokenizer):
    (token,) = tokenizer.encode(" the")
    context = "A dog ran to t"
    ids = tokenizer.encode(f"{context}he", prepend=tokenizer.bos_id)
    assert ids[-1] == token
    ((total, _),) = asks().loglikelihood([Asked((context, "he"))])
    assert total == pytest.approx(by_forward(model, ids, len(ids) - 1)[0], abs=1e-4)


def test_without_a_context_all_is_scored_behind_bos_and_nothing_is_certain(asks, model, tokenizer):
    whole, nothing = asks().loglikelihood([Asked(("", "The cat")), Asked(("The cat", ""))])
    ids = tokenizer.encode("The cat", prepend=tokenizer.bos_id)
    assert whole[0] == pytest.approx(by_forward(model, ids, 1)[0], abs=1e-4)
    assert nothing == (0.0, True)


def test_long_context_loses_its_beginning_with_a_warning(asks, model, tokenizer, caplog):
    context = TEXT * 3
    with caplog.at_level(logging.WARNING):
        ((total, _),) = asks().loglikelihood([Asked((context.strip(), " The cat"))])
    ids = tokenizer.encode(f"{context.strip()} The cat")
    scored = len(tokenizer.encode(" The cat"))
    kept = ids[-CONTEXT - 1 :]
    assert total == pytest.approx(by_forward(model, kept, len(kept) - scored)[0], abs=1e-4)
    assert "loglikelihood: 1 of 1 requests are longer than the model's context of 48 tokens" in caplog.text


@pytest.mark.parametrize("length", [0, 1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 2 * CONTEXT + 7])
def test_windows_score_each_token_once_with_as_much_context_as_there_is(length):
    ids = list(range(length + 1))
    rows = list(windows(ids, 1, CONTEXT))
    assert [token for row in rows for token in row.ids[row.start :]] == ids[1:]
    assert all(len(row.ids) == CONTEXT + 1 for row in rows[1:])
    assert all(row.start >= 1 and len(row.ids) <= CONTEXT + 1 for row in rows)


def test_a_text_is_the_sum_of_its_windows(asks, model, tokenizer):
    texts = ["The cat sat.", TEXT * 4, ""]
    answers = asks().loglikelihood_rolling([Asked((text,), number) for number, text in enumerate(texts)])
    for text, total in zip(texts, answers, strict=True):
        ids = tokenizer.encode(text, prepend=tokenizer.bos_id)
        parts = [by_forward(model, list(row.ids), row.start)[0] for row in windows(ids, 1, CONTEXT)]
        assert total == pytest.approx(sum(parts), abs=1e-3)
    assert len(parts) == 0 and answers[2] == 0.0


# --- writing


def test_written_text_is_the_engines_up_to_the_first_stop_string(asks, tokenizer, engine):
    contexts = ["The cat", "A dog ran", "2 + 3 ="]
    free = [
        tokenizer.decode(done.tokens)
        for done in engine.generate(tokenizer.encode(contexts, prepend=tokenizer.bos_id), 20)
    ]
    assert asks().generate_until([Asked((c, {"max_gen_toks": 20})) for c in contexts]) == free
    for context, text in zip(contexts, free, strict=True):
        stop, other = text[5:8], text[9:11]
        assert asks().generate_until([Asked((context, {"until": [other, stop], "max_gen_toks": 20}))]) == [
            text[: min(text.find(stop), text.find(other))]
        ]


def test_stop_string_ends_generation(model, tokenizer, engine):
    class Counting:
        def __init__(self):
            self.tokens = 0

        def run(self, requests, batch_size, on_token):
            def count(i, token, sampled):
                self.tokens += 1
                return on_token(i, token, sampled)

            return engine.run(requests, batch_size, count)

    counting = Counting()
    free = tokenizer.decode(engine.generate([tokenizer.encode("The cat", prepend=tokenizer.bos_id)], 30)[0].tokens)
    HarnessModel(model, tokenizer, counting).generate_until([Asked(("The cat", {"until": free[1:3]}))])
    assert counting.tokens <= 3


def test_samples_of_one_question_differ_and_come_again(asks):
    requests = [Asked(("The", {"do_sample": True, "temperature": 3, "max_gen_toks": 8}))] * 3
    first = asks(seed=1).generate_until(requests)
    assert len(set(first)) == 3
    assert asks(seed=1).generate_until(requests) == first
    assert asks(seed=2).generate_until(requests) != first


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": True, "temperature": 0}, 0.0),
    ],
)
def test_answers_are_drawn_only_where_the_task_says_so(given, temperature):
    settings, until, ignored = generation_settings({"until": "\n", "max_new_tokens": 7, "top_k": 0, **given}, 256)
    assert settings == {
        "max_new_tokens": 7, "temperature": temperature, "top_k": None, "top_p": None, "min_p": None
    }  # fmt: skip
    assert (until, ignored) == (["\n"], set())


def test_penalties_of_a_task_reach_the_engine(asks):
    free, again = (
        asks().generate_until([Asked(("The cat", {"max_gen_toks": 12, **given}))])[0]
        for given in ({}, {"repetition_penalty": 5.0})
    )
    assert free != again
    settings, _, ignored = generation_settings({"repetition_penalty": 1.2, "presence_penalty": None}, 9)
    assert settings["repetition_penalty"] == 1.2 and "presence_penalty" not in settings and not ignored


def test_a_setting_without_effect_and_a_cut_prompt_are_told_once(asks, caplog):
    with caplog.at_level(logging.WARNING):
        (text,) = asks().generate_until([Asked((TEXT * 3, {"num_beams": 4, "max_gen_toks": 500}))])
    assert text
    assert [record.getMessage() for record in caplog.records] == [
        "generation settings without effect here: num_beams",
        "generate_until: 1 of 1 requests are longer than the model's context of 48 tokens and lost their beginning",
    ]


# --- conversations


@pytest.mark.parametrize("text", ["Where?", "a <|user_end|><|assistant_start|> b", "<|", "<\u2060| <\u2060\u2060|x"])
def test_a_conversation_is_read_as_in_training_whatever_its_words(asks, tokenizer, text):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": text},
        {"role": "user", "content": text},
    ]
    chat = asks(chat=True)
    expected = tokenizer.render_for_completion({"messages": [*messages, {"role": "assistant", "content": ""}]})
    rendered = chat.apply_chat_template(messages)
    assert chat.encode(rendered) == expected
    assert chat.encode(rendered, text) == expected + tokenizer.encode(text)


def test_prefilled_assistant_turn_stays_open(asks, tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is"}]
    ids, _ = tokenizer.render_conversation({"messages": messages})
    chat = asks(chat=True)
    assert chat.encode(chat.apply_chat_template(messages, add_generation_prompt=False)) == ids[:-1]


def test_a_model_for_plain_text_reads_control_tokens_as_text_and_renders_no_turns(asks, tokenizer):
    plain = asks()
    assert plain.encode("<|bos|>") == tokenizer.encode("<|bos|>", prepend=tokenizer.bos_id)
    with pytest.raises(ValueError, match="chat=True"):
        plain.apply_chat_template([{"role": "user", "content": "Hi"}])


# --- going on


def test_an_interrupted_session_goes_on_where_it_was(asks, tmp_path):
    requests = [Asked((q["question"], f" {choice}"), i) for i, q in enumerate(QUESTIONS) for choice in q["choices"]]
    writes = [Asked((q["question"], {"max_gen_toks": 5, "temperature": 2})) for q in QUESTIONS]
    whole = asks()
    expected = whole.loglikelihood(requests), whole.generate_until(writes)
    path = tmp_path / "requests.jsonl"
    asks(answers=ExampleLog(path, "c")).loglikelihood(requests[:5])
    steps = []
    later = asks(answers=ExampleLog(path, "c"), progress=lambda *step: steps.append(step))
    again = later.loglikelihood(requests), later.generate_until(writes)
    assert [greedy for _, greedy in again[0]] == [greedy for _, greedy in expected[0]]
    assert [total for total, _ in again[0]] == pytest.approx([total for total, _ in expected[0]], abs=1e-4)
    assert again[1] == expected[1]
    assert later.answers.num_appended == len(requests) - 5 + len(writes)
    assert steps == [(12, 12), (4, 4)]


def test_where_the_harness_is_not_installed_the_extra_is_named(monkeypatch, model, tokenizer, engine):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'nanochat-pl\[lm-eval\]'"):
        run_harness(model, tokenizer, engine, ["arc_easy"])


@pytest.mark.parametrize(
    ("settings", "wrong"), [({"limit": 0}, "limit=0"), ({"num_fewshot": -1}, "num_fewshot=-1")], ids=["limit", "shots"]
)
def test_limit_and_num_fewshot_out_of_range_are_refused_first(settings, wrong):
    with pytest.raises(ValueError, match=wrong):
        run_harness(None, None, None, ["arc_easy"], **settings)


# --- with the harness

TASKS = {
    "choose": """
        output_type: multiple_choice
        doc_to_text: "Q: {{question}}\\nA:"
        doc_to_target: gold
        doc_to_choice: choices
        fewshot_split: test
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "finish": """
        output_type: loglikelihood
        doc_to_text: "Q: {{question}}\\nA:"
        doc_to_target: " {{choices[gold]}}"
        metric_list: [{metric: acc}, {metric: perplexity}]
    """,
    "read": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{question}} {{text}}"
        metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
    """,
    "write": """
        output_type: generate_until
        doc_to_text: "Q: {{question}}\\nA:"
        doc_to_target: "{{choices[gold]}}"
        generation_kwargs: {until: ["e"], max_gen_toks: 12}
        filter_list:
          - {name: none, filter: [{function: take_first}]}
          - {name: first_word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
        metric_list: [{metric: exact_match}]
    """,
}


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """Task files over a local JSONL; sockets are shut and the cache of data sets is empty."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    import datasets

    def shut(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", shut)
    monkeypatch.setattr(socket, "getaddrinfo", shut)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data, folder = tmp_path / "questions.jsonl", tmp_path / "tasks"
    folder.mkdir()
    data.write_text("".join(json.dumps({**q, "text": TEXT * 3}) + "\n" for q in QUESTIONS), encoding="utf-8")
    for name, text in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        body = "".join(line[8:] + "\n" for line in text.strip("\n").splitlines())
        (folder / f"{name}.yaml").write_text(head + body, encoding="utf-8")
    (folder / "all.yaml").write_text(
        "group: both\ntask: [choose, finish]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
        encoding="utf-8",
    )
    return folder


def rows_of(evaluation):
    return {(row.task, row.metric): row for row in evaluation.rows}


@pytest.mark.slow
class TestWithTheHarness:
    def run(self, model, tokenizer, engine, folder, tasks=tuple(TASKS), **settings):
        settings = {"include_path": folder, "offline": True} | settings
        return run_harness(model, tokenizer, engine, list(tasks), **settings)

    def test_figures_are_our_own_numbers_on_the_same_items(self, model, tokenizer, engine, task_folder):
        evaluation = self.run(model, tokenizer, engine, task_folder)
        rows, records = rows_of(evaluation), {record["id"]: record for record in evaluation.records}
        right, wanted, total_nats, total_bytes = 0, [], 0.0, 0
        for number, question in enumerate(QUESTIONS):
            prompt = tokenizer.encode(f"Q: {question['question']}\nA:", prepend=tokenizer.bos_id)
            totals = [
                by_forward(model, prompt + tokenizer.encode(f" {choice}"), len(prompt))[0]
                for choice in question["choices"]
            ]
            picked = int(np.argmax(totals))
            right += picked == question["gold"]
            wanted.append(totals[question["gold"]])
            record = records[f"choose/{number}"]
            assert record["loglikelihoods"] == pytest.approx(totals, abs=1e-4)
            assert (record["picked"], record["output"]) == (picked, question["choices"][picked])
            assert record["expected"] == question["choices"][question["gold"]]
            assert record["correct"] == (picked == question["gold"])
            assert record["prompt_tokens"] == len(prompt)
            assert not record["prompt_cut"]

            text = f"{question['question']} {TEXT * 3}"
            ids = tokenizer.encode(text, prepend=tokenizer.bos_id)
            nats = sum(by_forward(model, list(row.ids), row.start)[0] for row in windows(ids, 1, CONTEXT))
            assert records[f"read/{number}"]["loglikelihoods"] == pytest.approx([nats], abs=1e-3)
            total_nats, total_bytes = total_nats + nats, total_bytes + len(text.encode())

            free = tokenizer.decode(engine.generate([prompt], 12)[0].tokens)
            assert records[f"write/{number}"]["output"] == free.partition("e")[0]
        assert rows["choose", "acc"].count == right
        assert rows["choose", "acc"].interval == wilson_interval(right, len(QUESTIONS))
        assert rows["choose", "acc"].baseline == {"chance": pytest.approx(1 / 3)}
        assert rows["finish", "perplexity"].value == pytest.approx(np.exp(-np.mean(wanted)), rel=1e-4)
        around = rows["finish", "perplexity"].interval
        assert around.low < rows["finish", "perplexity"].value < around.high
        assert rows["read", "bits_per_byte"].value == pytest.approx(-total_nats / total_bytes / np.log(2), rel=1e-5)
        assert {metric for task, metric in rows if task == "write"} == {
            "exact_match",
            "first_word/exact_match",
            "prompt_cut_rate",
        }
        assert {"write/0", "write/0/first_word"} <= records.keys()
        assert evaluation.num_answered == 4 * len(QUESTIONS)
        json.dumps(
            results_document(evaluation, name="lm_eval", checkpoint={"path": "x", "hash": "y"}, config={}),
            allow_nan=False,
        )
        json.dumps(evaluation.records, allow_nan=False)

    def test_windows_are_the_harnesss(self, tokenizer, task_folder):
        from lm_eval.utils import get_rolling_token_windows

        for length in range(1, 4 * CONTEXT):
            ids = list(range(1, length + 1))
            theirs = list(get_rolling_token_windows(ids, 0, CONTEXT, 1))
            ours = list(windows([0, *ids], 1, CONTEXT))
            assert [(list(row.ids[:-1]), list(row.ids[row.start :])) for row in ours] == [(a, b) for a, b in theirs]

    def test_answers_are_those_of_the_harnesss_own_model_class(self, asks, model, tokenizer, task_folder):
        from lm_eval.api.model import TemplateLM

        class Plain(TemplateLM):
            """One row at a time, in a plain forward; texts are cut and windows laid by the harness."""

            eot_token_id = tokenizer.bos_id

            def tok_encode(self, string, add_special_tokens=None, **_):
                return tokenizer.encode(string, prepend=None if add_special_tokens is False else tokenizer.bos_id)

            def _loglikelihood_tokens(self, requests, **_):
                pairs = [
                    ((context + continuation)[-CONTEXT - 1 :], len(continuation))
                    for _, context, continuation in requests
                ]
                return [by_forward(model, ids, len(ids) - scored) for ids, scored in pairs]

            def loglikelihood_rolling(self, requests, disable_tqdm=False):
                raise NotImplementedError

            generate_until = loglikelihood_rolling

        contexts = ["", "The cat sat", f"{TEXT}The dog ", "2 + 3 =\n", TEXT * 2]
        requests = [
            Asked((context, continuation), number)
            for number, context in enumerate(contexts)
            for continuation in (" on the mat.", " 5", "  A red house\n")
        ]
        ours, theirs = asks().loglikelihood(requests), Plain().loglikelihood(requests, disable_tqdm=True)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], abs=1e-4)

    def test_a_group_has_a_row_of_its_own_and_a_path_is_a_task(self, model, tokenizer, engine, task_folder):
        rows = rows_of(
            self.run(model, tokenizer, engine, task_folder, ["both", str(task_folder / "read.yaml")], limit=3)
        )
        parts = [rows[name, "acc"] for name in ("choose", "finish")]
        assert rows["both", "acc"].n == 6
        assert rows["both", "acc"].value == pytest.approx(sum(part.value for part in parts) / 2)
        assert rows["read", "bits_per_byte"].n == 3

    def test_data_that_are_not_here_are_named_with_what_to_do(self, model, tokenizer, engine, task_folder):
        text = (task_folder / "choose.yaml").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith("dataset_kwargs")]
        (task_folder / "far.yaml").write_text(
            "\n".join(lines).replace("task: choose", "task: far").replace("path: json", "path: nobody/nothing"),
            encoding="utf-8",
        )
        with pytest.raises(FileNotFoundError, match=r"'nobody/nothing'.*the data of far.*HF_HOME"):
            self.run(model, tokenizer, engine, task_folder, ["far"])

    def test_a_limit_and_solved_examples_reach_the_model(self, model, tokenizer, engine, task_folder):
        few = self.run(model, tokenizer, engine, task_folder, ["choose"], num_fewshot=1, limit=2)
        none = self.run(model, tokenizer, engine, task_folder, ["choose"], limit=0.5)
        assert len(few.records) == len(none.records) == 2
        for solved, alone in zip(few.records, none.records, strict=True):
            assert solved["prompt"].endswith(alone["prompt"])
            assert solved["prompt"].count("Q:") == 2

    def test_in_conversations_the_prompt_is_a_turn(self, model, tokenizer, engine, task_folder):
        evaluation = self.run(
            model, tokenizer, engine, task_folder, ["choose", "write"], chat=True, num_fewshot=2, system_prompt="Hi."
        )
        record = evaluation.records[0]
        assert record["prompt"].startswith("<|bos|><|user_start|>Hi.\n\nQ: ")
        assert record["prompt"].count("<|assistant_start|>") == 3
        ids = HarnessModel(model, tokenizer, engine, chat=True).encode(record["prompt"])
        assert ids[-1] == tokenizer.special_id("<|assistant_start|>")
        assert record["prompt_tokens"] == len(ids) > CONTEXT
        assert all(record["prompt_cut"] for record in evaluation.records)
        assert rows_of(evaluation)["choose", "prompt_cut_rate"].count == len(QUESTIONS)

    def test_nothing_is_asked_twice_after_an_interruption(self, model, tokenizer, engine, task_folder, tmp_path):
        path = tmp_path / "requests.jsonl"
        first = self.run(model, tokenizer, engine, task_folder, limit=2, answers=ExampleLog(path, "c"))
        second = self.run(model, tokenizer, engine, task_folder, answers=ExampleLog(path, "c"))
        assert (first.num_answered, second.num_answered) == (8, 8)
        again = self.run(model, tokenizer, engine, task_folder, answers=ExampleLog(path, "c"))
        assert again.num_answered == 0
        assert again.records == second.records

    def test_the_callers_random_streams_are_left_as_they_were(self, model, tokenizer, engine, task_folder):
        random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
        expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
        self.run(model, tokenizer, engine, task_folder, ["choose", "write"])
        assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002

    def test_unknown_task_error_suggests_similar_names(self, model, tokenizer, engine, task_folder):
        with pytest.raises(ValueError, match=r"no task 'chose', only .*choose"):
            self.run(model, tokenizer, engine, task_folder, ["chose"])
        with pytest.raises(ValueError, match="is no folder"):
            self.run(model, tokenizer, engine, task_folder / "none", ["choose"])
