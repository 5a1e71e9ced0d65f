"""Reports say what the files of runs say, also of runs that crashed, and nothing that the figures do not carry."""

import csv
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from nanochat_pl.cli.report import main
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.config.stages import STAGES
from nanochat_pl.eval.results import Evaluation, MetricRow, proportion_row, results_document
from nanochat_pl.eval.stats import Interval, binomial_test
from nanochat_pl.report import charts, run_report
from nanochat_pl.report.blocks import Code, TextTable, render_markdown
from nanochat_pl.report.charts import ChartLine, Drawing, curve_figures, line_chart, thin
from nanochat_pl.report.html import render_html
from nanochat_pl.report.read import Run, best_point, find_chain, read_run
from nanochat_pl.report.run_report import report_blocks
from nanochat_pl.report.scores import chance_verdict, summary_table
from nanochat_pl.report.textlog import parse_text_log

VALIDATION = {0: 3.1, 10: 1.9, 20: 1.4, 30: 1.6}
SCRIPT = "<script>alert('x')</script> | `tick` <b>"


def write_run(
    outputs: Path,
    stage: str,
    name: str = "tiny",
    *,
    status: str | None = "finished",
    validation: dict[int, float] = VALIDATION,
    **summary: Any,
) -> Path:
    """Write the files that a training run leaves; `status=None` leaves out the summary."""
    folder = outputs / stage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: 42\nrun_name: {name}\nstage:\n  name: {stage}\n  sequence_len: 64\n")
    record = {"argv": ["train.py", f"stage={stage}"], "started": "2026-11-21T14:42:30+0000", "git_commit": "a34eb88f"}
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["step", "val/bpb", "train/loss", "train/lrm", "train/tok_per_sec"], restval="")
        table.writeheader()
        for step in range(31):
            if step in validation:
                table.writerow({"step": step, "val/bpb": validation[step]})
            loss = 7 - step / 10
            table.writerow({"step": step, "train/loss": loss, "train/lrm": 1.0, "train/tok_per_sec": 4000 + step})
    if status is not None:
        facts = {"stage": stage, "run_name": name, "status": status, "step": 30, "num_steps": 30, "wall_s": 60.0}
        (folder / "summary.json").write_text(json.dumps(facts | summary))
    return folder


def write_results(
    folder: Path, name: str, rows: list[MetricRow], *, checkpoint: str = "best", step: int | None = None, **record: Any
) -> Path:
    """Write an evaluation as `evaluate.py` does."""
    evaluation = Evaluation(records=[], rows=rows, seconds=30.0, num_answered=2)
    document = results_document(evaluation, name=name, checkpoint={"path": "x", "hash": "y", "step": step}, config={})
    target = folder / "eval" / name / checkpoint
    target.mkdir(parents=True)
    (target / "results.json").write_text(json.dumps(document))
    questions = [{"id": str(i), "prompt": SCRIPT, "expected": "B", "output": SCRIPT, **record} for i in range(2)]
    (target / "examples.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return target


def accuracy(task: str, correct: int, n: int, *, chance: float = 0.25, **more: Any) -> MetricRow:
    holds = [True] * correct + [False] * (n - correct)
    return proportion_row(task, more.pop("metric", "accuracy"), holds, baseline={"chance": chance}, **more)


def pages(runs: Sequence[Run], **options: Any) -> tuple[str, str]:
    blocks = report_blocks(runs, **options)
    return render_markdown(blocks, lambda figure: f"plots/{figure.name}.svg"), render_html(blocks)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the drawing where only words matter."""
    blank = Drawing("<svg></svg>", SimpleNamespace(savefig=lambda file, **options: None))
    monkeypatch.setattr(charts, "line_chart", lambda lines, **options: blank)
    monkeypatch.setattr(run_report, "history_figure", lambda runs: None)


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Make the report of a chain with evaluations once, as Markdown and as a page."""
    return pages(chain(tmp_path_factory.mktemp("outputs")))


# --- reading runs ---


def test_a_torn_last_line_is_left_out_even_where_it_parses(tmp_path: Path):
    folder = write_run(tmp_path, "base")
    with (folder / "metrics.csv").open("a") as file:
        file.write("40,0.1")  # of 0.1234
    run = read_run(folder)
    assert run.curves["val/bpb"][-1] == (30, 1.6)
    assert any("half written" in problem for problem in run.problems)


def test_a_step_that_stands_twice_counts_as_written_last(tmp_path: Path):
    folder = write_run(tmp_path, "base")
    with (folder / "metrics.csv").open("a") as file:
        file.write("20,1.5,,,\n")
    assert read_run(folder).curves["val/bpb"] == ((0, 3.1), (10, 1.9), (20, 1.5), (30, 1.6))


def test_a_cell_that_is_no_number_is_named_and_the_rest_is_read(tmp_path: Path):
    folder = write_run(tmp_path, "base")
    with (folder / "metrics.csv").open("a") as file:
        file.write("40,oops,5.5,,\n")
    run = read_run(folder)
    assert run.curves["train/loss"][-1] == (40, 5.5)
    assert any("oops" in problem for problem in run.problems)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "still going or was killed; it last wrote 2 hours"),
        ("running", "still going or was killed; it last wrote 2 hours"),
        ("failed: ValueError", "failed: ValueError"),
        ("stopped", "stopped at step 30 of 30"),
    ],
)
def test_an_unfinished_run_is_reported_with_its_status(tmp_path: Path, status: str | None, said: str):
    folder = write_run(tmp_path, "base", status=status)
    run = read_run(folder, now=(folder / "metrics.csv").stat().st_mtime + 7300)
    markdown, html = pages([run])
    assert run.step == 30
    assert said in markdown
    assert said in html
    assert "no evaluation yet" in markdown
    assert "at least" in markdown


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "summary.json", "metrics.csv"])
@pytest.mark.parametrize("content", [None, b"", b"{\0", b"[1]\n"])
def test_any_file_of_a_run_may_be_missing_or_torn(tmp_path: Path, name: str, content: bytes | None):
    folder = write_run(tmp_path, "base")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    run = read_run(folder)
    markdown, _ = pages([run])
    assert run.stage == "base"
    if content is None:
        assert any(f"no {name}" in problem for problem in run.problems)
    assert "base" in markdown


