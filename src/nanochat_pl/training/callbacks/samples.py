"""What the model writes after the same few prompts, at intervals while it learns.

A loss shows that a model got better, a sample shows at what. Every `stage.sample_every_steps` steps and at the end the
first process lets the model continue `stage.sample_prompts`, greedily, so that two samples differ only because the
weights do. Nothing is drawn at random, and the other ranks do not wait before the next gradients are exchanged:
training is the same bit for bit with and without. Reinforcement learning shows the answers of its rollouts instead.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from nanochat_pl.config.schema import StageConfig
from nanochat_pl.config.stages import StageName
from nanochat_pl.engine import Engine, Request
from nanochat_pl.paths import write_atomically, writing
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.callbacks import RunCallback, is_due
from nanochat_pl.training.loggers import log_table
from nanochat_pl.training.questions import QuestionBatch
from nanochat_pl.training.rl_module import PolicyModel
from nanochat_pl.training.state import RunState

__all__ = ["PromptSamples", "RolloutSamples", "drop_lines_from", "encode_prompts", "one_line"]

log = logging.getLogger(__name__)

SAMPLES_FILE = "samples.jsonl"

COLUMNS = ("step", "prompt", "output", "tokens", "stopped")
"""Fields of a line of samples.jsonl, and columns of the table on a dashboard."""

SHOWN_CHARS = 100
"""Characters of prompt and output together, in a line of the log."""


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], *, as_chat: bool, sequence_len: int
) -> dict[str, list[int]]:
    """Map each prompt to its token ids, in order; one that leaves no room for an answer is dropped with a warning.

    Args:
        prompts: the beginnings of texts, or messages of a user.
        as_chat: render each as a conversation for the assistant to continue, else as a text after BOS.
        sequence_len: the model's context, tokens.
    """
    encoded: dict[str, list[int]] = {}
    for prompt in prompts:
        if as_chat:
            chat = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]}
            ids = tokenizer.render_for_completion(chat, max_tokens=sequence_len)
        else:
            ids = tokenizer.encode(prompt, prepend=tokenizer.bos_id)
        if len(ids) < sequence_len:
            encoded[prompt] = ids
        else:
            log.warning(
                "no samples of %r: its %d tokens or more leave no room in rows of stage.sequence_len=%d; shorten it in "
                "stage.sample_prompts",
                one_line(prompt, 40),
                len(ids),
                sequence_len,
            )
    return encoded


def one_line(text: str, limit: int) -> str:
    """Return the first `limit` characters of a text on one line, without control characters; `…` marks a cut."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= limit else shown[:limit].rstrip() + "…"


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a JSON Lines file."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def drop_lines_from(path: Path, step: int) -> None:
    """Drop the lines of `step` and later from a JSON Lines file, if it exists, and those that cannot be read."""
    if not path.is_file():
        return

    def is_before(line: str) -> bool:
        try:
            return json.loads(line)["step"] < step
        except (ValueError, KeyError, TypeError, RecursionError):  # half-written, or lost when the power failed
            return False

    # not splitlines: texts may contain other characters that it takes for line ends
    *lines, half = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [line for line in lines if is_before(line)]
    if half or len(kept) < len(lines):
        write_atomically(path, "".join(f"{line}\n" for line in kept))


class PromptSamples(RunCallback):
    """Let the model continue fixed prompts at an interval and at the end: to the log, samples.jsonl and W&B.

    A line of samples.jsonl has `step` (updates made before it), `prompt`, `output`, `tokens` (number of new ones) and
    `stopped` (it ended by itself, not at `stage.sample_tokens`). A resumed run drops the lines from its first step on.

    Args:
        stage: the prompts, the interval and the length; base continues texts, other stages answer.
        sequence_len: the model's context, tokens.
        engine_dtype: the number format in which the engine computes.
    """

    priority = 40  # after the validation of the step

    def __init__(
        self, run: RunState, stage: StageConfig, tokenizer: Tokenizer, *, sequence_len: int, engine_dtype: str
    ) -> None:
        assert stage.sample_every_steps is not None
        super().__init__(run)
        self.path, self.tokenizer, self.engine_dtype = run.folder / SAMPLES_FILE, tokenizer, engine_dtype
        self.every_steps, self.max_new_tokens = stage.sample_every_steps, stage.sample_tokens
        as_chat = stage.name != StageName.base
        self.prompts = encode_prompts(tokenizer, stage.sample_prompts, as_chat=as_chat, sequence_len=sequence_len)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            step = trainer.global_step
            drop_lines_from(self.path, step)
            if step > 0 and is_due(trainer, self.every_steps) and not trainer.should_stop:
                self._sample(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if is_due(trainer, self.every_steps) and trainer.is_global_zero and not trainer.should_stop:
            self._sample(trainer, pl_module)

    def _sample(self, trainer: L.Trainer, module: Any) -> None:
        if not self.prompts:
            return
        begin, step = time.perf_counter(), trainer.global_step
        lines = self.sample(module.model, step)
        append_lines(self.path, lines)
        log_table(trainer.loggers, "samples", COLUMNS, [[line[column] for column in COLUMNS] for line in lines], step)
        for line in lines:
            prompt = one_line(line["prompt"], SHOWN_CHARS // 2)
            output = one_line(line["output"], SHOWN_CHARS - len(prompt))
            log.info("step %05d/%05d | %s → %s", step, trainer.max_steps, prompt, output)
        self.run.paused_seconds += time.perf_counter() - begin

    def sample(self, model: Any, step: int) -> list[dict[str, Any]]:
        """Continue each prompt once, greedily; return the lines of samples.jsonl.

        Args:
            model: the network. The engine's copy of it is freed afterwards, because training needs the memory.
            step: updates made so far.
        """
        engine = Engine(model, self.tokenizer.stop_ids, self.tokenizer, self.engine_dtype)
        completions = engine.run([Request(ids, self.max_new_tokens) for ids in self.prompts.values()])
        return [
            {
                "step": step,
                "prompt": prompt,
                "output": self.tokenizer.decode(completion.tokens),
                "tokens": len(completion.tokens),
                "stopped": completion.stop_token is not None,
            }
            for prompt, completion in zip(self.prompts, completions, strict=True)
        ]


class RolloutSamples(RunCallback):
    """Write the answers to one question of every logged step, with their rewards, to samples.jsonl and to W&B."""

    priority = PromptSamples.priority

    def __init__(self, run: RunState, every_steps: int) -> None:
        super().__init__(run)
        self.path = run.folder / SAMPLES_FILE
        self.every_steps = every_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            drop_lines_from(self.path, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: QuestionBatch, batch_idx: int
    ) -> None:
        step = trainer.global_step - 1
        assert isinstance(pl_module, PolicyModel)
        # a rollout is shown with its first step if any of its steps is a logged one
        logged = -step % self.every_steps < pl_module.rl.steps_per_rollout
        if not trainer.is_global_zero or batch.part or not logged:
            return
        assert pl_module.example is not None
        group = pl_module.example
        rows = [
            {"reward": answer.reward, "text": pl_module.tokenizer.decode(answer.tokens)} for answer in group.answers
        ]
        line = {"step": step, "question": pl_module.questions.text(group.question), "answers": rows}
        append_lines(self.path, [line])
        table = [[step, line["question"], row["text"], row["reward"]] for row in rows]
        log_table(trainer.loggers, "samples", ("step", "question", "answer", "reward"), table, step)
