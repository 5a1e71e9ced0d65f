"""The one table of evaluations: what `eval=` may name, and what must be known of each before a model is loaded.

Every other list of evaluations is derived from it. How each finds its questions and asks them stands in
`eval/evaluations.py`. This module loads nothing, so that it can be asked before anything is known to be right.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["EVALUATIONS", "EvalInfo", "EvalName"]


class EvalName(StrEnum):
    """What `evaluate.py` measures; `auto` chooses by the checkpoint's stage."""

    auto = "auto"
    bpb = "bpb"
    core = "core"
    chat = "chat"
    scienceqa = "scienceqa"
    arc = "arc"
    recall = "recall"
    tokenizer = "tokenizer"
    checks = "checks"
    lm_eval = "lm_eval"


@dataclass(frozen=True, kw_only=True)
class EvalInfo:
    """What is known of an evaluation by its name."""

    reads_data: bool = True
    """It reads something below `data.root`."""
    writes_answers: bool = True
    """The model generates text, so that penalties have an effect."""
    reserves_answer: bool = False
    """It keeps `eval.max_new_tokens` of the context free for an answer; others cut answers to what is left of it."""


EVALUATIONS: dict[EvalName, EvalInfo] = {
    EvalName.auto: EvalInfo(),  # until it is known which, nothing is ruled out
    EvalName.bpb: EvalInfo(writes_answers=False),
    EvalName.core: EvalInfo(writes_answers=False),
    EvalName.chat: EvalInfo(),
    EvalName.scienceqa: EvalInfo(reserves_answer=True),
    EvalName.arc: EvalInfo(reserves_answer=True),
    EvalName.recall: EvalInfo(reserves_answer=True),
    EvalName.tokenizer: EvalInfo(writes_answers=False),
    EvalName.checks: EvalInfo(reads_data=False),
    EvalName.lm_eval: EvalInfo(reads_data=False),
}
