"""Evaluation of a split, counted exactly, and what is done with a finished checkpoint: evaluate it, export it."""

import dataclasses
import json
import math
import pathlib
import signal
from collections.abc import Callable

import jax
from flax import nnx

from gw_jax.convert import save_pretrained
from gw_jax.data.pipeline import eval_batches
from gw_jax.errors import CheckpointError, TrainingError
from gw_jax.files import write_atomically
from gw_jax.train.checkpoint import Checkpoints
from gw_jax.train.initial import initial_state
from gw_jax.train.setup import Experiment
from gw_jax.train.state import TrainState

EVALUATION_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        metrics: the last evaluation: "eval/loss", "eval/top1", "eval/top5", "eval/count"; None if there was none.
        stopped_by: the signal that stopped it before its end, or None.
    """

    metrics: dict[str, float] | None
    stopped_by: signal.Signals | None = None


def evaluate(
    experiment: Experiment, state: TrainState, stopped: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Loss, top-1 and top-5 over every example of the evaluation split, each counted once on any number of devices.

    Returns None if ``stopped()`` became true on the way.

    Raises:
        TrainingError: the loss is not finite.
    """
    config = experiment.config.data
    batches = eval_batches(
        experiment.dataset.evaluation,
        batch_size=config.eval_batch_size,
        image_size=config.image_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.num_threads,
    )
    sums = []
    for batch in batches:
        if stopped():
            return None
        sums.append(experiment.eval_step(state.params, state.batch_stats, experiment.put(batch)))
    totals = {name: math.fsum(part[name].item() for part in jax.device_get(sums)) for name in sums[0]}
    if not math.isfinite(totals["loss"]):
        raise TrainingError(f"The evaluation loss at step {int(state.step)} is {totals['loss']}: the network diverged.")
    count = int(totals["count"])
    means = {f"eval/{name}": totals[name] / count for name in ("loss", "top1", "top5")}
    return {**means, "eval/count": count}


def evaluate_run(experiment: Experiment, workdir: pathlib.Path) -> Outcome:
    """Evaluates the best (or last) checkpoint of ``workdir``, prints the result and writes ``evaluation.json``.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    step, state = _restore_chosen(experiment, workdir)
    return _evaluate_and_report(experiment, state, workdir, step, experiment.config.checkpoint.evaluate)


def evaluate_imported(experiment: Experiment, workdir: pathlib.Path) -> Outcome:
    """Evaluates the model of ``config.init_from``, prints the result and writes ``evaluation.json``.

    Raises:
        CheckpointError: its directory is damaged.
        ConfigError: it holds another network.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    return _evaluate_and_report(experiment, initial_state(experiment), workdir, 0, str(experiment.config.init_from))


def export_run(experiment: Experiment, workdir: pathlib.Path) -> Outcome:
    """Writes the best (or last) checkpoint of ``workdir`` to ``workdir/exported-STEP``, for ``gw_jax.load_pretrained``.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has been exported already.
    """
    step, state = _restore_chosen(experiment, workdir)
    directory = workdir / f"exported-{step}"
    model = nnx.merge(experiment.graphdef, state.params, state.batch_stats)
    save_pretrained(directory, model, experiment.model_arguments, source={"workdir": str(workdir), "step": step})
    print(f"Exported the checkpoint of step {step} to {directory}: gw_jax.load_pretrained({str(directory)!r})")
    return Outcome(None)


def _restore_chosen(experiment: Experiment, workdir: pathlib.Path) -> tuple[int, TrainState]:
    """The checkpoint that ``config.checkpoint.evaluate`` names: its step and its state."""
    checkpoints = Checkpoints(workdir, experiment.config.checkpoint)
    try:
        which = experiment.config.checkpoint.evaluate
        step = checkpoints.best_step() if which == "best" else checkpoints.last_step()
        if step is None:
            raise CheckpointError(f"{workdir} holds no checkpoint yet. Train first: the same command with mode=train.")
        return step, checkpoints.restore(step, experiment.state)[0]
    finally:
        checkpoints.close()


def _evaluate_and_report(
    experiment: Experiment, state: TrainState, workdir: pathlib.Path, step: int, source: str
) -> Outcome:
    metrics = evaluate(experiment, state)
    assert metrics is not None
    result = {"step": step, "checkpoint": source, **metrics}
    write_atomically(workdir / EVALUATION_FILE, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return Outcome(metrics)
