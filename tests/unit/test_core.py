"""CORE: prompts by the rules, the same numbers in any batch, and records that an evaluation goes on from."""

import csv
import json
import random
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from nanochat_pl.eval import core_scoring
from nanochat_pl.eval.core import core_csv, evaluate_core, make_rows, summarize_core
from nanochat_pl.eval.core_scoring import LineEncoder, Row, score_items
from nanochat_pl.eval.core_tasks import CoreTask, load_bundle, make_prompts
from nanochat_pl.eval.results import ExampleLog
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import SPLIT_PATTERN, Tokenizer

TEXT = "the cat sat on a mat and ate 12 red figs, then it (slowly) slept until noon; nobody minded at all"
WORDS = TEXT.split()


def words(chance: random.Random, low: int, high: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))


def make_tasks(num_examples: int = 9, num_fewshot: int = 3) -> list[CoreTask]:
    """One task of each type, with examples of all lengths."""
    chance = random.Random(0)
    settings = {"num_fewshot": num_fewshot, "baseline": 0.25}
    choice = [
        {
            "query": f"Question: {words(chance, 1, 20)}?",
            "choices": [words(chance, 1, 12) for _ in range(4)],
            "gold": chance.randrange(4),
        }
        for _ in range(num_examples)
    ]
    schema = [
        {
            "context_options": [f"{given} {name}" for name in ("the cat", "nobody")],
            "continuation": words(chance, 1, 6),
            "gold": chance.randrange(2),
        }
        for given in (words(chance, 1, 30) for _ in range(num_examples))
    ]
    language = [{"context": words(chance, 1, 30), "continuation": words(chance, 1, 3)} for _ in range(num_examples)]
    return [
        CoreTask(label="choice", type="multiple_choice", examples=choice, delimiter="\nAnswer: ", **settings),
        CoreTask(label="schema", type="schema", examples=schema, **settings),
        CoreTask(label="language", type="language_modeling", examples=language, **settings),
    ]


TASKS = make_tasks()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT, "Question: the?\nAnswer: a cat\n\n"] * 20, 320)


def make_model(vocab_size: int, sequence_len: int = 256) -> GPT:
    model = GPT(
        GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer.vocab_size)


@pytest.fixture(scope="module")
def evaluation(model, tokenizer):
    return evaluate_core(model, tokenizer, TASKS)


def items_of(tasks, tokenizer) -> list[list[Row]]:
    encoder = LineEncoder(tokenizer)
    return [
        make_rows(task.type, encoder.encode(make_prompts(task, task.sample(), index).texts))
        for task in tasks
        for index in range(len(task.examples))
    ]


@torch.no_grad()
def read_whole(model: GPT, row: Row) -> tuple[list[float], list[int]]:
    """Score a row in the plain way: alone, in full, with logits of every token."""
    logits = model(torch.tensor([list(row.ids)]))[0, row.start - 1 : -1]
    targets = torch.tensor(list(row.ids)[row.start :])
    return F.cross_entropy(logits, targets, reduction="none").tolist(), logits.argmax(dim=-1).tolist()


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_solved_examples_and_the_question():
    choice, schema, language = make_tasks(num_examples=3, num_fewshot=1)
    example, shot = choice.sample()[0], None
    texts = make_prompts(choice, choice.sample(), 0).texts
    shot = next(e for e in choice.examples if texts[0].startswith(e["query"]))
    before = f"{shot['query']}\nAnswer: {shot['choices'][shot['gold']]}\n\n"
    assert texts == [f"{before}{example['query']}\nAnswer: {c}" for c in example["choices"]]

    texts = make_prompts(schema, schema.sample(), 0).texts
    for text, option in zip(texts, schema.sample()[0]["context_options"], strict=True):
        assert text.endswith(f"\n\n{option} {schema.sample()[0]['continuation']}")

    without, whole = make_prompts(language, language.sample(), 0).texts
    assert whole == f"{without} {language.sample()[0]['continuation']}"


def test_a_context_is_stripped_and_its_delimiter_goes_with_the_continuation():
    task = CoreTask(
        label="t",
        type="language_modeling",
        num_fewshot=0,
        baseline=0.0,
        examples=[{"context": "  x \n", "continuation": " y "}],
        delimiter="\nAnswer: ",
    )
    assert make_prompts(task, task.sample(), 0).texts == ["x\nAnswer:", "x\nAnswer:  y "]


