"""One exact evaluation: every example of the split counted once, on any number of devices and hosts."""

import collections
import math
import pathlib
from typing import Any

import jax

from gw_jax.errors import TrainingError
from gw_jax.train.experiment import Experiment
from gw_jax.train.state import TrainState
from gw_jax.train.stop import MAX_STEPS_AHEAD, StopConsensus
from gw_jax.train.task import EvalBatches, EvaluatesShards


def evaluate(
    experiment: Experiment, state: TrainState, batches: EvalBatches, consensus: StopConsensus, workdir: pathlib.Path
) -> dict[str, float] | None:
    """The metrics of ``state`` over the evaluation split, or None if a stop request came first.

    Args:
        experiment: the run.
        state: the state to evaluate.
        batches: the evaluation data.
        consensus: that of the whole run; with one of its own, a process would continue where others have stopped.
        workdir: where an evaluator that writes files writes them.

    Raises:
        DataError: nothing could be evaluated, or the data of this process cannot be read.
        TrainingError: a metric is not finite, or the data of another process cannot be read.
    """
    params, batch_stats = state.eval_weights
    task, step = experiment.task, int(state.step)
    evaluator = task.shard_evaluator(step, workdir) if isinstance(task, EvaluatesShards) else task.evaluator()
    in_flight: collections.deque[Any] = collections.deque()
    for batch in batches:
        sent = experiment.shard_batch(consensus.attach(batch, failed=batches.failure is not None))
        experiment.kernel_checks.before(experiment.eval_step, params, batch_stats, sent)
        returned = experiment.eval_step(params, batch_stats, sent)
        evaluator.add(returned["outputs"])
        in_flight.append(returned)
        # At most a few batches at a time on the devices.
        if len(in_flight) > MAX_STEPS_AHEAD:
            consensus.observe(jax.block_until_ready(in_flight.popleft()))
        if consensus.should_stop:
            consensus.raise_failure(batches.failure)
            return None
    for returned in in_flight:
        consensus.observe(returned)
    consensus.raise_failure(batches.failure)
    metrics = evaluator.result()
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} at step {step} is {value}, so the network has diverged. Lower "
                "config.optimizer.learning_rate, in another --workdir."
            )
    return metrics
