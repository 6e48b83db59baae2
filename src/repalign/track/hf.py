"""Alignment in the Trainer of transformers: a callback.

    trainer = Trainer(..., callbacks=[callback := AlignmentCallback(tracker, batches)])
    callback.attach(trainer)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from repalign.errors import RepalignError, require
from repalign.track.tracker import Tracker, when

require("the callback for the Trainer of transformers", "models", "transformers")

from transformers import TrainerCallback  # noqa: E402  (what is missing is told first)

log = logging.getLogger(__name__)

PREFIX = "eval_"
TIMES = ("evaluate", "epoch")


class AlignmentCallback(TrainerCallback):
    """Scores the model in training, and hands the numbers to the Trainer.

    tracker, batches : as in `Tracker.score`. every : "evaluate", with every evaluation; "epoch", at the end of each; or a number
        of steps.

    The numbers, named eval_repalign/..., go into the metrics of the evaluation, so that `metric_for_best_model` may name one; and,
    after `attach(trainer)`, through `trainer.log` into `log_history` and to all trackers. After the end of training no row is
    added to the table.
    """

    def __init__(self, tracker: Tracker, batches: Any, *, every: str | int = "evaluate") -> None:
        self.tracker, self.batches, self.every = tracker, batches, when(every, TIMES)
        self.trainer: Any = None
        self.over = self.told = False

    def attach(self, trainer: Any) -> AlignmentCallback:
        """Say which Trainer logs the numbers: callbacks are not told. RepalignError for one that does not have this callback."""
        there = getattr(getattr(trainer, "callback_handler", None), "callbacks", None)
        if there is None or self not in there:
            got = type(trainer).__name__ if there is None else f"a Trainer with {', '.join(type(one).__name__ for one in there)}"
            raise RepalignError("this is no Trainer with this callback", expected="Trainer(..., callbacks=[callback])", got=got,
                                remedy="give the callback to the Trainer, then call callback.attach(trainer)")  # fmt: skip
        self.trainer = trainer
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.over = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.over = True  # what is evaluated now may be the best model, which is not that of the last step

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if self.every == "evaluate":
            numbers = self._score(state, kwargs["model"], (metrics or {}).get("eval_loss"))
            if metrics is not None:
                metrics.update(numbers)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.every == "epoch":
            self._score(state, kwargs["model"], None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if isinstance(self.every, int) and state.global_step % self.every == 0:
            self._score(state, kwargs["model"], None)

    def _score(self, state: Any, model: Any, loss: float | None) -> Mapping[str, float]:
        row = self.tracker.score(model, self.batches, step=state.global_step, loss=loss, keep=not self.over)
        numbers = {f"{PREFIX}{name}": value for name, value in row.items() if isinstance(value, float)}
        if self.trainer is not None:
            self.trainer.log(dict(numbers))
        elif not self.told:
            self.told = True
            log.warning("the numbers go into the metrics, but to no tracker: call callback.attach(trainer) once")
        return numbers