def test_results_that_cannot_be_read_are_named_and_left_out(tmp_path: Path):
    folder = write_run(tmp_path, "base")
    write_results(folder, "chat", [accuracy("MMLU", 5, 10)])
    torn = write_results(folder, "core", [accuracy("piqa", 5, 10)]) / "results.json"
    torn.write_bytes(torn.read_bytes()[:100])
    run = read_run(folder)
    assert [result.name for result in run.results] == ["chat"]
    assert any("eval/core/best/results.json" in problem for problem in run.problems)


@pytest.mark.parametrize(("step", "outdated"), [(20, True), (30, False), (None, False)])
def test_results_of_a_checkpoint_written_since_are_reported_as_outdated(
    tmp_path: Path, step: int | None, outdated: bool
):
    folder = write_run(tmp_path, "base", best_step=30)
    write_results(folder, "chat", [accuracy("MMLU", 5, 10)], step=step)
    write_results(folder, "chat", [accuracy("MMLU", 5, 10)], checkpoint="last", step=step)
    found = [problem for problem in read_run(folder).problems if "of step 20" in problem]
    assert len(found) == 2 * outdated
    assert all("is of step 30 now" in problem and "eval=chat" in problem for problem in found)


@pytest.mark.parametrize("stage", ["tokenizer", "base", "sft", "rl"])
def test_a_chain_is_found_from_any_of_its_stages_in_the_order_of_training(tmp_path: Path, stage: str):
    folders = [write_run(tmp_path, name) for name in ("tokenizer", "base", "mid", "sft", "rl")]
    write_run(tmp_path, "base", "another")
    assert find_chain([tmp_path / stage / "tiny"]) == folders
    assert find_chain([tmp_path / stage / "tiny"], whole=False) == [tmp_path / stage / "tiny"]


def test_a_chain_follows_the_start_weights_to_a_run_of_another_name(tmp_path: Path):
    base = write_run(tmp_path / "outputs", "base", "old")
    sft = write_run(tmp_path / "outputs", "sft", init_from="outputs/base/old/checkpoints/best.ckpt (base, step 30)")
    assert find_chain([sft]) == [base, sft]


def test_a_folder_that_is_no_run_is_refused_with_the_runs_near_it(tmp_path: Path):
    write_run(tmp_path, "base")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "base" / "tiny"))):
        find_chain([tmp_path / "base"])


