"""The one table of stages: what each starts from, what it counts, how it is measured, and what its models are like.

Every other list of stages is derived from it: what people may type, chains, next steps, default evaluations, the order
of reports. It loads nothing, so that it can be asked before anything is known to be right.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

__all__ = ["HORIZONS", "MODEL_STAGES", "STAGES", "UNTRAINED", "Stage", "StageName", "training_order"]

HORIZONS = ("num_steps", "num_epochs", "tokens_per_param", "target_flops")
"""The settings of a stage that say how long it trains; one of them holds."""

UNTRAINED = ("resume", "force", "logger", "trainer.stop_after_steps", "data.num_workers")
"""Settings of a run that do not change what is trained."""


class StageName(StrEnum):
    """What one run trains."""

    tokenizer = "tokenizer"
    base = "base"
    mid = "mid"
    sft = "sft"
    sft_scienceqa = "sft_scienceqa"
    rl = "rl"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the program knows of one stage."""

    starts_from: tuple[StageName, ...] = ()
    """The stages whose weights it starts from, the first that exists; none = fresh weights."""
    batch_unit: Literal["tokens", "conversations", "questions"] | None
    """What its batch is counted in; None = it takes no optimizer steps."""
    default_eval: str | None
    """What `eval=auto` measures; None = there is no model to measure."""
    in_summary: bool = True
    """The summary table of a report has a column for it, also where it was not trained."""
    sentence: str
    """What to expect of a model of this stage, for its card."""


STAGES: dict[StageName, Stage] = {
    StageName.tokenizer: Stage(batch_unit=None, default_eval=None, in_summary=False, sentence="It is a vocabulary."),
    StageName.base: Stage(
        batch_unit="tokens",
        default_eval="bpb",
        sentence="It continues text. It was not trained to answer: asked a question, it may go on with more questions.",
    ),
    StageName.mid: Stage(
        starts_from=(StageName.base,),
        batch_unit="tokens",
        default_eval="bpb",
        sentence="It knows the form of a conversation from mixed training, before fine-tuning on answers alone.",
    ),
    StageName.sft: Stage(
        starts_from=(StageName.mid, StageName.base),
        batch_unit="conversations",
        default_eval="scienceqa",
        sentence="It answers in conversations, as fine-tuned on examples.",
    ),
    StageName.sft_scienceqa: Stage(
        starts_from=(StageName.sft, StageName.mid, StageName.base),
        batch_unit="conversations",
        default_eval="scienceqa",
        in_summary=False,
        sentence="It answers multiple-choice science questions of the ScienceQA kind, as fine-tuned on them.",
    ),
    StageName.rl: Stage(
        starts_from=(StageName.sft, StageName.sft_scienceqa, StageName.mid, StageName.base),
        batch_unit="questions",
        default_eval="scienceqa",
        sentence="It answers in conversations; its answers were rewarded where they were right.",
    ),
}
"""The stages in the order in which they are trained."""

MODEL_STAGES = tuple(name for name, stage in STAGES.items() if stage.batch_unit is not None)
"""The stages that leave a model, in the order in which they are trained."""


def training_order(name: str) -> int:
    """Return the position of a stage in the order of training; an unknown stage comes after all others."""
    return list(STAGES).index(StageName(name)) if name in STAGES else len(STAGES)
