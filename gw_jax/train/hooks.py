"""Hooks of a run, for other loggers and for fault injection in tests."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gw_jax.train.loop import Trainer


class Hooks:
    """Methods that a run calls on every process. A subclass overrides those it needs; an exception ends the run.

    ``trainer.step`` is the number of steps done, ``trainer.state`` the state after them.
    """

    def before_step(self, trainer: "Trainer") -> None:
        """Called before the batch of the next step is read."""

    def after_step(self, trainer: "Trainer") -> None:
        """Called when a step was dispatched; its results may still be computed."""

    def after_log(self, trainer: "Trainer", values: dict[str, float]) -> None:
        """Called with the values of each line of ``metrics.jsonl``, without step and epoch."""

    def before_evaluation(self, trainer: "Trainer") -> None:
        """Called before an evaluation."""

    def before_save(self, trainer: "Trainer") -> None:
        """Called before a checkpoint is saved."""