def test_a_killed_run_has_a_median_speed(tmp_path: Path):
    assert read_run(write_run(tmp_path, "base", status="running")).median_speed == 4015.5
    assert read_run(write_run(tmp_path, "mid", median_tok_per_sec=7.0)).median_speed == 7.0


def test_reading_and_reporting_load_no_torch(tmp_path: Path):
    folder = write_run(tmp_path, "tokenizer")
    program = "import sys; from nanochat_pl.cli.report import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120)
    assert "report.html" in done.stdout, done.stderr
    assert not {"torch", "lightning", "hydra", "omegaconf", "matplotlib"} & set(done.stdout.split())


# --- figures ---


@pytest.mark.parametrize("validation", [VALIDATION, {0: 1.0, 10: 2.0}, {0: math.nan, 10: 2.0, 20: 1.0, 30: math.inf}])
def test_the_best_step_marked_is_the_minimum_of_the_validation_curve(
    tmp_path: Path, validation: dict[int, float], monkeypatch: pytest.MonkeyPatch
):
    drawn: list[ChartLine] = []
    draw = charts.line_chart
    monkeypatch.setattr(charts, "line_chart", lambda lines, **options: drawn.extend(lines) or draw(lines, **options))
    run = read_run(write_run(tmp_path, "base", validation=validation))
    svg = {figure.name: figure.drawing.svg for figure in curve_figures(run.curves, "base")}
    step = min((step for step in validation if not math.isnan(validation[step])), key=validation.__getitem__)
    assert [line.best for line in drawn if line.best] == [(step, validation[step])]
    assert f"best: {validation[step]:.4g} at step {step}" in svg["base_bpb"]
    assert "bits per byte" in svg["base_bpb"]
    assert "nats per token" in svg["base_loss"]


@pytest.mark.parametrize(
    ("logged", "drawn"),
    [
        (["recall/recall/answer_bpb", "recall/recall/answer_margin"], ["recall"]),
        (["chat/MMLU/answer_bpb", "chat/GSM8K/answer_bpb"], ["MMLU", "GSM8K"]),
        (["core/arc/answer_bpb", "core/CORE/answer_bpb"], ["CORE"]),
        ([f"core/{n}/answer_bpb" for n in range(22)], list("01234567")),
    ],
)
def test_bits_of_answers_are_drawn_over_the_steps(logged: list[str], drawn: list[str], monkeypatch: pytest.MonkeyPatch):
    seen: list[ChartLine] = []
    draw = charts.line_chart
    monkeypatch.setattr(charts, "line_chart", lambda lines, **options: seen.extend(lines) or draw(lines, **options))
    curves = {"val/loss": ((0, 3.0), (20, 2.0)), **dict.fromkeys(logged, ((10, 2.5), (20, 2.0)))}
    _, figure = curve_figures(curves, "sft")
    assert figure.name == "sft_answers"
    assert "bits per byte of the answer" in figure.drawing.svg
    assert [line.label for line in seen[1:]] == drawn
    assert all(line.sparse for line in seen[1:])


def test_pass_at_1_is_best_where_it_is_highest():
    assert best_point(((0, 0.1), (5, 0.4), (9, 0.4)), higher=True) == (5, 0.4)


@pytest.mark.parametrize("length", [0, 1, 4, 599, 600, 601, 1201, 10_000])
def test_a_thinned_curve_keeps_its_ends_and_extremes_in_order(length: int):
    draw = random.Random(length)
    points = tuple((step, draw.gauss(0, 1)) for step in range(length))
    kept = thin(points, 600)
    assert len(kept) <= 600
    assert list(kept) == sorted(set(kept))
    if length > 1:
        assert {points[0], points[-1]} <= set(kept) <= set(points)
        assert {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])} <= set(kept)


def test_a_chart_is_reproducible_and_a_dollar_in_a_name_is_no_formula():
    lines = [ChartLine(label="cost $a$ 学 <b>", points=((0, 1.0), (1, math.nan), (2, 20_000.0)))]
    lines.append(ChartLine(label="one", points=((1, 3.0),)))
    drawing = line_chart(lines, y_label="tokens per second")
    assert drawing == line_chart(lines, y_label="tokens per second")
    assert "cost $a$ 学 &lt;b&gt;" in drawing.svg
    assert "20k" in drawing.svg
    assert drawing.png.startswith(b"\x89PNG")


