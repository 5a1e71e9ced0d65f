"""The written form of evaluations, and the log that survives a crash."""

import json

import pytest

from nanochat_pl.eval.results import (
    SCHEMA,
    Evaluation,
    ExampleLog,
    MetricRow,
    config_hash,
    evaluation_summary,
    find_row,
    keep_other_results,
    mean_row,
    proportion_row,
    results_document,
)
from nanochat_pl.report.comparison_report import examples_page

QUESTIONS = [{"id": str(number)} for number in range(5)]


def record(number, **fields):
    return {
        "id": str(number),
        "prompt": f"Question {number}?",
        "output": "x",
        "correct": False,
        "expected": "B",
        **fields,
    }


def test_appended_records_are_read_again(tmp_path):
    path = tmp_path / "deep" / "examples.jsonl"
    log = ExampleLog(path, "c")
    log.append([record(0, output="line\nline\u2028Ł"), record(3)])
    again = ExampleLog(path, "c")
    assert again.records == log.records
    assert again.num_appended == 0
    assert again.pending(QUESTIONS, 2) == [[{"id": "1"}, {"id": "2"}], [{"id": "4"}]]
    assert [r["id"] for r in again.in_order([{"id": 3}, {"id": 0}])] == ["3", "0"]


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path, kept):
    path = tmp_path / "examples.jsonl"
    ExampleLog(path, "c").append([record(0)])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    log = ExampleLog(path, "c")
    assert list(log.records) == ["0"]
    assert path.read_bytes() == whole
    log.append([record(1)])
    assert list(ExampleLog(path, "c").records) == ["0", "1"]


