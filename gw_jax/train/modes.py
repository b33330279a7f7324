"""Evaluation and export of a checkpoint, and evaluation of an imported model."""

import dataclasses
import json
import pathlib
import signal
import sys

import jax

from gw_jax.errors import CheckpointError
from gw_jax.models.saved_files import DETECTOR, holds
from gw_jax.train.checkpoint import Checkpoints
from gw_jax.train.distributed import is_main
from gw_jax.train.evaluation import evaluate
from gw_jax.train.experiment import Experiment
from gw_jax.train.mesh import merge_group_statistics, replicated
from gw_jax.train.state import TrainState
from gw_jax.train.stop import StopConsensus, StopRequest
from gw_jax.train.warm_start import initial_state
from gw_jax.train.workdir import write_or_warn

EVALUATION_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        metrics: the last evaluation, by the names of ``metrics.jsonl``; None if there was none.
        stopped_by: the signal that stopped it before its end, or None.

    Example:
        >>> from gw_jax.train import RunResult
        >>> RunResult(metrics={"eval/loss": 0.1}).stopped_by is None
        True
    """

    metrics: dict[str, float] | None
    stopped_by: signal.Signals | None = None


def evaluate_run(experiment: Experiment, workdir: pathlib.Path, stop: StopRequest) -> RunResult:
    """Evaluates the best (or last) checkpoint of ``workdir``, prints the result and writes ``evaluation.json``.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    step, state = _restore_chosen(experiment, workdir)
    return _evaluate_and_report(experiment, state, workdir, step, experiment.config.checkpoint.evaluate, stop)


def evaluate_imported(experiment: Experiment, workdir: pathlib.Path, stop: StopRequest) -> RunResult:
    """Evaluates the model of ``config.init_from``, prints the result and writes ``evaluation.json``.

    Raises:
        CheckpointError: its directory is damaged.
        ConfigError: it holds another network.
    """
    return _evaluate_and_report(experiment, initial_state(experiment), workdir, 0, str(experiment.config.init_from), stop)


def export_run(experiment: Experiment, workdir: pathlib.Path) -> RunResult:
    """Writes the best (or last) checkpoint of ``workdir`` to ``workdir/exported-STEP``, as the task exports it.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has been exported already.
    """
    step, state = _restore_chosen(experiment, workdir)
    directory = workdir / f"exported-{step}"
    params, batch_stats = state.eval_weights
    batch_stats = jax.jit(merge_group_statistics, out_shardings=replicated(experiment.mesh))(batch_stats)
    if is_main():
        experiment.task.export(directory, params, batch_stats, {"workdir": str(workdir), "step": step})
        loader = "gw_jax.detection.load_detector" if holds(directory, DETECTOR) else "gw_jax.load_pretrained"
        print(f"Exported the checkpoint of step {step} to {directory}: {loader}({str(directory)!r})")
    return RunResult(None)


def _restore_chosen(experiment: Experiment, workdir: pathlib.Path) -> tuple[int, TrainState]:
    """The checkpoint that ``config.checkpoint.evaluate`` names: its step and its state."""
    config = experiment.config.checkpoint
    checkpoints = Checkpoints(workdir, config, experiment.task.best_metric, read_only=True)
    try:
        if checkpoints.last_step() is None:
            raise CheckpointError(f"{workdir} holds no checkpoint yet. Train first: the same command with mode=train.")
        step = checkpoints.best_step() if config.evaluate == "best" else checkpoints.last_step()
        assert step is not None
        return step, checkpoints.restore(step, experiment.state)[0]
    finally:
        checkpoints.close()


def _evaluate_and_report(
    experiment: Experiment, state: TrainState, workdir: pathlib.Path, step: int, source: str, stop: StopRequest
) -> RunResult:
    batches = experiment.task.eval_batches(jax.process_index(), jax.process_count())
    try:
        metrics = evaluate(experiment, state, batches, StopConsensus(stop), workdir)
    finally:
        batches.close()
    if metrics is None:
        if is_main():
            print("Stopped before the evaluation was complete. The same command repeats it.", file=sys.stderr)
        return RunResult(None, stop.signal or signal.SIGTERM)
    name = experiment.task.eval_name
    result = {"step": step, "checkpoint": source, **({"eval_name": name} if name else {}), **metrics}
    if is_main():
        # Printed first: the work directory may be read-only.
        print(json.dumps(result), flush=True)
        file = EVALUATION_FILE if name is None else f"evaluation-{name.replace('/', '-')}.json"
        write_or_warn(workdir / file, json.dumps(result, indent=2) + "\n")
    return RunResult(metrics)