def test_a_long_run_stays_a_small_page(tmp_path: Path):
    folder = write_run(tmp_path, "base")
    rows = "".join(f"{step},,{7 - math.log1p(step) / 3:.6f},1.0,{4000 + step % 97}\n" for step in range(10_000))
    (folder / "metrics.csv").write_text("step,val/bpb,train/loss,train/lrm,train/tok_per_sec\n" + rows)
    _, html = pages([read_run(folder)])
    assert len(html) < 400_000


# --- what is said ---


def chain(outputs: Path) -> list[Run]:
    base, sft = write_run(outputs, "base"), write_run(outputs, "sft")
    core = MetricRow(task="CORE", metric="core_metric", value=0.0123, n=22, baseline={"chance": 0.0})
    bits = [MetricRow(task=task, metric="answer_bpb", value=2.5, n=22) for task in ("piqa", "CORE")]
    write_results(base, "core", [accuracy("piqa", 51, 100, chance=0.5), *bits, core])
    write_results(base, "chat", [accuracy("MMLU", 20, 100)], checkpoint="last")
    write_results(base, "chat", [accuracy("MMLU", 30, 100)], checkpoint="best")
    chatcore = MetricRow(task="ChatCORE", metric="chatcore_metric", value=0.25, n=6, baseline={"MMLU": 0.25})
    rows = [accuracy("MMLU", 40, 100), chatcore, accuracy("ARC-Easy", 45, 100)]
    rows += [accuracy("MMLU", i + 1, 10, group={"subject": f"part {i} | $x$"}) for i in range(3)]
    write_results(sft, "chat", rows)
    return [read_run(folder) for folder in find_chain([sft])]


def test_the_summary_table_picks_the_best_checkpoints_headline_figures(tmp_path: Path):
    table = summary_table(chain(tmp_path))
    assert table.head == ("Metric", "BASE", "MID", "SFT", "RL")
    cells = {row[0]: row[1:] for row in table.rows}
    bits = "CORE, bits per byte of the answer"
    assert list(cells) == ["CORE", "ARC-Easy (chance 25.0%)", bits, "MMLU (chance 25.0%)", "ChatCORE"]
    assert cells[bits] == ("2.5000", "-", "-", "-")
    assert cells["CORE"] == ("0.0123", "-", "-", "-")
    assert [cell.split(" ")[0] for cell in cells["MMLU (chance 25.0%)"]] == ["30.0%", "-", "40.0%", "-"]
    assert cells["ChatCORE"] == ("-", "-", "0.2500", "-")


def test_figures_of_one_name_from_two_evaluations_stand_apart(tmp_path: Path):
    run = write_run(tmp_path, "base")
    for name, value in (("arc", 1.5), ("chat", 5.5)):
        write_results(run, name, [MetricRow(task="ARC-Easy", metric="answer_bpb", value=value, n=9)])
    write_results(run, "recall", [MetricRow(task="recall", metric="answer_bpb", value=2.5, n=9)])
    cells = {row[0]: row[1] for row in summary_table([read_run(run)]).rows}
    name = "bits per byte of the answer"
    assert cells == {
        f"ARC-Easy, {name} (arc)": "1.5000",
        f"ARC-Easy, {name} (chat)": "5.5000",
        f"recall, {name}": "2.5000",
    }


@pytest.mark.usefixtures("no_drawing")
def test_only_shares_are_written_in_percent(tmp_path: Path):
    text = pages(chain(tmp_path))[0]
    assert "| CORE, core_metric | 0.0123 | chance 0 | 22 |" in text
    assert "| ChatCORE, chatcore_metric | - | - | 0.2500 | chance 0 | 6 |" in text
    assert re.search(r"\| MMLU, accuracy \| 30\.0% .* \| chance 25\.0% \|", text)
    folder = write_run(tmp_path, "mid")
    write_results(folder, "tokenizer", [MetricRow(task="tokenizer", metric="tokens", value=573_210.0, n=9)])
    assert "| tokens | 573,210 | - | 9 |" in pages([read_run(folder)])[0]


def test_several_runs_of_a_stage_have_columns_of_their_own(tmp_path: Path):
    runs = [read_run(write_run(tmp_path, "base", name)) for name in ("one", "two")]
    assert summary_table(runs).head == ("Metric", "base/one", "base/two")


