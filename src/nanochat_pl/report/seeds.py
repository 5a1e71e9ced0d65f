"""Runs that differ in their seed only, taken together: what of a difference between two recipes is luck.

One run a recipe says nothing about the recipe: another seed may give another order. Mean and standard deviation over
seeds do, and two recipes differ only where the intervals of their means lie apart.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.stats import Spread, seed_spread
from nanochat_pl.report.comparison import Line, verdict_of_intervals
from nanochat_pl.report.evaluated import EvaluatedRun

__all__ = ["SeedLine", "compare_seeds", "group_by_seed"]


@dataclass(frozen=True, kw_only=True)
class SeedLine:
    """One figure of groups of runs that differ in their seed only."""

    evaluation: str
    task: str
    metric: str
    spreads: Sequence[Spread | None]
    """A group each; None where none of its runs has the figure."""
    verdicts: Sequence[str]
    """A group each, against the first; empty for the first."""


def group_by_seed(entrants: Sequence[EvaluatedRun]) -> list[list[int]]:
    """Return the indices of entrants whose runs have the same config but for the seed and their names.

    Raises:
        ValueError: The config of a run is not known.
    """
    groups: dict[str, list[int]] = {}
    for index, entrant in enumerate(entrants):
        if entrant.config is None:
            raise ValueError(
                f"{entrant.label} cannot be put into a group of seeds: there is no config.yaml of its run beside "
                f"{next(iter(entrant.results.values())).file}; give the run folder"
            )
        result = next(iter(entrant.results.values()))
        own = {
            key: value for key, value in entrant.config.items() if key not in ("seed", "run_name", "resume", "force")
        }
        text = json.dumps([own, result.checkpoint.get("stage")], sort_keys=True, default=str)
        # Start weights of an earlier stage lie in a folder of the run's own name.
        run_name = re.escape(str(entrant.config.get("run_name") or ""))
        groups.setdefault(re.sub(rf"(?<=[/\"]){run_name}(?=[/\"])", "*", text) if run_name else text, []).append(index)
    return list(groups.values())


def compare_seeds(
    entrants: Sequence[EvaluatedRun], lines: Sequence[Line], groups: Sequence[Sequence[int]]
) -> list[SeedLine]:
    """Summarize each figure over the runs of each group: mean, standard deviation, t interval; groups by overlap."""
    compared = []
    for line in lines:
        spreads: list[Spread | None] = []
        for group in groups:
            rows = [row for index in group if (row := line.rows[index]) is not None]
            values = [row.value for row in rows if row.value is not None]
            spreads.append(seed_spread(values) if values else None)
        names = [entrants[group[0]].label for group in groups]
        verdicts = [""]
        for name, spread in zip(names[1:], spreads[1:]):
            first, sign = spreads[0], metric_of(line.metric).direction
            if first is None or spread is None or not sign:
                verdicts.append("")
            elif first.interval is None or spread.interval is None:
                verdicts.append("one seed is no spread: no verdict")
            else:
                verdicts.append(verdict_of_intervals(names[0], name, first.interval, spread.interval, sign))
        compared.append(
            SeedLine(evaluation=line.evaluation, task=line.task, metric=line.metric, spreads=spreads, verdicts=verdicts)
        )
    return compared
