"""Training curves in `compare`, and `power`: what is read of runs, what is said of them, and what is refused."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

import pytest
import yaml

from nanochat_pl.cli.compare import main as compare
from nanochat_pl.cli.power import main as power
from nanochat_pl.eval.power import Seeds, detectable_effect, number_needed, paired_design
from nanochat_pl.eval.results import proportion_row
from nanochat_pl.eval.stats import paired_t_test, welch_test
from nanochat_pl.report.compare import compare_runs
from nanochat_pl.report.efficiency import SPENT, spent_curves
from nanochat_pl.report.read import EvaluationResult, read_metrics
from tests.unit.evaluated import answers, entrant, pattern, result, write

FLOPS_PER_TOKEN, TOKENS = 100, 64
STEPS = range(10, 101, 10)
WOBBLE = (0.0, 0.004, -0.003, 0.002, -0.005)


def law(tokens: float, times: float = 1.0) -> float:
    return 30 * (tokens * times) ** -0.3


def wobble(seed: int, times: float = 1.0) -> float:
    """What a seed multiplies losses by: most of it is common to all recipes."""
    return 1 + WOBBLE[seed % len(WOBBLE)] + (0.0 if times == 1 else 2e-4 * (seed % 3 - 1))


def trained(
    root: Path,
    name: str,
    losses: Sequence[float] | None = None,
    *,
    times: float = 1.0,
    seed: int = 0,
    stage: str = "base",
    status: str = "finished",
    steps: Sequence[int] = STEPS,
    num_steps: int | None = None,
    **config: object,
) -> Path:
    """Write what a run leaves behind: rows of training and of validation, each with its own columns."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    losses = losses or [law(step * TOKENS, times) * wobble(seed, times) for step in steps]
    rows = ["step,val/bpb,tokens,total_training_flops,total_training_time", "0,9.0,,,"]
    for update in (0, *(step - 1 for step in range(3, steps[-1] + 1, 3)), steps[-1] - 1):  # not those of validation
        done = (update + 1) * TOKENS
        rows.append(f"{update},,{done},{done * FLOPS_PER_TOKEN},{0.5 * (update + 1)}")
    rows += [f"{step},{loss}," + "," for step, loss in zip(steps, losses)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    whole = {
        "seed": seed,
        "run_name": folder.name,
        "stage": {"name": stage, "num_steps": num_steps or steps[-1], "val_tokens": 512},
        "data": {"source": "local", "root": "texts", "order_seed": seed},
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    (folder / "summary.json").write_text(json.dumps({"stage": stage, "status": status, "step": steps[-1]}))
    return folder


def recipes(root: Path, times: float = 0.8, seeds: int = 3, *, apart: int = 0) -> list[str]:
    """Runs of two recipes; those of the second have seeds that are larger by `apart`."""
    return [
        str(trained(root, f"base/{name}{seed}", times=own, seed=seed, optim={"lr": own}))
        for name, own, first in (("a", 1.0, 0), ("b", times, apart))
        for seed in range(first, first + seeds)
    ]


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert compare([str(word) for word in arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


# -- curves -------------------------------------------------------------------------------------------------------


def test_what_was_spent_is_read_between_the_logged_rows(tmp_path):
    curves = spent_curves(read_metrics(trained(tmp_path, "base/a") / "metrics.csv", []))
    assert {*curves} == {*SPENT}
    assert [spent for spent, _ in curves["tokens"]] == pytest.approx([step * TOKENS for step in STEPS])
    assert [spent for spent, _ in curves["total_training_flops"]] == pytest.approx([s * 6400.0 for s in STEPS])
    assert [spent for spent, _ in curves["total_training_time"]] == pytest.approx([0.5 * step for step in STEPS])
    assert curves["tokens"][0][1] == pytest.approx(law(640))


def test_runs_that_were_never_evaluated_are_compared_by_their_training(tmp_path, capsys):
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "markdown", "html")]
    text = said(capsys, *recipes(tmp_path), "--seeds", *files)
    document = json.loads((tmp_path / "json").read_text())
    [multiplier] = document["multipliers"]
    assert multiplier["runs"] == ["base/b0", "base/b1", "base/b2"]
    assert multiplier["baseline"] == [["base/a0", "base/a1", "base/a2"]]
    for key in SPENT:
        assert multiplier[key]["value"] == pytest.approx(0.8, rel=0.01)
        assert multiplier[key]["interval"]["low"] < 0.8 < multiplier[key]["interval"]["high"]
        assert multiplier[key]["extrapolated"] == 1
    assert "base/a0 takes 0.8" in text and "times the FLOPs" in text
    assert "data:image/svg+xml" in (tmp_path / "html").read_text()
    assert "![" not in (tmp_path / "markdown").read_text()  # a picture of its own would be missing
    for kind in ("markdown", "html"):
        page = html.unescape((tmp_path / kind).read_text())
        assert "How much is enough" in page
        assert "compute multiplier" in page
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith(("┃", "│", "  found")))


def test_the_better_recipe_is_extrapolated_and_marked(tmp_path, capsys):
    text = said(capsys, *recipes(tmp_path, 1.5), "--seeds", f"--json={tmp_path / 'json'}")
    [multiplier] = json.loads((tmp_path / "json").read_text())["multipliers"]
    assert multiplier["tokens"]["value"] == pytest.approx(1.5, rel=0.01)
    assert multiplier["tokens"]["extrapolated"] == pytest.approx(1.5, rel=0.01)
    assert "extrapolated" in text
    text = said(capsys, *recipes(tmp_path, 9.0), "--seeds")
    assert "no multiplier of FLOPs, tokens, seconds: more than 4 times outside the baseline's curve" in text


def test_single_runs_have_a_multiplier_without_an_interval(tmp_path, capsys):
    a, *_, b = recipes(tmp_path, seeds=1)
    text = said(capsys, a, b, f"--json={tmp_path / 'json'}")
    [multiplier] = json.loads((tmp_path / "json").read_text())["multipliers"]
    assert multiplier["tokens"]["value"] == pytest.approx(0.8, rel=0.01)
    assert multiplier["tokens"]["interval"] is None
    assert "another seed may say otherwise" in text


def test_a_baseline_of_several_lengths_is_the_curve_of_their_ends(tmp_path, capsys):
    runs = []
    for length in (20, 40, 80, 160):
        for seed in range(3):
            steps = range(length // 4, length + 1, length // 4)
            losses = [2 * law(step * TOKENS) for step in steps][:-1] + [law(length * TOKENS) * wobble(seed)]
            runs.append(trained(tmp_path, f"base/a{length}_{seed}", losses, seed=seed, steps=steps))
    for seed in range(3):
        losses = [1.0, law(100 * TOKENS, 0.6) * wobble(seed, 0.6)]
        runs.append(trained(tmp_path, f"base/b{seed}", losses, seed=seed, steps=(50, 100), optim={"lr": 2}))
    said(capsys, *runs, "--seeds", f"--json={tmp_path / 'json'}", f"--html={tmp_path / 'html'}")
    [multiplier] = json.loads((tmp_path / "json").read_text())["multipliers"]
    assert len(multiplier["baseline"]) == 4
    assert multiplier["tokens"]["value"] == pytest.approx(0.6, rel=0.01)
    assert multiplier["tokens"]["interval"]["low"] < 0.6 < multiplier["tokens"]["interval"]["high"]


def test_what_cannot_be_compared_is_left_out_and_said(tmp_path, capsys):
    a = trained(tmp_path, "base/a")
    other = trained(tmp_path, "base/b", data={"source": "local", "root": "others"})
    text = said(capsys, a, other)
    assert "base/b was validated on other text than base/a (data.root): no multiplier" in text
    assert "training: data.root was not the same for all: texts, others" in text
    text = said(capsys, a, trained(tmp_path, "base/c", status="stopped", optim={"lr": 2}))
    assert "training: status was not the same for all: finished, stopped" in text
    lengths = [STEPS, STEPS, (10, 20, 30)]  # the last was killed on its way
    seeds = [
        trained(tmp_path, f"base/s{seed}", seed=seed, steps=steps, num_steps=100, optim={"lr": 3})
        for seed, steps in enumerate(lengths)
    ]
    base = [trained(tmp_path, f"base/t{seed}", seed=seed) for seed in range(2)]
    text = said(capsys, *base, *seeds, "--seeds")
    assert "base/s2 was not validated at the same steps as its other seeds: left out" in text


def test_a_run_without_curves_or_evaluation_still_names_its_command(tmp_path, capsys):
    a = trained(tmp_path, "base/a")
    (tmp_path / "base" / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "base" / "empty" / "checkpoints" / "last.ckpt").write_text("")
    assert "measure it with `python evaluate.py" in said(capsys, a, tmp_path / "base" / "empty", code=2)
    (a / "checkpoints").mkdir()
    (a / "checkpoints" / "last.ckpt").write_text("")
    evaluated = write(tmp_path, "sft/d4", [True, False])
    assert "measure it with `python evaluate.py" in said(capsys, evaluated, a, code=2)


def test_stages_that_read_other_texts_are_not_compared_by_their_training(tmp_path, capsys):
    runs = [write(tmp_path, f"{stage}/d4", [True, False]) for stage in ("base", "mid")]
    for stage in ("base", "mid"):
        trained(tmp_path, f"{stage}/d4", stage=stage)
    text = said(capsys, *runs)
    assert "training" not in text
    assert "multiplier" not in text


# -- how much is enough -------------------------------------------------------------------------------------------


def test_seeds_are_tested_and_say_what_they_could_have_found(tmp_path, capsys):
    text = said(capsys, *recipes(tmp_path, 0.995, apart=2), "--seeds", f"--json={tmp_path / 'json'}")
    assert "n = 3 and 3 seeds" in text
    [seeds] = json.loads((tmp_path / "json").read_text())["seeds"]
    values = [
        [law(6400, times) * wobble(seed, times) for seed in range(first, first + 3)]
        for times, first in ((1.0, 0), (0.995, 2))
    ]
    p, interval = welch_test(*values)
    difference = seeds["differences"][1]
    assert difference["p_value"] == pytest.approx(p)
    assert difference["interval"]["low"] == pytest.approx(interval.low)
    assert seeds["verdicts"] == ["", difference["verdict"]]
    std = (sum(spread["std"] ** 2 for spread in seeds["spreads"]) / 2) ** 0.5
    enough = difference["enough"]
    assert enough["detectable"] == pytest.approx(detectable_effect(Seeds(std=std), 3), rel=1e-3)
    assert enough["needed"] == number_needed(Seeds(std=std), difference["difference"])


def test_runs_of_the_same_seeds_are_tested_in_pairs_whatever_their_order(tmp_path, capsys):
    a0, a1, a2, b0, b1, b2 = recipes(tmp_path, 0.99)
    text = said(capsys, a0, a1, a2, b2, b0, b1, "--seeds", f"--json={tmp_path / 'json'}")
    found = json.loads((tmp_path / "json").read_text())
    [seeds] = found["seeds"]
    values = [[law(6400, times) * wobble(seed, times) for seed in range(3)] for times in (1.0, 0.99)]
    p, interval = paired_t_test(*values)
    difference = seeds["differences"][1]
    assert (difference["p_value"], difference["corrected"]) == (pytest.approx(p), pytest.approx(p))
    assert difference["interval"]["high"] == pytest.approx(interval.high)
    assert p < 0.01 < welch_test(*values)[0] and "base/a0 is better than base/b" in text
    assert "n = 3 pairs of seeds" in text
    std = stdev(b - a for a, b in zip(*values))
    assert difference["enough"]["detectable"] == pytest.approx(
        detectable_effect(Seeds(std=std, paired=True), 3), rel=1e-3
    )
    [multiplier] = found["multipliers"]
    assert multiplier["tokens"]["interval"]["high"] < 1


def test_runs_that_read_their_texts_in_one_order_are_not_paired(tmp_path, capsys):
    for source in recipes(tmp_path, 0.99):
        file = Path(source) / "config.yaml"
        config = yaml.safe_load(file.read_text())
        del config["data"]["order_seed"]
        file.write_text(yaml.safe_dump(config))
    runs = sorted((tmp_path / "base").iterdir())
    assert "n = 3 and 3 seeds" in said(capsys, *runs, "--seeds")
    assert "over the seeds of 6 runs" in planned(capsys, *runs)


def test_seeds_that_only_some_have_are_not_paired(tmp_path, capsys):
    runs = recipes(tmp_path, 0.99)
    assert "n = 2 and 3 seeds" in said(capsys, *runs[1:], "--seeds")
    again = trained(tmp_path, "base/again", times=0.99, seed=2, optim={"lr": 0.99})
    assert "again have the same settings and seed=2" in said(capsys, *runs, again, "--seeds", code=2)


def test_every_tested_figure_says_what_its_questions_could_have_found(tmp_path, capsys):
    first, second = pattern(10, 8, 12, 10)
    runs = [write(tmp_path, "sft/a", first), write(tmp_path, "sft/b", second)]
    text = said(capsys, *runs, f"--json={tmp_path / 'json'}")
    [line] = json.loads((tmp_path / "json").read_text())["lines"]
    enough = line["judgements"][1]["enough"]
    assert (enough["n"], enough["unit"]) == (40, "questions")
    assert 0.1 < enough["detectable"] < 0.5
    assert enough["needed"] > 40
    points = f"{100 * enough['detectable']:.1f}"
    assert f"  found 4 times in 5: {points} points by 40 questions; 10.0 points by about {enough['needed']}" in text
    first, second = pattern(10, 2, 20, 8)
    text = said(capsys, write(tmp_path, "sft/c", first), write(tmp_path, "sft/d", second))
    assert re.search(r"is better than .*\n  found 4 times in 5: [\d.]+ points by 40 questions\n", text)
    first, second = pattern(1, 1, 1, 1)
    text = said(capsys, write(tmp_path, "sft/e", first), write(tmp_path, "sft/f", second))
    assert "4 questions are too few to find any difference" in text


def test_of_several_tests_each_says_what_it_finds_when_all_are_corrected():
    first, second = pattern(15, 5, 5, 15)

    def chat(right: list[bool]) -> EvaluationResult:
        tasks = [f"task{n}" for n in range(4)]
        rows = [proportion_row(task, "accuracy", right) for task in tasks]
        return result(rows, [record for task in tasks for record in answers(right, task)], "chat")

    lines = compare_runs([entrant("a", chat(first)), entrant("b", chat(second))])
    assert len(lines) == 4
    for line in lines:
        difference = line.differences[1]
        assert difference is not None and difference.enough is not None
        design = paired_design(first, second)
        assert difference.enough.detectable == detectable_effect(design, 40, 0.05 / 4)
        assert difference.enough.detectable > detectable_effect(design, 40)


def planned(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert power([str(word) for word in arguments]) == code
    captured = capsys.readouterr()
    return " ".join((captured.err if code else captured.out).split())


def test_power_answers_both_questions(tmp_path, capsys):
    text = planned(capsys, "--std", 0.004, "--effect", 0.005, "--seeds", 5, "--json", tmp_path / "json")
    assert "A difference of 0.0050 takes 12 seeds each to be found 80% of the time." in text
    assert "5 seeds each find 0.0083 and more, 80% of the time." in text
    document = json.loads((tmp_path / "json").read_text())
    assert (document["needed"], document["n"], document["unit"]) == (12, 5, "seeds")
    assert document["detectable"] == pytest.approx(0.00834, rel=1e-2)
    many = planned(capsys, "--std", 0.004, "--effect", 0.005, "--comparisons", 16)
    assert "takes 21 seeds each" in many
    assert "over 16 comparisons (Holm, by its first step: 0.0031)" in many
    text = planned(capsys, "--rate", 0.4, "--effect", 0.05, "--questions", 500)
    assert "48.0% of the questions differently" in text
    assert "takes 1,545 questions" in text
    assert "takes 249 questions" in planned(capsys, "--disagree", 0.3, "--effect", 0.1)
    pairs = planned(capsys, "--std", 0.004, "--paired", "--effect", 0.005)
    assert "std 0.004 of the differences between runs of one seed" in pairs and "takes 8 seeds each" in pairs


def test_power_learns_from_seeds_and_from_two_checkpoints(tmp_path, capsys):
    text = planned(capsys, *recipes(tmp_path, seeds=5), "--effect", 0.005)
    assert "training val/bpb: std 0.0" in text and "of the differences between runs of one seed (95% interval" in text
    assert "by the paired t test" in text
    text = planned(capsys, *recipes(tmp_path, seeds=5, apart=1), "--effect", 0.005)
    assert "over the seeds of 10 runs (95% interval" in text and "by Welch's t test" in text
    assert re.search(
        r"takes \d+ seeds each to be found 80% of the time. By the interval of the std: \d+ to \d+\.", text
    )
    first, second = pattern(10, 8, 12, 10)
    pair = [write(tmp_path, f"sft/{name}", own) for name, own in (("a", first), ("b", second))]
    text = planned(capsys, *pair, "--metric", "exact_match", "--effect", 0.1)
    assert "50.0% differently of 40 questions, as sft/a and sft/b do" in text
    seeds = [
        write(tmp_path, f"sft/s{n}", [k < 20 + n for k in range(40)], config={"seed": n, "run_name": f"s{n}"})
        for n in range(3)
    ]
    text = planned(capsys, *seeds, "--metric", "recall exact_match", "--effect", 0.05)
    assert "recall exact_match: std 2.5 points over the seeds of 3 runs" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "how the figure varies is not said"),
        (["--std", "1", "--rate", "0.3"], "said twice, by --std and --disagree or --rate"),
        (["--std", "1", "--questions", "4"], "--questions does not fit"),
        (["--rate", "0.3", "--seeds", "4"], "--seeds does not fit"),
        (["--rate", "0.3", "--paired"], "leave it out without --std"),
        (["--rate", "30"], "no share"),
        (["--std", "-1"], "above 0"),
        (["--std", "nan"], "above 0"),
        (["--std", "1", "--seeds", "2.5"], "whole number"),
        (["--rate", "0.3", "--effect", "5"], "from 0 to 1"),
        (["--rate", "0.3", "--disagree", "0.9"], "0.6 differently at most"),
        (["{a}", "--effect", "0.1"], "alone does not say"),
        (["{a}", "{b}", "--metric", "fluency"], "no figure is called fluency"),
        (["{a}", "nowhere"], "nowhere"),
        (["{a}", "{b}"], "does not say how it varies"),
    ],
)
def test_what_power_cannot_answer_is_one_line(arguments, said, tmp_path, capsys):
    runs = {"a": trained(tmp_path, "base/a"), "b": trained(tmp_path, "base/b", optim={"lr": 2})}
    (runs["a"] / "checkpoints").mkdir()
    (runs["a"] / "checkpoints" / "last.ckpt").write_text("")
    assert power([word.format(**runs) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert re.search(said, error), error