@pytest.mark.parametrize(
    ("correct", "said"),
    [
        ((26, 24), "not distinguishable from chance (2 accuracies measured; smallest p = 1.000, Holm over 2 tests)"),
        ((60, 60), "better than chance (all 2 accuracies measured)"),
        ((60, 25), "better than chance in 1 of 2 accuracies: first"),
        ((0, 25), "nowhere better than chance (2 accuracies measured); worse than chance: first"),
        ((60, 0), "better than chance in 1 of 2 accuracies: first; worse than chance: second"),
    ],
)
def test_an_accuracy_is_better_than_chance_only_below_a_corrected_p_of_5_percent(correct: tuple[int, int], said: str):
    rows = [accuracy(task, number, 100) for task, number in zip(("first", "second"), correct)]
    verdict = chance_verdict(rows)
    assert verdict is not None
    assert verdict[0].startswith(said)
    assert len(verdict.above) == sum(number == 60 for number in correct)
    assert verdict.num_compared == 2


def test_one_lucky_task_of_many_is_not_better_than_chance():
    lucky = accuracy("lucky", 36, 100)  # p = 0.019 by itself
    alone = chance_verdict([lucky])
    assert alone is not None
    assert alone[0] == "better than chance (one accuracy measured)"
    among = chance_verdict([lucky, *(accuracy(f"task {i}", 25, 100) for i in range(21))])
    assert among is not None
    assert among[0].startswith("not distinguishable from chance (22 accuracies measured; smallest p = 0.414")
    assert among.above == ()


@pytest.mark.parametrize("chance", [0.25, 0.62, 0.0, 1.0])
@pytest.mark.parametrize("n", [1, 12, 500])
def test_the_test_against_chance_is_the_exact_binomial_one(chance: float, n: int):
    stats = pytest.importorskip("scipy.stats")
    for count in {0, 1, n // 4, n // 2, n}:
        tails = stats.binom.cdf(count, n, chance), stats.binom.sf(count - 1, n, chance)
        assert binomial_test(count, n, chance) == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-9)


@pytest.mark.parametrize(("low", "said"), [(-0.05, True), (0.02, False)])
def test_core_is_not_distinguishable_from_0_where_its_interval_holds_0(low: float, said: bool):
    core = MetricRow(task="CORE", metric="core_metric", value=0.06, n=22, interval=Interval(low, 0.19))
    verdict = chance_verdict([accuracy("piqa", 60, 100), core])
    assert verdict is not None
    assert ("CORE itself is not distinguishable from 0" in verdict[0]) == said


def test_without_a_chance_baseline_nothing_is_compared_with_chance():
    assert chance_verdict([MetricRow(task="text", metric="bpb", value=1.5, n=100)]) is None


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("correct", "said"),
    [
        ((26, 24, 25), "Chance: none of 3 accuracies is better than guessing"),
        ((26, 60, 25), "Mostly chance: 1 of 3 accuracies are better than guessing: second."),
        ((60, 60, 25), "2 of 3 accuracies are better than guessing."),
    ],
)
def test_a_report_says_at_its_top_how_much_of_it_is_chance(tmp_path: Path, correct: tuple[int, ...], said: str):
    folder = write_run(tmp_path, "base")
    rows = [accuracy(task, number, 100) for task, number in zip(("first", "second", "third"), correct)]
    write_results(folder, "chat", rows)
    markdown, page = pages([read_run(folder)])
    top, _, rest = markdown.partition("## Summary")
    assert said in top and said in page
    assert "chance (" in rest or "chance in" in rest


@pytest.mark.usefixtures("no_drawing")
def test_a_report_begins_with_the_figures_that_rose_over_the_stages(tmp_path: Path):
    """Free recall has no choices to guess among: always the commonest answer is what it is held against."""
    runs = []
    for stage, recalled in (("base", 0), ("sft", 99), ("rl", 99)):
        folder = write_run(tmp_path, stage)
        holds = [True] * recalled + [False] * (100 - recalled)
        exact = proportion_row("recall", "exact_match", holds, baseline={"majority": 0.02, "majority_answer": "asia"})
        write_results(folder, "recall", [exact])
        write_results(folder, "scienceqa", [accuracy("scienceqa", 26, 100, metric="loglikelihood/accuracy")])
        runs.append(read_run(folder))
    top = pages(runs)[0].partition("## Summary")[0]
    assert "recall, exact match rose from 0.0% (base) to 99.0% (rl). Mostly chance: 2 of 6 accuracies are better" in top
    assert "better than guessing: recall, exact match (2 times)." in top
    assert "scienceqa, by likelihood rose" not in top


