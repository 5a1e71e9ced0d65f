"""`nanochat-pl power`: how many questions or seeds a difference takes, before they are paid for.

How a figure varies is given in numbers or learned from runs; `report/enough.py` computes and words the answer.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.eval.power import PairedQuestions, Seeds
from nanochat_pl.paths import runs_of_sweep, write_atomically
from nanochat_pl.report.enough import PowerPlan, learn_plan, plan_json, plan_sentences, plan_table, size_text
from nanochat_pl.report.evaluated import load_evaluated_runs
from nanochat_pl.report.terminal import print_table

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Answer; return 0, or 2 for what cannot be answered."""
    parser = Arguments(
        prog="nanochat-pl power",
        description="How many questions or seeds a difference takes, or which difference they find. How the figure "
        "varies is learned from runs (seeds of recipes, or two checkpoints that answered the same questions), or "
        "given by --std, --disagree or --rate. Shares are numbers from 0 to 1.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or folders of sweeps, to learn from")
    parser.add_argument("--metric", default="val/bpb", help="figure of the runs (default val/bpb, of their training)")
    parser.add_argument("--std", type=_positive, metavar="X", help="standard deviation from seed to seed")
    parser.add_argument("--paired", action="store_true", help="--std is that of differences between runs of one seed")
    parser.add_argument("--disagree", type=_share, metavar="P", help="share of questions that one answers better")
    parser.add_argument("--rate", type=_share, metavar="P", help="share of right answers, if the two err independently")
    parser.add_argument("--effect", type=_positive, metavar="X", help="difference that is to be found")
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds of each recipe that there will be")
    parser.add_argument("--questions", type=_count, metavar="N", help="questions that there will be")
    parser.add_argument("--comparisons", type=_count, default=1, metavar="M", help="tests corrected together (Holm)")
    parser.add_argument(
        "--power", type=_share, default=0.8, metavar="P", help="probability of finding the effect (0.8)"
    )
    parser.add_argument(
        "--alpha", type=_share, default=0.05, metavar="P", help="probability of finding one where there is none (0.05)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    try:
        options = parser.parse_args(arguments)
        plan = _plan(options)
        if options.json is not None:
            write_atomically(options.json, json.dumps(plan_json(plan), indent=2, ensure_ascii=False) + "\n")
    except (ValueError, OSError) as error:
        return refuse(error)
    print_table(*plan_table(plan))
    for sentence in plan_sentences(plan):
        print(sentence)
    if options.json is not None:
        print(f"wrote {options.json}")
    return 0


def _plan(options: argparse.Namespace) -> PowerPlan:
    given = {
        "run folders": bool(options.runs),
        "--std": options.std is not None,
        "--disagree or --rate": options.disagree is not None or options.rate is not None,
    }
    if sum(given.values()) != 1:
        said = " and ".join(name for name, there in given.items() if there)
        raise ValueError(
            f"how the figure varies is {f'said twice, by {said}' if said else 'not said'}; give run folders to learn "
            "it from, or --std for seeds, or --disagree (or --rate) for questions"
        )
    if options.paired and options.std is None:
        raise ValueError("--paired says that --std is the deviation of differences; leave it out without --std")
    asked: dict[str, Any] = {key: getattr(options, key) for key in ("effect", "comparisons", "alpha", "power")}
    if not options.alpha < options.power:
        raise ValueError(
            f"--power {options.power:g} must be above --alpha {options.alpha:g}: so often chance alone finds a "
            "difference"
        )
    if options.runs:
        if len(options.runs) == 1 and not runs_of_sweep(options.runs[0]):
            raise ValueError(
                f"{options.runs[0]} alone does not say how figures vary: give two or more runs that differ in their "
                "seed, or two checkpoints that answered the same questions"
            )
        plan = learn_plan(load_evaluated_runs(options.runs), options.metric, **asked)
    elif options.std is not None:
        of = "of the differences between runs of one seed" if options.paired else "over seeds"
        design = Seeds(std=options.std, paired=options.paired)
        plan = PowerPlan(design=design, source=f"std {options.std:g} {of}", share=False, **asked)
    else:
        plan = _by_questions(options, asked)
    wrong = "questions" if isinstance(plan.design, Seeds) else "seeds"
    if getattr(options, wrong) is not None:
        raise ValueError(f"--{wrong} does not fit: {plan.source}; ask by --{plan.unit.partition(' ')[0]}")
    if plan.effect is not None and plan.share and plan.effect > plan.design.largest_effect:
        largest = size_text(plan.design.largest_effect, True)
        raise ValueError(f"--effect {plan.effect:g} is more than {largest}; a share is a number from 0 to 1")
    if plan.effect is not None and plan.effect > plan.design.largest_effect:
        raise ValueError(
            f"--effect {plan.effect:g} is more than single questions differ by: {plan.source}; give a smaller one"
        )
    number = options.seeds if isinstance(plan.design, Seeds) else options.questions
    return replace(plan, n=number)


def _by_questions(options: argparse.Namespace, asked: dict[str, Any]) -> PowerPlan:
    """Return the plan for right and wrong answers; independent answers disagree most often among equal models."""
    share, rate = options.disagree, options.rate
    if share is None:
        share, known = 2 * rate * (1 - rate), f"as models do that err independently, {rate:.0%} right"
    else:
        known = "as given"
        if rate is not None and share > (most := 2 * min(rate, 1 - rate)) + 1e-9:
            raise ValueError(
                f"--disagree {share:g} cannot be: models that are right on {rate:g} answer {most:g} differently at most"
            )
    source = f"two models that answer {share:.1%} of the questions differently, {known}"
    return PowerPlan(design=PairedQuestions(disagreement=share), source=source, share=True, **asked)


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give a number between 0 and 1, such as 0.3")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _count(text: str) -> int:
    value = _number(text)
    if not 1 <= value <= 10_000_000 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 10,000,000")
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
