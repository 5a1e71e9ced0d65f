"""The same questions, and what each checkpoint answered: figures say how much, answers say what has changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nanochat_pl.report.evaluated import EvaluatedRun, evaluation_names, question_key
from nanochat_pl.report.read import Record

__all__ = ["Shared", "side_by_side"]

_ANSWER_FIELDS = {"prompt", "expected", "output", "correct"}


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One question that several entrants answered."""

    evaluation: str
    id: str
    prompt: str
    expected: str
    answers: Mapping[str, Record] = field(repr=False)
    """By the label of the entrant."""
    differ: bool
    """Not all of them are right, and not all are wrong."""


def side_by_side(entrants: Sequence[EvaluatedRun], limit: int) -> dict[str, list[Shared]]:
    """Return, for each evaluation, up to `limit` questions that all who were asked in it answered.

    Where some are right and some wrong comes first, then where they wrote different things, then the others.
    """
    shown = {}
    for name in evaluation_names(entrants):
        answers = {
            entrant.label: {question_key(r): r for r in entrant.results[name].records if r.keys() >= _ANSWER_FIELDS}
            for entrant in entrants
            if name in entrant.results and entrant.results[name].records
        }
        if len(answers) < min(2, len(entrants)):
            continue
        first = next(iter(answers.values()))
        questions = [
            Shared(
                evaluation=name,
                id="/".join(filter(None, key)),
                prompt=str(record["prompt"]),
                expected=str(record["expected"]),
                answers={label: own[key] for label, own in answers.items()},
                differ=len({bool(own[key]["correct"]) for own in answers.values()}) > 1,
            )
            for key, record in first.items()
            if all(key in own for own in answers.values())
        ]
        questions.sort(key=lambda q: (not q.differ, len({str(a["output"]) for a in q.answers.values()}) == 1))
        if questions:
            shown[name] = questions[:limit]
    return shown