@pytest.mark.usefixtures("no_drawing")
def test_a_fact_of_some_runs_only_is_shown_with_their_names(tmp_path: Path):
    base, sft = (write_run(tmp_path, stage) for stage in ("base", "sft"))
    gpu = {"name": "some card", "memory_bytes": 80 * 2**30}
    machine = {"git_branch": "work", "cpu": "some processor", "cpu_count": 16, "memory_bytes": 2**37, "gpus": [gpu] * 8}
    for folder, more in ((base, machine), (sft, {})):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"python": "3.11.2"} | more))
    table = next(
        block
        for block in report_blocks([read_run(base), read_run(sft)])
        if isinstance(block, TextTable) and block.head[0] == "Where it ran"
    )
    facts = {row[0]: row[1] for row in table.rows}
    assert facts["python"] == "3.11.2"
    assert facts["git commit"] == "base: a34eb88f (branch work); sft: a34eb88f"
    assert facts["processor"] == "base: some processor, 16 cores"
    assert facts["memory"] == "base: 128.00 GiB"
    assert facts["GPU"] == "base: 8 × some card (80.00 GiB)"


def test_every_setting_that_is_shown_exists():
    for key in {key for stage in STAGES for key in run_report._shown_settings(stage)}:
        holder: Any = TrainConfig
        for part in key.split("."):
            fields = get_type_hints(holder)
            assert part in fields, f"{key} is no setting"
            holder = fields[part]


