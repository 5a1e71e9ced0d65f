"""Results read back: which files a path stands for, and which of them can be trusted."""

import json
import re
from pathlib import Path

import pytest

from nanochat_pl.eval.results import SCHEMA
from nanochat_pl.report.evaluated import evaluate_command, find_results, load_evaluated_runs, read_result, stage_order
from tests.unit.evaluated import entrant, recalled, write


def test_stages_are_ordered_from_base_to_rl():
    stages = ["rl", "sft_scienceqa", "mine", "base", "mid"]
    entrants = [entrant(stage, recalled([True], stage=stage)) for stage in stages]
    assert [stages[index] for index in stage_order(entrants)] == ["base", "mid", "sft_scienceqa", "rl", "mine"]


def test_results_are_found_from_any_of_their_paths(tmp_path):
    run = write(tmp_path, "sft/d4", [True])
    write(tmp_path, "sft/d4", [True], name="scienceqa")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").touch()
    files = [run / "eval" / name / "best" / "results.json" for name in ("recall", "scienceqa")]
    assert find_results(run) == files
    assert find_results(run / "checkpoints" / "best.ckpt") == files
    for path in (files[0], files[0].with_name("examples.jsonl"), files[0].parent):
        assert find_results(path) == files[:1]


def test_of_several_checkpoints_best_goes_before_last_and_others_must_be_named(tmp_path):
    run = write(tmp_path, "sft/d4", [True], checkpoint="step_000010")
    assert [file.parent.name for file in find_results(run)] == ["step_000010"]
    write(tmp_path, "sft/d4", [True], checkpoint="step_000020")
    with pytest.raises(ValueError, match="step_000010, step_000020"):
        find_results(run)
    for checkpoint in ("last", "best"):
        write(tmp_path, "sft/d4", [True], checkpoint=checkpoint)
        assert [file.parent.name for file in find_results(run)] == [checkpoint]


def test_a_checkpoint_without_results_is_refused_with_the_command_and_what_there_is(tmp_path):
    run = write(tmp_path, "sft/d4", [True], checkpoint="last")
    (run / "checkpoints").mkdir()
    file = run / "checkpoints" / "best.ckpt"
    file.touch()
    with pytest.raises(FileNotFoundError, match=rf"has results of last; .*python evaluate\.py ckpt={file}"):
        find_results(file)


def test_a_torn_last_answer_is_passed_over_and_any_other_refused(tmp_path):
    [file] = find_results(write(tmp_path, "sft/d4", [True, False]))
    examples = file.with_name("examples.jsonl")
    whole = examples.read_text()
    examples.write_text(whole + '{"id": "test/2", "pro')
    assert len(read_result(file).records) == 2
    examples.write_text("{\n" + whole)
    with pytest.raises(ValueError, match=r"eval\.fresh=true"):
        read_result(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"config_hash": "f" * 16}, "answers of other settings"),
        ({"metrics": [{"task": "x"}]}, "evaluate again"),
    ],
)
def test_results_that_cannot_be_trusted_are_refused_with_the_command(tmp_path, change, said):
    [file] = find_results(write(tmp_path, "sft/d4", [True]))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said) as error:
        read_result(file)
    assert "python evaluate.py ckpt=" in str(error.value)


def test_what_is_no_results_document_is_refused(tmp_path):
    file = tmp_path / "results.json"
    whole = {"schema": SCHEMA, "name": "recall", "checkpoint": {}, "config": {}, "metrics": []}
    broken = [
        whole | change
        for change in ({"checkpoint": "a"}, {"checkpoint": [1]}, {"config": None}, {"metrics": [{"task": "a"}]})
    ]
    texts = [
        "",
        "{",
        "[]",
        "{}",
        "null",
        "1",
        "[" * 100_000,
        *map(json.dumps, [*broken, whole | {"metrics": {"a": 1}}]),
    ]
    for text in texts:
        file.write_text(text)
        with pytest.raises(ValueError, match=r"no (whole )?results document \(it ") as error:
            read_result(file)
        assert not re.search(r"Error|__init__|Expecting|object", str(error.value))
    file.write_text(json.dumps(whole))
    for line in ("{", "[1]", "3", '"text"'):
        file.with_name("examples.jsonl").write_text(f"{line}\n")
        with pytest.raises(ValueError, match="line 1 is no record of an answer"):
            read_result(file)


def test_runs_get_the_shortest_labels_that_differ(tmp_path):
    a, b = write(tmp_path, "sft/a", [True], config={"seed": 1}), write(tmp_path, "sft/b", [True])
    write(tmp_path, "sft/a", [True], checkpoint="last")
    last = a / "eval" / "recall" / "last" / "results.json"
    assert [e.label for e in load_evaluated_runs([a, b])] == ["sft/a", "sft/b"]
    assert [e.label for e in load_evaluated_runs([a, last])] == ["sft/a:best", "sft/a:last"]
    assert [e.config for e in load_evaluated_runs([a, b])] == [{"seed": 1}, None]
    with pytest.raises(ValueError, match="given twice"):
        load_evaluated_runs([a, b, a])


def test_checkpoints_are_named_in_the_command_that_asks_them_together(tmp_path):
    entrants = load_evaluated_runs([write(tmp_path, f"sft/{name}", [True]) for name in "ab"])
    paths = ",".join(f"{tmp_path}/sft/{name}/checkpoints/best.ckpt" for name in "ab")
    assert evaluate_command(entrants, "recall") == f"python evaluate.py 'ckpt=[{paths}]' eval=recall"


def test_a_config_that_is_no_yaml_is_named_with_its_file(tmp_path):
    run = write(tmp_path, "sft/d4", [True], config={"seed": 1})
    (run / "config.yaml").write_text("seed: [1\n")
    with pytest.raises(ValueError, match=rf"{Path(run) / 'config.yaml'} is no YAML"):
        load_evaluated_runs([run])