@pytest.mark.parametrize(("size", "shots"), [(2, 1), (12, 10), (40, 10), (500, 3)])
def test_solved_examples_are_drawn_as_from_a_list_without_the_question(size, shots):
    examples = [{"context": f"c{number}", "continuation": f"d{number}"} for number in range(size)]
    task = CoreTask(label="t", type="language_modeling", num_fewshot=shots, baseline=0.0, examples=examples)
    for index in {0, 1, size // 2, size - 1}:
        others = [i for i in range(size) if i != index]
        drawn = random.Random(1234 + index).sample(others, shots)
        before = "".join(f"c{i} d{i}\n\n" for i in drawn)
        assert make_prompts(task, examples, index).texts[1] == f"{before}c{index} d{index}"


def test_the_order_is_fixed_and_a_limit_keeps_its_beginning():
    task = TASKS[0]
    expected = list(task.examples)
    random.Random(1337).shuffle(expected)
    assert task.sample() == expected
    assert task.sample(4) == expected[:4]
    with pytest.raises(ValueError, match="max_per_task=0"):
        task.sample(0)


def test_few_shot_pool_smaller_than_num_fewshot_is_used_up_and_recorded(model, tokenizer):
    few = evaluate_core(model, tokenizer, TASKS, max_per_task=2)
    assert [record["num_fewshot"] for record in few.records] == [1] * 6
    assert [row.value for row in few.rows if row.metric == "num_fewshot"] == [1.0] * 3
    alone = make_prompts(TASKS[0], TASKS[0].sample(1), 0)
    assert (alone.num_fewshot, alone.texts[0].count("Answer:")) == (0, 1)


# --- tokens and spans ------------------------------------------------------------------------------------------------


def test_scored_tokens_are_those_that_choices_do_not_share():
    assert [r.start for r in make_rows("multiple_choice", [[9, 1, 2, 3], [9, 1, 4], [9, 1, 2]])] == [2, 2, 2]
    assert [r.start for r in make_rows("schema", [[9, 1, 2, 7, 8], [9, 3, 7, 8]])] == [3, 2]
    (row,) = make_rows("language_modeling", [[9, 1, 2], [9, 1, 2, 3, 4]])
    assert (row.ids, row.start) == ([9, 1, 2, 3, 4], 3)
    # contexts that are equal share all: the first token still has nothing that predicts it
    assert [r.start for r in make_rows("schema", [[9, 1], [9, 1]])] == [1, 1]
    # a continuation that merges with the context's end is scored from the merged token on
    (row,) = make_rows("language_modeling", [[9, 1, 2], [9, 1, 5, 6]])
    assert row.start == 2


NASTY = ["\n", "\n\n", "\r\n", "\r", " ", "  ", "\t", "\u2028", "\u0085", "\u00a0", "\x1c", "a", "don't", "'s", "12345"]
NASTY += ["!?", "...", ".\n", "…\n\n", "été", "猫", "🙂", "e\u0301", "\u200b", "Question:", " the", "A", "|", "<|bos|>"]


def test_lines_encoded_once_are_the_whole_texts_tokens(tokenizer):
    chance = random.Random(0)
    texts = ["".join(chance.choices(NASTY, k=chance.randint(0, 30))) for _ in range(3000)]
    encoder = LineEncoder(tokenizer)
    assert encoder.encode(texts) == tokenizer.encode(texts, prepend=tokenizer.bos_id)


def test_a_line_is_encoded_once_until_forgotten_and_another_pattern_never_in_parts(tokenizer):
    class Counting:
        bos_id, encoded = 7, 0

        def __init__(self, pattern):
            self.pattern = pattern

        def encode(self, text, prepend=None):
            if isinstance(text, list):
                return [[prepend, *self.encode(each)] for each in text]
            self.encoded += 1
            return [len(text)]

    ours = Counting(SPLIT_PATTERN)
    encoder = LineEncoder(ours)
    assert encoder.encode(["one\n\ntwo", "one\n\nthree"]) == [[7, 5, 3], [7, 5, 5]]
    assert ours.encoded == 3
    encoder.forget()
    encoder.encode(["two"])
    assert ours.encoded == 4
    # GPT-2's rule leaves the last line feed before a word to that word's chunk
    other = Counting(r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    assert LineEncoder(other).encode(["one\n\ntwo", "one\n\nthree"]) == [[7, 8], [7, 10]]


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_beginnings", [True, False])
@pytest.mark.parametrize("max_batch_tokens", [1, 200, 4000, None])
def test_scores_in_batches_with_shared_beginnings_are_those_of_whole_rows(
    model, tokenizer, share_beginnings, max_batch_tokens
):
    items = items_of(TASKS, tokenizer)
    assert len({len(row.ids) for item in items for row in item}) > 20
    for item, scores in zip(items, score_items(model, items, max_batch_tokens, share_beginnings), strict=True):
        for row, score in zip(item, scores, strict=True):
            losses, predictions = read_whole(model, row)
            assert score.losses == pytest.approx(losses, abs=1e-4)
            assert score.predictions == predictions


def test_scores_do_not_depend_on_how_many_logits_are_held_at_once(model, tokenizer, monkeypatch):
    items = items_of(TASKS, tokenizer)
    whole = score_items(model, items)
    monkeypatch.setattr(core_scoring, "_LOGITS_AT_ONCE", 3 * tokenizer.vocab_size)
    for item, scores in zip(whole, score_items(model, items), strict=True):
        for one, other in zip(item, scores, strict=True):
            assert one.losses == pytest.approx(other.losses, abs=1e-5)


def test_no_forward_exceeds_its_tokens_but_for_a_longer_row(model, tokenizer, monkeypatch):
    seen, hidden = [], model.hidden

    def counted(ids, positions=None, kv_cache=None):
        seen.append((ids.shape, kv_cache))
        return hidden(ids, positions, kv_cache)

    monkeypatch.setattr(model, "hidden", counted)
    items = items_of(TASKS, tokenizer)
    score_items(model, items, 300)
    assert all(rows == 1 or rows * width <= 300 for (rows, width), _ in seen)
    assert all(cache is None or cache.rows == 1 or cache.rows * cache.capacity <= 300 for _, cache in seen)
    read = sum(rows * width for (rows, width), _ in seen)
    assert read < 0.6 * sum(len(row.ids) for item in items for row in item)


def test_rows_up_to_the_rotary_limit_are_scored(tokenizer):
    model = make_model(tokenizer.vocab_size, sequence_len=6)
    chance, limit = random.Random(0), model.config.rotary_rows
    begin = [chance.randrange(300) for _ in range(limit)]
    items = [
        [Row(begin[:20] + [1] * 30, 20), Row([*begin[:20], 2], 20)],
        [Row(begin[:40] + [3] * 20, 40), Row(begin[:40] + [4] * 19, 40)],
    ]
    for item, scores in zip(items, score_items(model, items), strict=True):
        for row, score in zip(item, scores, strict=True):
            assert score.losses == pytest.approx(read_whole(model, row)[0], abs=1e-4)


def test_a_choice_that_another_one_begins_with_has_no_loss_and_cannot_win(model, tokenizer):
    rows = make_rows("multiple_choice", [[9, *range(20)], [9, *range(20), 21], [9, *range(20), 22]])
    (scores,) = score_items(model, [rows])
    assert scores[0].mean_loss is None
    assert [len(score.losses) for score in scores] == [0, 1, 1]
    task = CoreTask(
        label="t",
        type="multiple_choice",
        num_fewshot=0,
        baseline=0.5,
        examples=[{"query": "the cat ate 12 red figs and slept", "choices": ["on a", "on a mat"], "gold": 0}],
    )
    (record,) = evaluate_core(model, tokenizer, [task]).records
    assert record["losses"][0] is None and record["losses"][1] is not None
    assert (record["picked"], record["correct"]) == (1, False)


def test_of_equal_losses_the_first_choice_wins(tokenizer):
    untrained = make_model(tokenizer.vocab_size)
    torch.nn.init.zeros_(untrained.lm_head.weight)  # each token is as likely as another
    for record in evaluate_core(untrained, tokenizer, TASKS[:2]).records:
        assert len(set(record["losses"])) == 1
        assert record["picked"] == 0


def test_choices_of_the_same_words_tie_exactly(model, tokenizer):
    row = Row(tokenizer.encode("the cat sat on a mat and ate 12 red figs until noon"), 8)
    other = Row([*row.ids[:8], *row.ids[9:]], 8)
    first, _, again = score_items(model, [[row, other, row]])[0]
    assert first.losses == again.losses


def test_a_beginning_and_an_ending_that_choices_share_may_overlap(model):
    ids = list(range(20, 32))
    rows = make_rows("schema", [[9, *ids, *ids], [9, *ids]])
    assert [row.start for row in rows] == [13, 1]
    (scores,) = score_items(model, [rows])
    for row, score in zip(rows, scores, strict=True):
        assert score.losses == pytest.approx(read_whole(model, row)[0], abs=1e-4)


def test_broken_weights_are_named(tokenizer):
    broken = make_model(tokenizer.vocab_size)
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate_core(broken, tokenizer, TASKS)
    with pytest.raises(ValueError, match="max_batch_tokens=0"):
        score_items(broken, [], 0)


# --- the evaluation --------------------------------------------------------------------------------------------------


def test_each_question_leaves_a_record_that_says_how_it_went(evaluation, model, tokenizer):
    assert [r["id"] for r in evaluation.records] == [f"{task.label}/{i}" for task in TASKS for i in range(9)]
    assert evaluation.num_answered == 27
    plain = [[read_whole(model, row) for row in item] for item in items_of(TASKS, tokenizer)]
    for record, rows in zip(evaluation.records, plain, strict=True):
        means = [sum(losses) / len(losses) for losses, _ in rows]
        assert record["losses"] == pytest.approx(means, abs=1e-4)
        assert (record["num_fewshot"], record["cropped"]) == (3, 0)
        if record["type"] == "language_modeling":
            assert record["output"] == tokenizer.decode(rows[0][1])
            assert record["correct"] == (record["output"] == f" {record['expected']}")
        else:
            assert record["picked"] == means.index(min(means))
            assert record["output"] == record["choices"][record["picked"]]
            assert record["correct"] == (record["output"] == record["expected"])


def test_core_metric_is_the_mean_of_accuracies_centered_by_chance(evaluation):
    figures = {(row.task, row.metric): row for row in evaluation.rows}
    centered = []
    for task in TASKS:
        right = sum(r["correct"] for r in evaluation.records if r["task"] == task.label)
        accuracy, scaled = figures[task.label, "accuracy"], figures[task.label, "centered"]
        assert (accuracy.count, accuracy.n, accuracy.baseline) == (right, 9, {"chance": 0.25})
        assert scaled.value == pytest.approx((right / 9 - 0.25) / 0.75)
        assert scaled.interval.low < scaled.value < scaled.interval.high or right in (0, 9)
        assert scaled.interval.high - scaled.interval.low == pytest.approx(
            (accuracy.interval.high - accuracy.interval.low) / 0.75
        )
        centered.append(scaled.value)
    core = evaluation.rows[-1]
    assert (core.task, core.metric, core.n) == ("CORE", "core_metric", 27)
    assert core.value == pytest.approx(sum(centered) / 3)
    assert core.interval.low <= core.value <= core.interval.high
    assert core.interval.low < core.interval.high


def test_the_table_has_nanochats_columns_and_ends_with_core(evaluation):
    lines = list(csv.reader(core_csv(evaluation.rows).splitlines(), skipinitialspace=True))
    cells = [[cell.strip() for cell in line] for line in lines]
    assert [line[0] for line in cells] == ["Task", "choice", "schema", "language", "CORE"]
    assert cells[0] == ["Task", "Accuracy", "Centered"]
    figures = {(row.task, row.metric): row.value for row in evaluation.rows}
    for task, accuracy, scaled in cells[1:-1]:
        assert float(accuracy) == pytest.approx(figures[task, "accuracy"], abs=1e-6)
        assert float(scaled) == pytest.approx(figures[task, "centered"], abs=1e-6)
    assert cells[-1][1] == ""
    assert float(cells[-1][2]) == pytest.approx(figures["CORE", "core_metric"], abs=1e-6)


def test_prompt_beyond_the_rotary_limit_loses_its_beginning_and_is_counted(tokenizer):
    short = make_model(tokenizer.vocab_size, sequence_len=6)
    limit = short.config.rotary_rows
    whole = items_of(TASKS, tokenizer)
    evaluation = evaluate_core(short, tokenizer, TASKS)
    assert 0 < sum(record["cropped"] > 0 for record in evaluation.records) < len(whole)
    for record, item in zip(evaluation.records, whole, strict=True):
        longest = max(len(row.ids) for row in item)
        assert record["cropped"] == max(0, longest - limit)
        assert record["prompt_tokens"] == min(longest, limit)
        for row, loss in zip(item, record["losses"], strict=True):
            lost = max(0, len(row.ids) - limit)
            losses, _ = read_whole(short, Row(row.ids[lost:], row.start - lost))
            assert loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    rates = [row for row in evaluation.rows if row.metric == "prompt_cropped_rate"]
    assert sum(row.count for row in rates) == sum(record["cropped"] > 0 for record in evaluation.records)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(model, tokenizer, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat_pl.eval.ask.CHUNK_ROWS", 5)
    path, seen = tmp_path / "core" / "examples.jsonl", []

    def interrupt(answered, asked):
        seen.append((answered, asked))
        if answered >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_core(model, tokenizer, TASKS, log=ExampleLog(path, "c"), progress=interrupt)
    assert seen == [(5, 27), (10, 27)]
    assert len(path.read_text().splitlines()) == 10
    resumed = evaluate_core(model, tokenizer, TASKS, log=ExampleLog(path, "c"))
    assert resumed.num_answered == 17
    for one, other in zip(resumed.records, evaluation.records, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], abs=1e-5)
        assert (one["id"], one["output"], one["correct"]) == (other["id"], other["output"], other["correct"])
    again = evaluate_core(model, tokenizer, TASKS, log=ExampleLog(path, "c"))
    assert (again.num_answered, again.rows) == (0, resumed.rows)


def test_the_model_in_training_is_left_as_it_was(model, tokenizer):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate_core(model, tokenizer, TASKS, max_per_task=2)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "needs one task or more"),
        ({"tasks": [TASKS[0], TASKS[0]]}, "each of its own label"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"world_size": 2}, "needs a process group"),
    ],
)
def test_invalid_arguments_of_evaluate_core_are_refused(model, tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_core(model, tokenizer, changes.pop("tasks", TASKS), **changes)


def test_summarizing_a_task_without_records_is_an_error(evaluation):
    with pytest.raises(ValueError, match="no records of language"):
        summarize_core(evaluation.records[:18], TASKS)


def _answer_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", timedelta(seconds=120), world_size=2, rank=rank)
    tokenizer = Tokenizer.load(folder)
    share = evaluate_core(make_model(tokenizer.vocab_size), tokenizer, TASKS, rank=rank, world_size=2)
    Path(folder, f"{rank}.json").write_text(json.dumps([share.num_answered, share.records, share.rows[-1].value]))
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_processes_answer_what_one_does(evaluation, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    mp.spawn(_answer_share, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        num_answered, records, core = json.loads((tmp_path / f"{rank}.json").read_text())
        assert num_answered == 27
        assert core == pytest.approx(evaluation.rows[-1].value)
        for one, other in zip(records, evaluation.records, strict=True):
            assert (one["id"], one["correct"]) == (other["id"], other["correct"])
            assert one["losses"] == pytest.approx(other["losses"], abs=1e-5)


# --- the bundle ------------------------------------------------------------------------------------------------------

EXAMPLE = {"query": "q", "choices": ["a", "b"], "gold": 1}


def write_bundle(folder: Path, *, task: str = "", table: str = "copa,50", lines: str | None = None) -> Path:
    (folder / "eval_data").mkdir(parents=True)
    task = task or "{label: copa, dataset_uri: copa.jsonl, num_fewshot: [0], icl_task_type: multiple_choice}"
    (folder / "core.yaml").write_text(f"icl_tasks:\n- {task}\n")
    (folder / "eval_meta_data.csv").write_text(f"Eval Task,Random baseline\n{table}\n")
    (folder / "eval_data" / "copa.jsonl").write_text(json.dumps(EXAMPLE) + "\n" if lines is None else lines)
    return folder


def test_a_bundle_is_read_in_its_own_layout(tmp_path):
    (task,) = load_bundle(write_bundle(tmp_path / "bundle"))
    assert (task.label, task.type, task.num_fewshot, task.baseline) == ("copa", "multiple_choice", 0, 0.5)
    assert (task.delimiter, list(task.examples)) == (" ", [EXAMPLE])


def test_a_fingerprint_changes_with_all_that_changes_a_score():
    task = TASKS[0]
    changes = {
        "label": "other",
        "type": "schema",
        "num_fewshot": 4,
        "baseline": 0.5,
        "delimiter": " ",
        "examples": task.examples[1:],
    }
    assert set(changes) == {field.name for field in fields(CoreTask)}
    seen = {task.fingerprint(), *(replace(task, **{name: value}).fingerprint() for name, value in changes.items())}
    assert len(seen) == 7
    assert replace(task, examples=tuple(task.examples)).fingerprint() == task.fingerprint()


@pytest.mark.parametrize("missing", ["", "core.yaml", "eval_meta_data.csv", "eval_data/copa.jsonl"])
def test_a_missing_bundle_or_file_comes_with_the_command_that_brings_it(tmp_path, missing):
    folder = tmp_path / "nowhere"
    if missing:
        (write_bundle(folder) / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"no {missing or 'core.yaml'} in .*curl -LO .*eval_bundle.zip"
    ) as found:
        load_bundle(folder)
    assert ("no such folder" in str(found.value)) == (not missing)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lines": ""}, "copa.jsonl is empty"),
        ({"lines": "\n \n"}, "copa.jsonl is empty"),
        (
            {"lines": json.dumps(EXAMPLE) + "\n{broken\n"},
            "copa.jsonl: line 2 is not valid JSON; mend it or fetch the bundle again$",
        ),
        ({"lines": "[1]\n"}, "line 1: expected an object, found list"),
        ({"lines": '{"query": "q", "choices": ["a", "b"]}\n'}, "line 1: no 'gold'"),
        ({"lines": '{"query": 3, "choices": ["a", "b"], "gold": 0}\n'}, "line 1: 'query' is int, expected str"),
        ({"lines": '{"query": "q", "choices": ["a", "b"], "gold": true}\n'}, "'gold' is bool, expected int"),
        ({"lines": '{"query": "q", "choices": ["a"], "gold": 0}\n'}, "two texts or more"),
        ({"lines": '{"query": "q", "choices": ["a", 1], "gold": 0}\n'}, "two texts or more"),
        ({"lines": '{"query": "q", "choices": ["a", "b"], "gold": 2}\n'}, "'gold' is 2, expected 0 to 1"),
        ({"table": "piqa,50"}, "no row for copa"),
        ({"table": "copa,half"}, "line 2: Random baseline='half' of copa is no number"),
        ({"table": "copa,100"}, "100 percent"),
        ({"task": "copa"}, "task 1 is no mapping"),
        ({"task": "{label: copa}"}, r"task 1 \(copa\) has no dataset_uri, num_fewshot, icl_task_type"),
        ({"task": "{label: copa, dataset_uri: u, num_fewshot: 3, icl_task_type: schema}"}, "a list of one number"),
        ({"task": "{label: copa, dataset_uri: u, num_fewshot: [3], icl_task_type: essay}"}, "expected one of"),
        ({"task": "]"}, r"core.yaml is not valid YAML at line \d+, column \d+; mend it or fetch the bundle again$"),
    ],
)
def test_a_damaged_bundle_is_refused_with_file_line_and_fault(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        load_bundle(write_bundle(tmp_path, **parts))


def test_a_continuation_must_not_be_blank_and_a_list_of_tasks_not_empty(tmp_path):
    task = "{label: copa, dataset_uri: copa.jsonl, num_fewshot: [0], icl_task_type: language_modeling}"
    blank = json.dumps({"context": "c", "continuation": " "}) + "\n"
    with pytest.raises(ValueError, match="line 1: 'continuation' is blank"):
        load_bundle(write_bundle(tmp_path / "blank", task=task, lines=blank))
    folder = write_bundle(tmp_path / "empty")
    (folder / "core.yaml").write_text("icl_tasks: []\n")
    with pytest.raises(ValueError, match="lists no tasks"):
        load_bundle(folder)
    (folder / "core.yaml").write_text((tmp_path / "blank" / "core.yaml").read_text())
    (folder / "eval_meta_data.csv").write_text("Task,Baseline\n")
    with pytest.raises(ValueError, match="has no column Eval Task, Random baseline"):
        load_bundle(folder)