def test_markdown_tables_have_equal_columns(whole_report: tuple[str, str]):
    markdown, _ = whole_report
    tables = re.findall(r"(?:^\|.*\|$\n?)+", markdown, re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_the_fence_of_code_is_longer_than_any_inside():
    text = render_markdown([Code("````\n# not a title")], lambda figure: "")
    assert text.splitlines()[0] == "`````text"
    assert text.splitlines()[-1] == "`````"


@pytest.mark.usefixtures("no_drawing")
def test_cost_is_time_times_rate(tmp_path: Path):
    runs = [read_run(write_run(tmp_path, stage, wall_s=1800.0)) for stage in ("base", "mid")]
    assert "Cost at 24.00 USD an hour for the machine: 24.00 USD." in pages(runs, usd_per_hour=24.0)[0]
    assert "Cost" not in pages(runs)[0]


# --- the page ---


class Page(HTMLParser):
    """Collect what a page loads and checks that its elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "link", "img", "source", "wbr", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("no_drawing")
def test_samples_of_a_prompt_stand_together_from_the_first_to_the_last(tmp_path: Path):
    run = chain(tmp_path)[0]
    lines = [
        {"step": step, "prompt": prompt, "output": f"{prompt} {step}", "tokens": 7, "stopped": step == 40}
        for step in (10, 20, 30, 40)
        for prompt in ("Iron\nis", "Water is")
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "samples.jsonl").write_text(text + '{"step": 50, "pro')
    for page in pages([read_run(run.folder)]):
        titles = [page.index(title) for title in (": Iron is", ": Water is")]
        assert titles == sorted(titles)
        shown = ("step 10, cut after 7 tokens:", "Water is 10", "step 30, cut after 7 tokens:", "Water is 30",
                 "step 40:", "Water is 40")  # fmt: skip
        places = [page.index(words, titles[1]) for words in shown]
        assert places == sorted(places)
        assert "Water is 20" not in page


@pytest.mark.usefixtures("no_drawing")
def test_the_page_escapes_what_models_wrote(tmp_path: Path):
    runs = chain(tmp_path)
    (runs[0].folder / "samples.jsonl").write_text(
        json.dumps({"step": 1, "question": SCRIPT, "answers": [{"reward": 0.0, "text": SCRIPT + "\x1b"}]}) + "\n"
    )
    _, html = pages([read_run(run.folder) for run in runs])
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert html.count("&lt;script&gt;") >= 6
    assert "\x1b" not in html


def test_the_page_loads_nothing_from_outside(whole_report: tuple[str, str]):
    _, html = whole_report
    page = Page(html)
    assert len(page.addresses) > 8
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "url(" not in html
    anchors = {address for address in page.addresses if address.startswith("#")}
    assert all(f'id="{anchor[1:]}"' in html for anchor in anchors)


# --- old text logs ---

LOG = """loading the model ...
Step 00000 | Val loss: 1.967000
Step 00000/00748 | Train loss: 1.997108 | LR: 1.0000 | Tok/s: 2,355 | Time: 5.46s
Step 00025 | Val loss: 1.822012
Step 00025/00748 | Train loss: 1.597108 | LR: 0.9666 | Tok/s: 2355 | Time: 5.46s
Step 00030/00748 | Train loss: nan | LR: 0.9
"""


def test_both_forms_of_an_old_log_become_curves():
    log = parse_text_log(LOG)
    assert log.curves["val/loss"] == ((0, 1.967), (25, 1.822012))
    assert log.curves["train/loss"][:2] == ((0, 1.997108), (25, 1.597108))
    assert math.isnan(log.curves["train/loss"][2][1])
    assert log.curves["train/lrm"][1:] == ((25, 0.9666), (30, 0.9))
    assert log.curves["train/tok_per_sec"] == ((0, 2355.0), (25, 2355.0))
    assert log.curves["train/dt"][0] == (0, 5.46)
    assert (log.num_steps, log.num_lines) == (748, 5)


def test_a_text_without_training_lines_is_refused_with_the_forms_expected():
    with pytest.raises(ValueError, match=r"Step 00025 \| Val loss"):
        parse_text_log("step by step | nothing\nStep 3 | hello")


# --- the command ---


def test_the_command_writes_both_files_and_every_plot_they_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "old.log").write_text(LOG)
    chain(tmp_path / "outputs")
    base = str(tmp_path / "outputs" / "base" / "tiny")
    assert main([base, "--log", str(tmp_path / "old.log"), "--usd-per-hour", "3"]) == 0
    out = tmp_path / "outputs" / "report" / "tiny"
    assert str(out / "report.html") in capsys.readouterr().out
    markdown = (out / "report.md").read_text()
    shown = re.findall(r"\]\((plots/[^)]+)\)", markdown)
    assert len(shown) == len(set(shown)) > 8
    assert all((out / name).read_text().startswith("<svg") for name in shown)
    assert "best 1.822 at step 25" in markdown
    assert Page((out / "report.html").read_text()).open == []


def test_runs_of_equal_names_keep_their_own_plots(tmp_path: Path):
    jobs = [write_run(tmp_path / job, "base", validation={0: 3.0, 10: best}) for job, best in (("0", 2.5), ("1", 1.5))]
    assert main([*map(str, jobs), "--out", str(tmp_path / "out"), "--alone"]) == 0
    shown = re.findall(r"\[[^]]*best (\S+) at[^]]*\]\((plots/[^)]+)\)", (tmp_path / "out" / "report.md").read_text())
    assert [best for best, _ in shown] == ["2.5", "1.5"]
    assert all(f"best: {best} at step 10" in (tmp_path / "out" / path).read_text() for best, path in shown)


@pytest.mark.usefixtures("no_drawing")
def test_the_run_may_be_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(write_run(tmp_path, "base"))
    assert main(["."]) == 0
    assert (tmp_path / "report" / "tiny" / "report.md").is_file()


@pytest.mark.usefixtures("no_drawing")
def test_a_job_of_a_sweep_is_reported_in_its_own_folder(tmp_path: Path):
    folder = write_run(tmp_path, "base").rename(tmp_path / "0")
    assert main([str(folder)]) == 0
    assert (folder / "report" / "report.md").is_file()


def test_a_log_alone_is_enough(tmp_path: Path):
    (tmp_path / "old.log").write_text(LOG)
    assert main(["--log", str(tmp_path / "old.log")]) == 0
    assert "1.8220 at step 25" in (tmp_path / "old_report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to report on"),
        (["here", "--usd-per-hour", "-1"], 2, "no price"),
        (["here"], 1, "is no run folder"),
        (["--log", "here"], 1, "no log at here"),
    ],
)
def test_a_mistake_is_one_line_that_says_the_remedy(
    tmp_path: Path,
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_drawing")
def test_a_table_row_is_as_long_as_its_head(tmp_path: Path):
    for block in report_blocks(chain(tmp_path)):
        if isinstance(block, TextTable):
            assert {len(row) for row in block.rows} <= {len(block.head)}
