"""How much is enough, in words and tables: after a test (`compare`) and before one (`power`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nanochat_pl.eval.power import Enough, PairedQuestions, Seeds, detectable_effect, number_needed
from nanochat_pl.eval.stats import std_interval
from nanochat_pl.report.compare import compare_runs
from nanochat_pl.report.evaluated import EvaluatedRun
from nanochat_pl.report.seeds import learn_design

__all__ = [
    "PowerPlan",
    "enough_cells",
    "enough_text",
    "learn_plan",
    "plan_json",
    "plan_sentences",
    "plan_table",
    "size_text",
]

_SEEDS = (2, 3, 4, 5, 8, 10, 20, 50)
_QUESTIONS = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def size_text(difference: float, share: bool) -> str:
    """Return the size of a difference: of shares in points with a decimal, else, and where that is 0, two digits."""
    size = 100 * abs(difference) if share else abs(difference)
    text = f"{size:.1f}" if share and size >= 0.1 else f"{size:#.2g}".rstrip(".")
    return f"{text} points" if share else text


def enough_text(enough: Enough | None, seen: float, share: bool) -> str:
    """Return a line such as `found 4 times in 5: 24.1 points by 40 questions; 10.0 points by about 410`."""
    if enough is None:
        return ""
    each = " each" * (enough.unit == "seeds")
    more = "" if enough.needed is None else f"; {size_text(seen, share)} by about {enough.needed:,}{each}"
    if enough.detectable is None:
        return f"  {enough.n:,} {enough.unit}{each} are too few to find any difference{more}"
    return f"  found 4 times in 5: {size_text(enough.detectable, share)} by {enough.n:,} {enough.unit}{each}{more}"


def enough_cells(enough: Enough, share: bool) -> tuple[str, str, str]:
    """Return cells of a table: what was measured on, what that finds, what the difference seen takes."""
    found = "–" if enough.detectable is None else size_text(enough.detectable, share)
    return f"{enough.n:,} {enough.unit}", found, "–" if enough.needed is None else f"{enough.needed:,}"


@dataclass(frozen=True, kw_only=True)
class PowerPlan:
    """What is asked before anything is measured."""

    design: Seeds | PairedQuestions
    source: str
    """How the figure varies, and how that is known, as a sentence."""
    share: bool
    """Differences are those of shares."""
    df: int | None = None
    """Degrees of freedom of a standard deviation that was learned from runs; None = it was given."""
    effect: float | None = None
    """The difference to be found."""
    n: int | None = None
    """The number of questions or seeds there will be."""
    comparisons: int = 1
    """How many tests are corrected together."""
    alpha: float = 0.05
    power: float = 0.8

    @property
    def unit(self) -> str:
        return "seeds each" if isinstance(self.design, Seeds) else "questions"

    @property
    def level(self) -> float:
        """What the smallest p-value is held against (Holm)."""
        return self.alpha / self.comparisons

    def needed(self, design: Seeds | PairedQuestions | None = None) -> int | None:
        """Return how many find the effect."""
        assert self.effect is not None
        return number_needed(design or self.design, self.effect, self.level, self.power)

    def detectable(self, n: int) -> float | None:
        """Return what `n` find."""
        return detectable_effect(self.design, n, self.level, self.power)


def learn_plan(runs: Sequence[EvaluatedRun], metric: str, **asked: Any) -> PowerPlan:
    """Learn from runs how a figure varies.

    Args:
        metric: Its name, with its task or evaluation in front where several have the name.
        asked: Further fields of `PowerPlan`.

    Raises:
        ValueError: There is no such figure, or several, or the runs do not show how it varies.
    """
    figures = compare_runs(runs, metrics=["all"])
    names = {f"{figure.evaluation} {figure.name}": figure for figure in figures}
    fitting = {
        name: figure
        for name, figure in names.items()
        if metric in (name, figure.name, figure.metric, figure.metric.partition("/")[2])
    }
    if len(fitting) != 1:
        what = f"several figures are called {metric}" if fitting else f"no figure is called {metric}"
        raise ValueError(f"{what}; --metric can be {', '.join(repr(name) for name in fitting or names)}")
    [(name, figure)] = fitting.items()
    design, count = learn_design(figure, runs)
    share = any(row is not None and row.is_share for row in figure.rows)
    if isinstance(design, PairedQuestions):
        of = f"of {count:,} questions, as {runs[0].label} and {runs[1].label} do"
        source = f"{name}: {_share_text(design, share)} {of}"
        return PowerPlan(design=design, source=source, share=share, **asked)
    bounds = std_interval(design.std, count)
    low, high = (size_text(bound, share) for bound in (bounds.low, bounds.high))
    of = "of the differences between runs of one seed" if design.paired else f"over the seeds of {len(runs)} runs"
    source = f"{name}: std {size_text(design.std, share)} {of} (95% interval {low} to {high})"
    return PowerPlan(design=design, source=source, share=share, df=count, **asked)


def _share_text(design: PairedQuestions, share: bool) -> str:
    if design.size is None:
        return f"two models that answer {design.disagreement:.1%} differently"
    size = f"{size_text(design.size, share)} (root mean square)"
    return f"two models whose scores differ by {size}, at {design.disagreement:.1%}"


def _percent(share: float) -> str:
    """Write a share below 1 in percent so that it does not read as all: 80%, 99.9999%."""
    return f"{100 * share:.10g}%"


def _count(n: int, unit: str) -> str:
    """Write a number with its unit, which is `questions` or `seeds each`."""
    return f"{n:,} {unit}" if n != 1 else f"1 {unit.replace('seeds', 'seed').replace('questions', 'question')}"


def plan_table(plan: PowerPlan) -> tuple[str, list[str], list[list[str]]]:
    """Return title, header and rows: what numbers of questions or seeds find, and how often they find the effect."""
    needed = plan.needed() if plan.effect is not None else None
    numbers = _SEEDS if isinstance(plan.design, Seeds) else _QUESTIONS
    rows = []
    for n in sorted({*numbers, *(number for number in (plan.n, needed) if number is not None)}):
        found = plan.detectable(n)
        row = [f"{n:,}", "–" if found is None else size_text(found, plan.share)]
        if plan.effect is not None:
            row.append(f"{plan.design.power(n, plan.effect, plan.level):.0%}")
        rows.append(row)
    header = [plan.unit, f"found {_percent(plan.power)} of the time"]
    if plan.effect is not None:
        header.append(f"{size_text(plan.effect, plan.share)} is found")
    return plan.source, header, rows


def plan_sentences(plan: PowerPlan) -> list[str]:
    """Return the answers: how many for the effect, which effect for the number, and how the tests are corrected."""
    sentences = []
    if plan.effect is not None:
        size, needed = size_text(plan.effect, plan.share), plan.needed()
        many = f"more than ten million {plan.unit}" if needed is None else _count(needed, plan.unit)
        if needed is None and plan.effect > plan.design.largest_effect:
            many = f"what cannot be: differences end at {size_text(plan.design.largest_effect, plan.share)}"
        text = f"A difference of {size} takes {many} to be found {_percent(plan.power)} of the time."
        if plan.df and isinstance(plan.design, Seeds):
            bounds = std_interval(plan.design.std, plan.df)
            ends = [plan.needed(replace(plan.design, std=bound)) for bound in (bounds.low, bounds.high)]
            low, high = ("more than ten million" if end is None else f"{end:,}" for end in ends)
            text += f" By the interval of the std: {low} to {high}."
        sentences.append(text)
    if plan.n is not None:
        found = plan.detectable(plan.n)
        what = "no difference, however large" if found is None else f"{size_text(found, plan.share)} and more"
        many = f"{_count(plan.n, plan.unit)} find{'s' if plan.n == 1 else ''}"
        sentences.append(f"{many} {what}, {_percent(plan.power)} of the time.")
    test = "the test of compare"
    if isinstance(plan.design, Seeds):
        test = "the paired t test" if plan.design.paired else "Welch's t test"
    alpha = f"alpha {plan.alpha:g}"
    if plan.comparisons > 1:
        alpha += f" over {plan.comparisons} comparisons (Holm, by its first step: {plan.level:.2g})"
    sentences.append(f"Two-sided, by {test}, {alpha}.")
    return sentences


def plan_json(plan: PowerPlan) -> dict[str, Any]:
    """Return the plan and its answers."""
    known = asdict(plan.design)
    return {
        "source": plan.source,
        "unit": plan.unit.partition(" ")[0],
        "std": known.get("std"),
        "paired": known.get("paired"),
        "disagreement": known.get("disagreement"),
        "size": known.get("size"),
        "alpha": plan.alpha,
        "power": plan.power,
        "comparisons": plan.comparisons,
        "effect": plan.effect,
        "needed": None if plan.effect is None else plan.needed(),
        "n": plan.n,
        "detectable": None if plan.n is None else plan.detectable(plan.n),
    }
