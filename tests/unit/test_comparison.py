"""Comparisons of finished evaluations: who may be called better, which files are read, and how it is shown."""

import html.parser
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

from nanochat_pl.cli.compare import main
from nanochat_pl.eval.results import (
    Evaluation,
    MetricRow,
    config_hash,
    mean_row,
    proportion_row,
    results_document,
)
from nanochat_pl.eval.stats import mcnemar_exact
from nanochat_pl.report.comparison import compare_entrants, direction, settings_that_differ
from nanochat_pl.report.entrants import Entrant, Result, find_results, load_result, stage_order
from nanochat_pl.report.seeds import compare_seeds, group_by_seed
from nanochat_pl.report.side_by_side import side_by_side


def answers(right: Sequence[bool], task: str = "", prompt: str = "What is {}?") -> list[dict]:
    records = [
        {"id": f"test/{n}", "prompt": prompt.format(n), "expected": "yes", "output": "yes" if r else "no", "correct": r}
        for n, r in enumerate(right)
    ]
    return [{**record, "task": task} for record in records] if task else records


def entrant(label: str, *evaluations: Result, run: dict | None = None) -> Entrant:
    return Entrant(label=label, results={result.name: result for result in evaluations}, run=run)


def result(rows: list[MetricRow], records: list[dict], name: str = "recall", stage: str = "sft", **settings) -> Result:
    checkpoint = {"path": f"outputs/{stage}/d4/checkpoints/best.ckpt", "stage": stage, "step": 10}
    return Result(
        file=Path("results.json"), name=name, checkpoint=checkpoint, settings=settings, rows=rows, records=records
    )


def recalled(right: Sequence[bool], stage: str = "sft", **more) -> Result:
    return result([proportion_row("recall", "exact_match", right)], answers(right), stage=stage, **more)