def test_a_log_of_another_configuration_is_set_aside_and_fetched_back(tmp_path):
    path = tmp_path / "examples.jsonl"
    for config, number in (("a", 0), ("b", 1), ("a", 2), ("b", 3)):
        ExampleLog(path, config).append([record(number)])
    assert list(ExampleLog(path, "a").records) == ["0", "2"]
    assert list(ExampleLog(path, "b").records) == ["1", "3"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["examples.a.jsonl", "examples.jsonl"]


@pytest.mark.parametrize("line", ["{broken", "[]", '{"id": 7, "config": "c"}', '{"id": "7"}', ""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "examples.jsonl"
    log = ExampleLog(path, "c")
    log.append([record(0)])
    path.write_text(f"{path.read_text()}{line}\n{path.read_text()}")
    with pytest.raises(ValueError, match="line 2 is no record"):
        ExampleLog(path, "c")


def test_the_hash_follows_the_settings_not_their_order():
    assert config_hash({"a": 1, "b": [2, "Ł"]}) == config_hash({"b": [2, "Ł"], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert len(config_hash({})) == 16


def evaluation(right, parsed):
    scored = [flag for flag, said in zip(right, parsed) if said]
    baseline = {"chance": 0.5, "majority": 0.6, "majority_letter": "A"}
    rows = [
        proportion_row("scienceqa", "strict/accuracy_over_asked", right, baseline=baseline, bootstrap_seed=0),
        proportion_row("scienceqa", "strict/accuracy_over_scored", scored),
        proportion_row("scienceqa", "strict/parse_rate", parsed),
        proportion_row("scienceqa", "strict/accuracy_over_asked", right[:1], group={"grade": "grade2"}),
        proportion_row("scienceqa", "loglikelihood/accuracy", right),
        proportion_row("scienceqa", "letter_regex/accuracy_over_asked", right),
        mean_row("scienceqa", "explanation/rouge_l", []),
    ]
    records = [record(number, correct=flag) for number, flag in enumerate(right)]
    return Evaluation(records=records, rows=rows, seconds=2.0, num_answered=len(right))


def test_results_are_json_and_carry_identity_cost_and_every_row():
    outcome = evaluation([True, False, True, False], [True, False, True, True])
    document = results_document(
        outcome, name="scienceqa", checkpoint={"path": "last.ckpt", "hash": "ab"}, config={"max_new_tokens": 128}
    )
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["config_hash"] == config_hash({"max_new_tokens": 128})
    assert document["examples_per_s"] == 2.0
    row = document["metrics"][0]
    assert (row["value"], row["n"], row["count"], row["baseline"]["chance"]) == (0.5, 4, 2, 0.5)
    assert row["interval"]["low"] < 0.5 < row["interval"]["high"]
    assert document["metrics"][-1]["value"] is None


def test_a_row_is_found_by_name_and_a_group_is_not_mistaken_for_the_whole():
    rows = evaluation([True, False], [True, True]).rows
    assert find_row(rows, "strict/accuracy_over_asked").n == 2
    with pytest.raises(KeyError, match=r"no metric 'accuracy' among .*strict/parse_rate"):
        find_row(rows, "accuracy")


def test_the_summary_is_a_view_of_the_rows():
    summary = evaluation_summary(
        {"base": evaluation([False] * 4, [True, False, False, False]), "tuned": evaluation([True] * 4, [True] * 4)},
        [{"verdict": "not distinguishable (p = 0.125, n = 4)"}],
    )
    assert summary["samples"] == 4
    assert summary["models"]["base"]["correct"] == 0
    assert summary["models"]["base"]["scored"] == 1
    assert summary["models"]["tuned"]["accuracy"] == 1.0
    assert summary["models"]["tuned"]["baseline"]["majority_letter"] == "A"
    json.dumps(summary, allow_nan=False)


def test_the_page_shows_shared_questions_disagreements_first_and_nothing_breaks_its_fences():
    base = [record(0), record(1, output="```\n# no heading\n```"), record(9)]
    tuned = [record(0), record(1, correct=True), record(2)]
    page = examples_page({"base": base, "tuned": tuned})
    assert page.index("## 1") < page.index("## 0")
    assert "## 9" not in page
    assert "## 2" not in page
    assert "````text\n```\n# no heading\n```\n````" in page
    assert "### base: wrong" in page
    assert "### tuned: right" in page
    assert "## 0" not in examples_page({"base": base, "tuned": tuned}, limit=1)
    assert examples_page({}).startswith("# Examples")


def settled(folder, config):
    kept = keep_other_results(folder, config)
    outcome = Evaluation(records=[], rows=[], seconds=1.0, num_answered=0)
    document = results_document(outcome, name="x", checkpoint={}, config=config)
    (folder / "results.json").write_text(json.dumps(document))
    (folder / "core.csv").write_text(str(config))
    return kept


def test_results_of_other_settings_are_kept_and_said(tmp_path):
    one, two = {"data": "a", "rows": 1}, {"data": "b", "rows": 1}
    assert settled(tmp_path, one) is None and settled(tmp_path, one) is None
    kept = tmp_path / f"results.{config_hash(one)}.json"
    assert settled(tmp_path, two) == f"earlier results, of other data, are kept as {kept}"
    assert json.loads(kept.read_text())["config"] == one
    assert (tmp_path / f"core.{config_hash(one)}.csv").read_text() == str(one)
    assert settled(tmp_path, one) is not None
    assert not kept.exists() and json.loads((tmp_path / "results.json").read_text())["config"] == one
    assert (tmp_path / f"results.{config_hash(two)}.json").is_file()


@pytest.mark.parametrize("content", ["", "[]", '{"config_hash": "../../x", "config": {}}', '{"config": 1}'])
def test_damaged_results_file_is_ignored(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    assert keep_other_results(tmp_path, {"a": 1}) is None
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_clearing_a_log_forgets_only_its_own_configuration(tmp_path):
    path = tmp_path / "examples.jsonl"
    for config in ("a", "b"):
        ExampleLog(path, config).append([record(0)])
    log = ExampleLog(path, "b")
    log.clear()
    assert not log.records and not ExampleLog(path, "b").records
    assert list(ExampleLog(path, "a").records) == ["0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused(value: float):
    with pytest.raises(ValueError, match=r"bpb of shard is (nan|inf): .* evaluate an earlier checkpoint"):
        MetricRow(task="shard", metric="bpb", value=value, n=5)


def test_a_mean_of_equal_values_has_no_interval_and_wins_nothing():
    for values in ([0.5], [0.5] * 30, []):
        assert mean_row("t", "rouge_l", values).interval is None
    assert mean_row("t", "rouge_l", [0.0, 1.0, 1.0]).interval is not None


ROW = {"task": "t", "metric": "accuracy", "value": 0.5, "n": 2, "count": 1}


@pytest.mark.parametrize(
    "damaged",
    [
        {"schema": SCHEMA + 1, "metrics": [ROW]},
        {"metrics": [ROW]},
        {"schema": SCHEMA},
        {"schema": SCHEMA, "metrics": {}},
        {"schema": SCHEMA, "metrics": [{**ROW, "n": -1}]},
        {"schema": SCHEMA, "metrics": [{**ROW, "count": 3}]},
        {"schema": SCHEMA, "metrics": [{**ROW, "count": -1}]},
        {"schema": SCHEMA, "metrics": [{**ROW, "n": "2"}]},
        {"schema": SCHEMA, "metrics": [{**ROW, "interval": {"low": 0.1, "high": float("nan")}}]},
        {"schema": SCHEMA, "metrics": [{**ROW, "interval": {"low": "0", "high": 1}}]},
    ],
)
def test_compare_and_report_both_refuse_figures_that_cannot_be(tmp_path, damaged):
    from nanochat_pl.report.evaluated import read_result
    from nanochat_pl.report.read import read_results

    file = tmp_path / "eval" / "t" / "best" / "results.json"
    file.parent.mkdir(parents=True)
    whole = {"name": "t", "checkpoint": {"path": "x.ckpt"}, "config": {}, "config_hash": "0", "seconds": 1.0}
    file.write_text(json.dumps({**whole, "schema": SCHEMA, "metrics": [ROW]}))
    assert read_result(file).rows and [result.rows for result in read_results(tmp_path, [])]
    file.write_text(json.dumps({**whole, **damaged}))
    with pytest.raises(ValueError, match=r"results\.json"):
        read_result(file)
    problems: list[str] = []
    assert not list(read_results(tmp_path, problems)) and "left out" in problems[0]
