"""Evaluation of a split, counted exactly, and what is done with a finished checkpoint: evaluate it, export it."""

import dataclasses
import json
import math
import pathlib
import signal
import sys

import jax
from flax import nnx

from gw_jax.convert import save_pretrained
from gw_jax.data.pipeline import EvalBatches
from gw_jax.errors import CheckpointError, DataError, TrainingError
from gw_jax.files import write_atomically
from gw_jax.nn.initializers import NoKeys
from gw_jax.train.checkpoint import Checkpoints
from gw_jax.train.distributed import is_main
from gw_jax.train.initial import initial_state
from gw_jax.train.interrupt import MAX_STEPS_AHEAD, StopAgreement, StopRequest
from gw_jax.train.setup import Experiment, image_transform
from gw_jax.train.state import TrainState, average_rows, make_model, replicated, split_model

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


def open_eval_batches(experiment: Experiment) -> EvalBatches:
    """This process's share of the evaluation split, for as many passes as wanted; close it in the end."""
    config, spec = experiment.config.data, experiment.dataset.spec
    return EvalBatches(
        experiment.dataset.evaluation,
        batch_size=config.eval_batch_size,
        transform=image_transform(config),
        channels=spec.image_shape[-1],
        num_classes=spec.num_classes,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.num_threads,
        num_workers=config.num_workers,
        max_broken=config.max_broken,
    )


def evaluate(
    experiment: Experiment, state: TrainState, batches: EvalBatches, stop: StopRequest | None = None
) -> dict[str, float] | None:
    """Loss, top-1 and top-5 over every example of the evaluation split, each counted once on any number of devices.

    Returns None if a stop was wanted on the way: by this process or, where there are several, by any of them.

    Raises:
        TrainingError: the loss is not finite.
    """
    agreement = StopAgreement(stop)
    params, batch_stats = state.evaluated
    sums = []
    for batch in batches:
        sums.append(experiment.eval_step(params, batch_stats, experiment.put(agreement.ask(batch))))
        # No more than a few batches at a time on the devices.
        if len(sums) > MAX_STEPS_AHEAD:
            agreement.hear(jax.block_until_ready(sums[-1 - MAX_STEPS_AHEAD]))
        if agreement.reached:
            return None
    totals = {name: math.fsum(part[name].item() for part in jax.device_get(sums)) for name in sums[0]}
    if not totals["count"]:
        raise DataError("No example of the evaluation split counts: none could be read, or none has a label.")
    if not math.isfinite(totals["loss"]):
        raise TrainingError(f"The evaluation loss at step {int(state.step)} is {totals['loss']}: the network diverged.")
    count = int(totals["count"])
    means = {f"eval/{name}": totals[name] / count for name in ("loss", "top1", "top5")}
    return {**means, "eval/count": count}


def evaluate_run(experiment: Experiment, workdir: pathlib.Path, stop: StopRequest) -> Outcome:
    """Evaluates the best (or last) checkpoint of ``workdir``, prints the result and writes ``evaluation.json``.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    step, state = _restore_chosen(experiment, workdir)
    return _evaluate_and_report(experiment, state, workdir, step, experiment.config.checkpoint.evaluate, stop)


def evaluate_imported(experiment: Experiment, workdir: pathlib.Path, stop: StopRequest) -> Outcome:
    """Evaluates the model of ``config.init_from``, prints the result and writes ``evaluation.json``.

    Raises:
        CheckpointError: its directory is damaged.
        ConfigError: it holds another network.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    return _evaluate_and_report(experiment, initial_state(experiment), workdir, 0, str(experiment.config.init_from), stop)


def export_run(experiment: Experiment, workdir: pathlib.Path) -> Outcome:
    """Writes the best (or last) checkpoint of ``workdir`` to ``workdir/exported-STEP``, for ``gw_jax.load_pretrained``.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has been exported already.
    """
    step, state = _restore_chosen(experiment, workdir)
    directory = workdir / f"exported-{step}"
    params, batch_stats = state.evaluated
    arguments = experiment.plain_model_arguments
    graphdef, _, _ = split_model(make_model(arguments, dtype=experiment.config.dtype, rngs=NoKeys()))
    batch_stats = jax.jit(average_rows, out_shardings=replicated(experiment.mesh))(batch_stats)
    if not is_main():
        return Outcome(None)
    model = nnx.merge(graphdef, params, batch_stats)
    save_pretrained(directory, model, arguments, source={"workdir": str(workdir), "step": step})
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
    experiment: Experiment, state: TrainState, workdir: pathlib.Path, step: int, source: str, stop: StopRequest
) -> Outcome:
    batches = open_eval_batches(experiment)
    try:
        metrics = evaluate(experiment, state, batches, stop)
    finally:
        batches.close()
    if metrics is None:
        print("Stopped before the evaluation was over. The same command starts it again.", file=sys.stderr)
        return Outcome(None, stop.signal or signal.SIGTERM)
    name = experiment.config.data.eval_name
    result = {"step": step, "checkpoint": source, **({"eval_name": name} if name else {}), **metrics}
    if is_main():
        file = EVALUATION_FILE if name is None else f"evaluation-{name.replace('/', '-')}.json"
        write_atomically(workdir / file, json.dumps(result, indent=2) + "\n")
        print(json.dumps(result))
    return Outcome(metrics)