def pattern(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Answers of two models by how many questions both, only one or neither got right."""
    ours = [True] * (both + first) + [False] * (second + neither)
    theirs = [True] * both + [False] * first + [True] * second + [False] * neither
    return ours, theirs


def verdicts(*entrants: Entrant, **more) -> list[str]:
    return [j.verdict for line in compare_entrants(entrants, **more) for j in line.judgements if j is not None]


# -- who is better ------------------------------------------------------------------------------------------------


def test_a_winner_is_named_where_the_questions_decide_and_only_there():
    first, second = pattern(10, 2, 20, 8)
    [verdict] = verdicts(entrant("a", recalled(first)), entrant("b", recalled(second)))
    assert verdict == "b is better than a (p < 0.001, n = 40)"
    [verdict] = verdicts(entrant("b", recalled(second)), entrant("a", recalled(first)))
    assert verdict == "b is better than a (p < 0.001, n = 40)"
    first, second = pattern(10, 8, 12, 10)
    [verdict] = verdicts(entrant("a", recalled(first)), entrant("b", recalled(second)))
    assert verdict == f"not distinguishable (p = {mcnemar_exact(8, 12):.3f}, n = 40)"


def test_one_small_p_value_among_several_tests_makes_no_winner():
    first, second = pattern(20, 2, 10, 8)  # p = 0.039 alone
    assert mcnemar_exact(2, 10) < 0.05
    tasks = {"one": (first, second)} | {f"even{n}": pattern(15, 5, 5, 15) for n in range(3)}

    def chat(place: int) -> Result:
        rows = [proportion_row(task, "accuracy", pair[place]) for task, pair in tasks.items()]
        records = [record for task, pair in tasks.items() for record in answers(pair[place], task)]
        return result(rows, records, name="chat")

    lines = compare_entrants([entrant("a", chat(0)), entrant("b", chat(1))])
    judged = [line.judgements[1] for line in lines]
    assert [line.task for line in lines] == list(tasks)
    assert all(j is not None and j.verdict.startswith("not distinguishable") for j in judged)
    assert judged[0] is not None
    assert judged[0].p_value == pytest.approx(mcnemar_exact(2, 10))
    assert judged[0].corrected == pytest.approx(4 * mcnemar_exact(2, 10))
    assert "Holm over 4 tests" in judged[0].verdict


def test_equal_models_hardly_ever_win_anywhere():
    won = tempted = 0
    for seed in range(20):
        draw = random.Random(seed)
        pairs = [([draw.random() < 0.5 for _ in range(40)], [draw.random() < 0.5 for _ in range(40)]) for _ in range(8)]

        def chat(place: int, pairs: list = pairs) -> Result:
            rows = [proportion_row(f"task{n}", "accuracy", pair[place]) for n, pair in enumerate(pairs)]
            return result(rows, [r for n, pair in enumerate(pairs) for r in answers(pair[place], f"task{n}")], "chat")

        lines = compare_entrants([entrant("a", chat(0)), entrant("b", chat(1))])
        judged = [judgement for line in lines if (judgement := line.judgements[1]) is not None]
        assert len(judged) == 8
        won += any("is better" in judgement.verdict for judgement in judged)
        tempted += any(judgement.p_value < 0.05 for judgement in judged if judgement.p_value is not None)
    assert won <= 1 < tempted  # one comparison in twenty is what is promised


def test_a_winner_that_only_guesses_is_said_to():
    first, second = pattern(0, 0, 10, 40)
    rows = [[proportion_row("arc", "accuracy", right, baseline={"chance": 0.25})] for right in (first, second)]
    [verdict] = verdicts(
        entrant("a", result(rows[0], answers(first), "arc")), entrant("b", result(rows[1], answers(second), "arc"))
    )
    assert verdict.startswith("b is better than a")
    assert verdict.endswith("but not than chance")


@pytest.mark.parametrize(("right", "said"), [(21, "not distinguishable"), (38, "b is better than a")])
def test_without_answers_only_intervals_speak_and_say_so(right, said):
    rows = [[proportion_row("mmlu", "accuracy", [n < count for n in range(40)])] for count in (18, right)]
    [verdict] = verdicts(entrant("a", result(rows[0], [], "mmlu")), entrant("b", result(rows[1], [], "mmlu")))
    assert verdict.startswith(said)
    assert "unpaired" in verdict


def test_answers_that_do_not_make_the_figure_are_not_paired_with_it():
    first, second = pattern(10, 2, 20, 8)
    other = [proportion_row("recall", "exact_match", [True] * 40)]
    [verdict] = verdicts(entrant("a", recalled(first)), entrant("b", result(other, answers(second))))
    assert "unpaired" in verdict


def test_bits_per_byte_are_better_when_lower_and_need_the_same_text():
    def bpb(value: float, n: int = 4096, spread: float | None = None) -> Result:
        row = MetricRow(task="val", metric="bpb", value=value, n=n)
        values = [value - spread, value + spread] * 50 if spread else []
        return result([mean_row("val", "bpb", values) if spread else row], [], "bpb", "base")

    [line] = compare_entrants([entrant("a", bpb(1.5)), entrant("b", bpb(1.25))])
    assert line.judgements[1] is not None
    assert line.judgements[1].difference == -0.25
    assert line.judgements[1].verdict == "no interval, no verdict"
    assert verdicts(entrant("a", bpb(1.5)), entrant("b", bpb(1.4, 8192))) == [
        "not the same text: 4,096 and 8,192 tokens"
    ]
    apart = verdicts(entrant("a", bpb(1.5, spread=0.1)), entrant("b", bpb(1.2, spread=0.1)))
    assert apart == ["b is better than a (intervals do not overlap; unpaired)"]


def test_who_lacks_an_evaluation_does_not_keep_the_others_from_being_compared():
    first, second = pattern(10, 2, 20, 8)
    bpb = result([MetricRow(task="val", metric="bpb", value=1.5, n=9)], [], "bpb", "base")
    lines = compare_entrants([entrant("a", bpb), entrant("b", recalled(first)), entrant("c", recalled(second))])
    line = next(line for line in lines if line.evaluation == "recall")
    assert line.rows[0] is None
    assert line.reference == 1
    assert line.judgements[2] is not None
    assert line.judgements[2].verdict.startswith("c is better than b")


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        ("strict/accuracy_over_asked", 1), ("strict/accuracy_over_scored", 0), ("exact_match", 1), ("pass@8", 1),
        ("core_metric", 1), ("chatcore_metric", 1), ("bpb", -1), ("val/loss", -1), ("truncation_rate", 0),
        ("output_tokens", 0), ("strict/parse_rate", 0), ("centered", 0),
    ],
)  # fmt: skip
def test_a_figure_has_a_better_side_or_none(metric, sign):
    assert direction(metric) == sign


def test_named_metrics_are_shown_and_unknown_ones_refused_with_what_there_is():
    rows = [proportion_row("recall", "exact_match", [True]), proportion_row("recall", "truncation_rate", [False])]
    both = [entrant(name, result(rows, answers([True]))) for name in "ab"]
    assert [line.metric for line in compare_entrants(both, metrics=["truncation_rate"])] == ["truncation_rate"]
    assert len(compare_entrants(both, metrics=["all"])) == 2
    with pytest.raises(ValueError, match="there are exact_match, truncation_rate"):
        compare_entrants(both, metrics=["perplexity"])


# -- different questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [answers([True] * 30), answers([True] * 40, prompt="Name {}.")])
def test_answers_to_different_questions_are_refused_with_the_command_that_asks_the_same(others):
    rows = [proportion_row("recall", "exact_match", [True] * len(others))]
    with pytest.raises(ValueError, match="different questions") as error:
        compare_entrants([entrant("a", recalled([True] * 40)), entrant("b", result(rows, others))])
    assert f"40 and {len(others)}" in str(error.value)
    assert "python evaluate.py 'ckpt=[outputs/sft/d4/checkpoints/best.ckpt,outputs/sft" in str(error.value)


def test_nothing_in_common_is_refused_with_what_each_has():
    bpb = result([MetricRow(task="val", metric="bpb", value=1.5, n=9)], [], "bpb", "base")
    with pytest.raises(ValueError, match="a has bpb; b has recall"):
        compare_entrants([entrant("a", bpb), entrant("b", recalled([True]))])


def test_settings_that_were_not_the_same_are_told():
    both = [entrant(name, recalled([True], max_new_tokens=n, data={"seed": n})) for name, n in (("a", 16), ("b", 128))]
    assert settings_that_differ(both) == ["recall: max_new_tokens was not the same for all: 16, 128"]


def test_differing_answers_come_first_and_every_question_is_shared():
    first, second = [True, True, False, False], [True, False, False, True]
    different = answers(second)
    different[2]["output"] = "perhaps"
    rows = [proportion_row("recall", "exact_match", second)]
    shown = side_by_side([entrant("a", recalled(first)), entrant("b", result(rows, different))], 10)["recall"]
    assert [question.id for question in shown] == ["test/1", "test/3", "test/2", "test/0"]
    assert [question.differ for question in shown] == [True, True, False, False]
    assert all(list(question.answers) == ["a", "b"] for question in shown)
    assert side_by_side([entrant("a", recalled(first)), entrant("b", recalled(second))], 0)["recall"] == []


def test_stages_are_ordered_from_base_to_rl():
    stages = ["rl", "sft_scienceqa", "mine", "base", "mid"]
    entrants = [entrant(stage, recalled([True], stage=stage)) for stage in stages]
    assert [stages[index] for index in stage_order(entrants)] == ["base", "mid", "sft_scienceqa", "rl", "mine"]


# -- seeds --------------------------------------------------------------------------------------------------------


def seeded(name: str, seed: int, lr: float, right: int, stage: str = "sft") -> Entrant:
    run = {
        "seed": seed,
        "run_name": name,
        "optim": {"lr": lr},
        "init_from": f"outputs/base/{name}/checkpoints/best.ckpt",
    }
    return entrant(name, recalled([n < right for n in range(40)], stage=stage), run=run)


def test_runs_of_one_config_are_one_group_whatever_their_seed_and_name():
    runs = [seeded("x1", 1, 0.1, 20), seeded("y1", 1, 0.2, 30), seeded("x2", 2, 0.1, 22), seeded("y2", 2, 0.2, 31)]
    assert group_by_seed(runs) == [[0, 2], [1, 3]]
    assert group_by_seed([seeded("x", 1, 0.1, 20), seeded("x", 1, 0.1, 20, stage="mid")]) == [[0], [1]]
    with pytest.raises(ValueError, match=r"config\.yaml"):
        group_by_seed([entrant("a", recalled([True]))])


def test_groups_of_seeds_have_mean_and_std_and_win_only_outside_the_noise():
    runs = [seeded(f"x{n}", n, 0.1, right) for n, right in enumerate((20, 22, 21))]
    near = [seeded(f"y{n}", n, 0.2, right) for n, right in enumerate((21, 24, 22))]
    far = [seeded(f"z{n}", n, 0.3, right) for n, right in enumerate((34, 36, 35))]
    entrants = [*runs, *near, *far]
    [line] = compare_seeds(entrants, compare_entrants(entrants), group_by_seed(entrants))
    values = np.array([20, 22, 21]) / 40
    spread = line.spreads[0]
    assert spread is not None
    assert (spread.mean, spread.std) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert spread.interval is not None
    assert (spread.interval.low, spread.interval.high) == (pytest.approx(low), pytest.approx(high))
    assert line.verdicts[1].startswith("not distinguishable")
    assert line.verdicts[2].startswith("z0 is better than x0")


# -- files --------------------------------------------------------------------------------------------------------


def write(
    root: Path,
    run: str,
    right: Sequence[bool],
    *,
    name: str = "recall",
    checkpoint: str = "best",
    config: dict | None = None,
    output: str = "no",
) -> Path:
    """Write what `evaluate.py` leaves behind; return the run folder."""
    folder = root / run
    settings = {"eval": name, "max_new_tokens": 16}
    records = [{**r, "config": config_hash(settings)} for r in answers(right)]
    for record in records:
        record["output"] = "yes" if record["correct"] else output
    row = proportion_row("recall", "exact_match", right, baseline={"chance": 0.25})
    identity = {
        "path": f"{folder}/checkpoints/{checkpoint}.ckpt",
        "hash": "0",
        "stage": run.partition("/")[0],
        "step": 1,
    }
    evaluation = Evaluation(records=records, rows=[row], seconds=1.0, num_answered=len(right))
    target = folder / "eval" / name / checkpoint
    target.mkdir(parents=True)
    (target / "results.json").write_text(
        json.dumps(results_document(evaluation, name=name, checkpoint=identity, config=settings))
    )
    (target / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


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
    assert len(load_result(file).records) == 2
    examples.write_text("{\n" + whole)
    with pytest.raises(ValueError, match=r"eval\.fresh=true"):
        load_result(file)


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
        load_result(file)
    assert "python evaluate.py ckpt=" in str(error.value)


def test_what_is_no_results_document_is_refused(tmp_path):
    file = tmp_path / "results.json"
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match="no results document"):
            load_result(file)


# -- the command --------------------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script> | ``` & more"


class Page(html.parser.HTMLParser):
    """Collects tags, and holds that every one that is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def pages(tmp_path, capsys) -> dict[str, str]:
    """What the command says and writes about three stages."""
    first, second = pattern(10, 2, 20, 8)
    runs = [
        write(tmp_path, "rl/d4", second, output=EVIL),
        write(tmp_path, "base/d4", first, output=EVIL),
        write(tmp_path, "sft/d4", first),
    ]
    files = {kind: tmp_path / f"out.{kind}" for kind in ("markdown", "html", "json")}
    assert main([*map(str, runs), *(word for kind, file in files.items() for word in (f"--{kind}", str(file)))]) == 0
    return {"terminal": capsys.readouterr().out} | {kind: file.read_text() for kind, file in files.items()}


def test_the_html_page_escapes_what_models_wrote_and_needs_nothing_from_outside(pages):
    page = Page(pages["html"])
    assert "script" not in page.tags
    assert "&lt;script&gt;" in pages["html"]
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "http" not in pages["html"].replace("http-equiv", "")
    assert "url(" not in pages["html"]
    assert ("name", "viewport") in page.attributes
    assert page.tags.count("svg") == 1
    assert page.tags.count("circle") == 3


def test_markdown_tables_have_equal_columns_and_fences_hold(pages):
    tables = re.findall(r"(?:^\|.*\n)+", pages["markdown"], re.MULTILINE)
    assert tables
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert f"````text\n{EVIL}\n````" in pages["markdown"]


def test_every_form_gives_the_same_verdicts(pages):
    document = json.loads(pages["json"])
    assert len(document["verdicts"]) == 2
    for verdict in document["verdicts"]:
        assert verdict in pages["terminal"]
        assert verdict in pages["markdown"]
        assert verdict in html.unescape(pages["html"])
    assert "base/d4 against rl/d4, recall exact_match: rl/d4 is better than base/d4" in document["verdicts"][0]


def test_the_chart_goes_from_base_to_rl(pages):
    chart = pages["terminal"].partition("over the stages")[2]
    assert re.findall(r"^ +(BASE|MID|SFT|RL) ", chart, re.MULTILINE) == ["BASE", "SFT", "RL"]
    assert "chance 25.0%" in chart


def test_a_config_that_cannot_be_read_is_named(tmp_path, capsys):
    run = write(tmp_path, "sft/d4", [True], config={"seed": 1})
    (run / "config.yaml").write_text("seed: [1\n")
    assert main([str(run)]) == 2
    assert f"{run / 'config.yaml'} is no YAML" in capsys.readouterr().err


def test_seeds_are_pointed_out_and_grouped_on_request(tmp_path, capsys):
    runs = []
    for group, rate in (("a", 0.1), ("b", 0.2)):
        for seed in (1, 2, 3):
            right = [n < 20 + 2 * seed for n in range(40)]
            config = {"seed": seed, "run_name": f"{group}{seed}", "optim": {"matrix_lr": rate}}
            runs.append(str(write(tmp_path, f"sft/{group}{seed}", right, config=config)))
    assert main(runs) == 0
    assert "sft/a1, sft/a2, sft/a3 differ in their seed only: --seeds" in capsys.readouterr().out
    assert main([*runs, "--seeds", "--json", str(tmp_path / "out.json")]) == 0
    assert "seeds of sft/b1 (seed 1, 2, 3), recall exact_match: not distinguishable" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["seed_groups"] == [[f"sft/{group}{seed}" for seed in (1, 2, 3)] for group in "ab"]
    assert document["seeds"][0]["spreads"][0]["mean"] == pytest.approx(0.6)
    assert document["seeds"][0]["spreads"][0]["std"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN"),
        (["nowhere"], "nowhere"),
        (["{run}", "{run}"], "given twice"),
        (["{run}", "--limit", "-3"], "--limit"),
        (["{run}", "--metric", "fluency"], "there are exact_match"),
        (["{run}", "--seeds"], "config.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said, tmp_path, capsys):
    run = write(tmp_path, "sft/d4", [True])
    assert main([word.format(run=run) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said in error
