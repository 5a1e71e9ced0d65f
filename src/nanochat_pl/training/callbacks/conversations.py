"""Counts of the conversations that a run could not use whole."""

import logging

import lightning as L

from nanochat_pl.training.callbacks import RunCallback

log = logging.getLogger(__name__)


class ConversationCounts(RunCallback):
    """Log at the end how many conversations were cut, dropped or had nothing to learn from, over all sessions.

    The counts become the fact `conversations` of the run.
    """

    priority = 60  # before the summary, which writes the facts

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = trainer.datamodule.state_dict().get("cursor", {}).get("counts")  # type: ignore[attr-defined]
        if counts is not None:
            self.run.facts["conversations"] = counts
            log.info("conversations: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
