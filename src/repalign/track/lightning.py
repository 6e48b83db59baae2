"""Alignment in Lightning: a callback for its Trainer."""

from __future__ import annotations

from typing import Any

from repalign.errors import require
from repalign.track.tracker import Tracker, when

require("the callback for Lightning", "integrations", "lightning")

from lightning.pytorch.callbacks import Callback  # noqa: E402  (what is missing is told first)

TIMES = ("validation", "epoch")


class AlignmentCallback(Callback):
    """Scores the module in training, and logs the numbers with `self.log_dict` of the module.

    tracker, batches : as in `Tracker.score`; a batch is what the module's `forward` takes. every : "validation", after each;
        "epoch", at the end of each; or a number of steps.

    The numbers, named repalign/..., go to all loggers, and `ModelCheckpoint(monitor=...)` and `EarlyStopping` may name one.
    """

    def __init__(self, tracker: Tracker, batches: Any, *, every: str | int = "validation") -> None:
        self.tracker, self.batches, self.every = tracker, batches, when(every, TIMES)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.every == "validation" and not trainer.sanity_checking:
            self._score(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.every == "epoch":
            self._score(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if isinstance(self.every, int) and trainer.global_step % self.every == 0 and trainer.global_step != self._last():
            self._score(trainer, pl_module)

    def _last(self) -> int | None:
        """The step that was scored last: with accumulated gradients several batches are of one step."""
        return self.tracker.rows[-1]["step"] if self.tracker.rows else None

    def _score(self, trainer: Any, pl_module: Any) -> None:
        training = trainer.state.fn == "fit"  # else it is validated, with weights of any step
        row = self.tracker.score(pl_module, self.batches, step=trainer.global_step, keep=training)
        pl_module.log_dict({name: value for name, value in row.items() if isinstance(value, float)})
