"""The one table of metrics: what each is called and counted in, which direction is better, and where it is shown first.

Names of metrics are open: evaluations put the way an answer was read before a slash (`strict/accuracy_over_asked`),
sampled tasks have `pass@1` to `pass@n`, and lm-evaluation-harness brings names of its own. So a row of the table may
be a pattern, and a metric that no row fits has no better direction.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

__all__ = ["METRICS", "Metric", "metric_of"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of a metric by its name."""

    direction: Literal[-1, 0, 1] = 0
    """1 = higher is better, -1 = lower is better, 0 = unknown."""
    unit: Literal["share", "bits per byte", "nats"] | None = None
    """What it is counted in, where the name says so. A row with a count is a share of its questions in any case."""
    words: str | None = None
    """What it is called after the name of its task; None = its own name, empty = the task's name suffices."""
    is_headline: bool = False
    """It is shown in the summary of a report and in the table of headline metrics."""
    is_detail: bool = False
    """Another metric represents it where there is room for one only."""
    is_composite: bool = False
    """It is computed from several tasks, on a scale where 0 is guessing: it needs no task's name."""
    is_tracked: bool = False
    """A dashboard keeps its best value over a run next to the last one."""
    chooses_best: bool = False
    """Validation keeps the checkpoint in which it is best; the first such metric of the table that a run has."""


BITS: Literal["bits per byte"] = "bits per byte"
METRICS: dict[str, Metric] = {
    r"pass@1": Metric(direction=1, unit="share", words="pass@1", is_headline=True, is_tracked=True, chooses_best=True),
    r"val/bpb": Metric(direction=-1, unit=BITS, words=BITS, is_tracked=True, chooses_best=True),
    r"val/loss": Metric(direction=-1, unit="nats", is_tracked=True, chooses_best=True),
    r"train/loss": Metric(direction=-1, unit="nats", is_tracked=True),
    r"core_metric": Metric(direction=1, words="", is_headline=True, is_composite=True, is_tracked=True),
    r"chatcore_metric": Metric(direction=1, words="", is_headline=True, is_composite=True, is_tracked=True),
    r"reward": Metric(direction=1, is_tracked=True),
    r"accuracy": Metric(direction=1, words="", is_headline=True),
    r"exact_match": Metric(direction=1, words="exact match", is_headline=True),
    r"strict/accuracy_over_asked": Metric(direction=1, words="as written", is_headline=True),
    r"loglikelihood/accuracy": Metric(direction=1, words="by likelihood", is_headline=True),
    r"pass_rate": Metric(direction=1, words="passed", is_headline=True),
    r"bpb": Metric(direction=-1, unit=BITS, words=BITS, is_headline=True),
    r"answer_bpb": Metric(direction=-1, unit=BITS, words="bits per byte of the answer", is_headline=True),
    r"answer_margin": Metric(direction=1, unit=BITS, words="margin of the answer", is_detail=True),
    r"wrong_bpb": Metric(unit=BITS),  # who learns to write lowers both, so neither way is better
    r"pass@\d+": Metric(direction=1, unit="share", is_detail=True),
    r"(.*/)?pass@\d+": Metric(direction=1),
    r"(.*/)?[^/]*over_scored[^/]*": Metric(),  # each model leaves out other questions
    r"(.*/)?[^/]*accuracy[^/]*": Metric(direction=1),
    r"(.*/)?([^/]*core_metric|exact_match|rouge_l|reward|pass_rate|passed)": Metric(direction=1),
    r"(.*/)?bpb": Metric(direction=-1, unit=BITS),
    r"(.*/)?[^/]*loss": Metric(direction=-1),
}
"""Regular expression of whole names -> metric; the first that fits counts."""


@cache
def metric_of(name: str) -> Metric:
    """Return what is known of the metric of this name."""
    return next((known for pattern, known in METRICS.items() if re.fullmatch(pattern, name)), Metric())
