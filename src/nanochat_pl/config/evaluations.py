"""The one table of evaluations: what `eval=` may name, and what must be known of each before a model is loaded.

Every other list of evaluations is derived from it. How each finds its questions and asks them stands in
`eval/evaluations.py`. This module loads nothing, so that it can be asked before anything is known to be right.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from nanochat_pl.config.values import positive
from nanochat_pl.requests import PENALTIES, RANGES

__all__ = ["EVALUATIONS", "EvalConfig", "EvalInfo", "EvalName", "Strict"]


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


class Strict(StrEnum):
    """How answers are read, see docs/evaluation.md."""

    stated = "stated"
    original = "original"


@dataclass(kw_only=True)
class EvalConfig:
    """How a checkpoint is measured."""

    name: EvalName = EvalName.auto
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    max_questions: int | None = None
    """Ask only this many questions, the first of the split or of each task; null = all."""
    tasks: list[str] | None = None
    """Of an evaluation with several tasks (core, chat, arc) only these, null = all; those of lm_eval."""
    include_path: str | None = None
    """A folder with further task files of lm_eval."""
    num_fewshot: int | None = None
    """Solved examples in front (lm_eval); null = as each task says."""
    as_chat: bool = False
    """Ask lm_eval's tasks in conversations."""
    bundle: str | None = None
    """Folder of CORE's bundle; null = eval_bundle below data.root."""
    checks: str | None = None
    """A YAML file of prompts with expectations; null = those that come with the package."""
    num_samples: int = 1
    """Answers to each generative question of chat; above 1 pass@k is measured, which wants a temperature."""
    temperature: float = 0.0
    """Of sampling; 0 = always the likeliest token."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens only; null = from all."""
    strict: Strict = Strict.stated
    """How chat reads answers: stated = what an answer states counts, original = nanochat's rule, to compare with it."""
    repetition_penalty: float = 1.0
    """Of all answers the model writes: above 1, what stands in question and answer comes again less often. 1 = off."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time it stands in the answer already. 0 = off."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that stands in the answer already. 0 = off."""
    sandbox: str = "auto"
    """How HumanEval's programs are kept in: auto = strictly or not at all, weak = by limits alone."""
    answer_bpb: bool = True
    """Of core, chat, scienceqa, arc and recall: also measure the bits per byte of the reference answers."""
    split: str = "test"
    """Questions that are asked: train, validation or test."""
    batch_size: int = 64
    """Questions answered at a time."""
    val_tokens: int = 262_144
    """Tokens of the validation shard that bpb reads."""
    texts: dict[str, str] = field(default_factory=dict)
    """Further texts for bpb: a name, and a file or folder of text in any form that training reads."""
    bertscore: str | None = None
    """Folder of a language model of Hugging Face's form; then explanations get a BERTScore. null = not measured."""
    fresh: bool = False
    """Begin again instead of continuing an interrupted evaluation."""

    def __post_init__(self) -> None:
        positive(self, "eval", "max_new_tokens", "max_questions", "batch_size", "val_tokens", "num_samples", "top_k")
        if self.temperature < 0:
            raise ValueError(f"eval.temperature={self.temperature} must be 0 (greedy) or more")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"eval.num_samples={self.num_samples} at eval.temperature=0 gives the same answer each time; set "
                "eval.temperature=0.8 or so"
            )
        for name in PENALTIES:
            if (value := getattr(self, name)) not in RANGES[name]:
                off = getattr(EvalConfig, name)
                raise ValueError(f"eval.{name}={value} must {RANGES[name].bounds()}; {off:g} = off")
        if self.split not in ("train", "validation", "test"):
            raise ValueError(f"eval.split={self.split} is not one of train, validation, test")

    def penalties(self) -> dict[str, float]:
        """Return the penalties that are not off, by name."""
        return {name: value for name in PENALTIES if (value := getattr(self, name)) != getattr(EvalConfig, name)}
