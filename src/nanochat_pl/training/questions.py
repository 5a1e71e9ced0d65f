"""The data module of reinforcement learning: questions in shuffled order; its cursor may stand inside a rollout."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from nanochat_pl.config.schema import RLConfig, TrainConfig
from nanochat_pl.data.batch import Cursor
from nanochat_pl.rl.rollouts import Questions
from nanochat_pl.tasks.base import Mixture
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.datamodules import StepBatches

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QuestionBatch:
    """The questions of a rollout over all ranks, and the number of the optimizer step within it."""

    questions: list[int]
    part: int
    cursor: Cursor

    def to(self, device: Any) -> "QuestionBatch":
        """Return itself: there is nothing to move."""
        return self


class QuestionBatches:
    """An endless iterable of batches of shuffled questions, from a cursor on; each rollout takes several batches.

    Args:
        usable: the questions' rows.
        prompts_per_step: questions of a rollout over all ranks; an incomplete last rollout of an epoch is left out.
        parts: optimizer steps of a rollout.
        shuffle: False keeps the order in every epoch.
        cursor: the cursor of the last batch that was trained on; None = the beginning.

    Raises:
        ValueError: there are too few questions, or the cursor belongs to other questions.
    """

    def __init__(
        self, usable: list[int], prompts_per_step: int, parts: int, seed: int, shuffle: bool, cursor: Cursor | None
    ) -> None:
        if prompts_per_step > len(usable):
            raise ValueError(
                f"rl.prompts_per_step={prompts_per_step} is more than the {len(usable)} questions there are; set "
                f"rl.prompts_per_step={len(usable)} or lower, or add tasks"
            )
        self.usable, self.prompts_per_step, self.parts = usable, prompts_per_step, parts
        self.seed, self.shuffle = seed, shuffle
        here = {"num_rows": len(usable), "seed": seed}
        if cursor is not None and cursor["part"]:
            here |= {"prompts_per_step": prompts_per_step, "parts": parts}
        for key, value in here.items():
            if cursor is not None and cursor[key] != value:
                raise ValueError(
                    f"the run to resume was saved with {key}={cursor[key]} of its questions or rollouts, now it is "
                    f"{value}; give it the same (the seed is data.order_seed, or seed where that is null), or start a "
                    "new run with resume=null"
                )
        self.start = (cursor["epoch"], cursor["row"], cursor["part"]) if cursor else (0, 0, 0)

    def __iter__(self) -> Iterator[QuestionBatch]:
        epoch, row, part = self.start
        while True:
            order = np.array(self.usable)
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch]).permutation(order)
            while row + self.prompts_per_step <= len(order):
                questions = order[row : row + self.prompts_per_step].tolist()
                for now in range(part, self.parts):
                    last = now + 1 == self.parts
                    cursor = {
                        "epoch": epoch,
                        "row": row + self.prompts_per_step * last,
                        "part": 0 if last else now + 1,
                        "parts": self.parts,
                        "prompts_per_step": self.prompts_per_step,
                        "num_rows": len(order),
                        "seed": self.seed,
                    }
                    yield QuestionBatch(questions, now, cursor)
                row, part = row + self.prompts_per_step, 0
            epoch, row = epoch + 1, 0


class QuestionData(StepBatches):
    """The questions that are trained on and those that pass@k is measured on.

    Args:
        sandbox: what isolates the answers of the tasks that run them, by task.
        horizon: `num_steps` or `num_epochs`, and the number.
        seed: the seed of the order.

    Raises:
        ValueError: there are too few questions for one rollout.
    """

    def __init__(
        self,
        train: Questions,
        val: Questions,
        sandbox: dict[str, str],
        rl: RLConfig,
        horizon: tuple[str, float],
        seed: int,
    ) -> None:
        def make(cursor: Cursor | None) -> QuestionBatches:
            shuffle = not getattr(train.rows, "ordered", False)
            return QuestionBatches(train.usable, rl.prompts_per_step, rl.steps_per_rollout, seed, shuffle, cursor)

        make(None)
        steps_per_epoch = len(train.usable) // rl.prompts_per_step * rl.steps_per_rollout
        unit, count = horizon
        num_steps = int(count) * (1 if unit == "num_steps" else steps_per_epoch)
        super().__init__(make, lambda: (), num_steps)  # type: ignore[arg-type]
        self.train, self.val, self.sandbox = train, val, sandbox


def question_data(rows: Mixture, val_rows: Mixture, tokenizer: Tokenizer, cfg: TrainConfig) -> QuestionData:
    """Make the data module of stage=rl.

    Args:
        rows, val_rows: questions to train and to validate on; those that leave no room for an answer are left out.

    Raises:
        ValueError: a task cannot be graded, all questions are too long, there are too few, or answers that have to be
            run cannot be isolated.
    """
    room = cfg.stage.sequence_len - cfg.rl.max_new_tokens
    train, val = Questions(rows, tokenizer, room), Questions(val_rows, tokenizer, room, cfg.rl.val_questions)
    for name, questions in (("training", train), ("validation", val)):
        if questions.num_too_long:
            log.warning(
                "%d %s questions have more than %d tokens (stage.sequence_len - rl.max_new_tokens) and are left out",
                questions.num_too_long,
                name,
                room,
            )
    members = {**rows.tasks, **val_rows.tasks}
    sandbox = {name: task.isolation for name, task in members.items() if task.runs_programs}
    return QuestionData(train, val, sandbox, cfg.rl, cfg.stage.horizon, cfg.data_seed)
