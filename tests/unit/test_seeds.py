"""Runs that differ in their seed: which belong together, and what their spread says."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from nanochat_pl.eval.power import Seeds
from nanochat_pl.report.compare import compare_runs
from nanochat_pl.report.comparison_report import build_comparison, tables
from nanochat_pl.report.evaluated import EvaluatedRun
from nanochat_pl.report.seeds import compare_seeds, group_by_seed, learn_design
from tests.unit.evaluated import entrant, recalled


def seeded(
    name: str, seed: int, lr: float, right: int, stage: str = "sft", order_seed: int | None = None
) -> EvaluatedRun:
    run = {
        "seed": seed,
        "data": {"root": "data"} | ({} if order_seed is None else {"order_seed": order_seed}),
        "run_name": name,
        "optim": {"lr": lr},
        "init_from": f"outputs/base/{name}/checkpoints/best.ckpt",
    }
    return entrant(name, recalled([n < right for n in range(40)], stage=stage), run=run)


def test_runs_of_one_config_are_one_group_whatever_their_seed_and_name():
    runs = [seeded("x1", 1, 0.1, 20), seeded("y1", 1, 0.2, 30), seeded("x2", 2, 0.1, 22), seeded("y2", 2, 0.2, 31)]
    assert group_by_seed(runs) == [[0, 2], [1, 3]]
    assert group_by_seed([seeded("x", 1, 0.1, 20), seeded("x", 1, 0.1, 20, stage="mid")]) == [[0], [1]]
    orders = [seeded("x1", 1, 0.1, 20), *(seeded(f"o{n}", 1, 0.1, 20, order_seed=n) for n in (0, 1))]
    assert group_by_seed([*orders, seeded("y", 1, 0.2, 20, order_seed=1)]) == [[0, 1, 2], [3]]
    report = build_comparison(orders[:2])
    assert report.notes == ["x1, o0 differ in their seed only: --seeds gives their mean ± std"]
    (_, _, _), (title, header, _) = tables(build_comparison(orders, seeds=True))
    assert title.startswith("over seeds") and header == ["", "x1 (seed 1; data.order_seed null, 0, 1)"]
    with pytest.raises(ValueError, match=r"config\.yaml"):
        group_by_seed([entrant("a", recalled([True]))])


def test_groups_of_seeds_have_mean_and_std_and_win_only_outside_the_noise():
    runs = [seeded(f"x{n}", n, 0.1, right) for n, right in enumerate((20, 22, 21))]
    near = [seeded(f"y{n}", n, 0.2, right) for n, right in enumerate((21, 24, 22))]
    far = [seeded(f"z{n}", n, 0.3, right) for n, right in enumerate((34, 36, 35))]
    entrants = [*runs, *near, *far]
    [line] = compare_seeds(entrants, compare_runs(entrants), group_by_seed(entrants))
    values = np.array([20, 22, 21]) / 40
    spread = line.spreads[0]
    assert spread is not None
    assert (spread.mean, spread.std) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert spread.interval is not None
    assert (spread.interval.low, spread.interval.high) == (pytest.approx(low), pytest.approx(high))
    assert line.verdicts[1].startswith("not distinguishable")
    # All pairs of these differ by 14 of 40 questions: how pairs vary is not known, but how runs do.
    assert re.fullmatch(r"z0 is better than x0 by 35\.0 points \(p < 0\.001, .*n = 3 and 3 seeds\)", line.verdicts[2])
    assert "3 pairs of seeds" in line.verdicts[1]


def test_a_figure_that_a_run_of_a_pair_lacks_is_compared_without_pairs():
    entrants = [seeded(f"{name}{n}", n, lr, 20 + n) for name, lr in (("x", 0.1), ("y", 0.2)) for n in range(3)]
    metrics = [
        replace(metric, rows=[*metric.rows[:-1], None], differences=[*metric.differences[:-1], None])
        for metric in compare_runs(entrants)
    ]
    [line] = compare_seeds(entrants, metrics, group_by_seed(entrants))
    assert "n = 3 and 2 seeds" in line.verdicts[1]


def test_how_differences_vary_is_learned_from_all_recipes_with_the_seeds_of_the_first():
    def recipe(name: str, lr: float, right: Sequence[int]) -> list[EvaluatedRun]:
        return [seeded(f"{name}{n}", n, lr, count) for n, count in enumerate(right)]

    x, y, z = recipe("x", 0.1, (10, 20, 30)), recipe("y", 0.2, (12, 21, 31)), recipe("z", 0.3, (13, 25, 34))
    other = recipe("o", 0.4, (35, 5))

    def learned(*groups: list[EvaluatedRun]) -> tuple[Seeds, int]:
        runs = [run for group in groups for run in group]
        return learn_design(compare_runs(runs)[0], runs)

    design, df = learned(x, y, z, other)
    variances = [np.var([2, 1, 1], ddof=1), np.var([3, 5, 4], ddof=1)]
    assert (design.paired, df) == (True, 4)
    assert design.std == pytest.approx(np.sqrt(np.mean(variances)) / 40)
    alone, df = learned(x, other)
    assert (alone.paired, df) == (False, 3)
    same, df = learned(x, recipe("s", 0.5, (11, 21, 31)))  # all differ by one question
    assert (same.paired, same.std, df) == (False, pytest.approx(0.25), 4)
