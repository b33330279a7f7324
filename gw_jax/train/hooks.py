"""Hooks of a run, for other loggers and for fault injection in tests."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gw_jax.train.loop import Trainer
    from gw_jax.train.modes import RunResult


class Hooks:
    """Methods that a run calls on every process. A subclass overrides those it needs; an exception ends the run.

    ``trainer.step`` is the number of steps done, ``trainer.state`` the state after them, ``trainer.workdir`` the work
    directory. A logger that must write once for all hosts checks ``jax.process_index() == 0``.

    Example:
        >>> from gw_jax.train import Hooks
        >>> class Printer(Hooks):
        ...     def after_log(self, trainer, values):
        ...         print(trainer.step, values)
    """

    def before_training(self, trainer: "Trainer", config: dict[str, Any]) -> None:
        """Called once at the start, or when a run resumes after ``trainer.step`` steps.

        ``config`` has every field, ``{"optimizer.momentum": 0.9, ...}``, as JSON values.
        """

    def after_training(self, trainer: "Trainer", result: "RunResult | None") -> None:
        """Called once at the end: complete, stopped by a signal, or, with None, after an error."""

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
