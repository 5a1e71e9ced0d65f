"""The one table of metrics: what each is called, which way is better, and where it is shown first.

Names of figures are open: evaluations put the way an answer was read before a slash (`strict/accuracy_over_asked`),
sampled tasks have `pass@1` to `pass@n`, and lm-evaluation-harness brings names of its own. So a row of the table may
be a pattern, and a name that no row fits is a figure of which neither direction can be said to be better.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

__all__ = ["METRICS", "Metric", "metric_of"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of a figure by its name."""

    direction: Literal[-1, 0, 1] = 0
    """1 = higher is better, -1 = lower is, 0 = neither can be said."""
    words: str | None = None
    """How it is called after the name of its task; None = by its name, empty = the task's name says it all."""
    is_headline: bool = False
    """It stands in the summary of a report and in the table of headline figures."""
    is_composite: bool = False
    """It is drawn from several tasks, on a scale on which 0 is guessing: it needs no task's name beside it."""
    is_tracked: bool = False
    """Its best value over a run is kept on a dashboard beside the last one."""
    chooses_best: bool = False
    """Validation keeps the checkpoint in which it is best; the first such figure of the table that a run has."""


METRICS: dict[str, Metric] = {
    r"pass@1": Metric(direction=1, words="pass@1", is_headline=True, is_tracked=True, chooses_best=True),
    r"val/bpb": Metric(direction=-1, words="bits per byte", is_tracked=True, chooses_best=True),
    r"val/loss": Metric(direction=-1, is_tracked=True, chooses_best=True),
    r"train/loss": Metric(direction=-1, is_tracked=True),
    r"core_metric": Metric(direction=1, words="", is_headline=True, is_composite=True, is_tracked=True),
    r"chatcore_metric": Metric(direction=1, words="", is_headline=True, is_composite=True, is_tracked=True),
    r"reward": Metric(direction=1, is_tracked=True),
    r"accuracy": Metric(direction=1, words="", is_headline=True),
    r"exact_match": Metric(direction=1, words="exact match", is_headline=True),
    r"strict/accuracy_over_asked": Metric(direction=1, words="as written", is_headline=True),
    r"loglikelihood/accuracy": Metric(direction=1, words="by likelihood", is_headline=True),
    r"pass_rate": Metric(direction=1, words="passed", is_headline=True),
    r"bpb": Metric(direction=-1, words="bits per byte", is_headline=True),
    r"(.*/)?pass@\d+": Metric(direction=1),
    r"(.*/)?[^/]*over_scored[^/]*": Metric(),  # each model leaves out other questions
    r"(.*/)?[^/]*accuracy[^/]*": Metric(direction=1),
    r"(.*/)?([^/]*core_metric|exact_match|rouge_l|reward|pass_rate|passed)": Metric(direction=1),
    r"(.*/)?(bpb|[^/]*loss)": Metric(direction=-1),
}
"""Regular expression of whole names -> metric; the first that fits counts."""


@cache
def metric_of(name: str) -> Metric:
    """Give what is known of the figure of this name."""
    return next((known for pattern, known in METRICS.items() if re.fullmatch(pattern, name)), Metric())
