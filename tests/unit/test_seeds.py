"""Runs that differ in their seed: which belong together, and what their spread says."""

import numpy as np
import pytest
import scipy.stats

from nanochat_pl.report.compare import compare_runs, compare_seeds, group_by_seed
from nanochat_pl.report.comparison_report import build_comparison, tables
from nanochat_pl.report.evaluated import EvaluatedRun
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
    assert line.verdicts[2].startswith("z0 is better than x0")
