"""The training loop of any task, from its first step or its last checkpoint to the curves."""

import math
import pathlib
import signal
import time
from typing import Any

import jax

from gw_jax.errors import CheckpointError
from gw_jax.train.checkpoint import Checkpoints, Progress, saved_steps
from gw_jax.train.chips import CHIPS
from gw_jax.train.config_fields import flatten
from gw_jax.train.distributed import is_main, reporting_failures, run_on_main
from gw_jax.train.divergence import divergence_error
from gw_jax.train.evaluation import evaluate
from gw_jax.train.experiment import Experiment
from gw_jax.train.hooks import Hooks
from gw_jax.train.metrics import MetricsWriter
from gw_jax.train.modes import RunResult
from gw_jax.train.plot import plot_result
from gw_jax.train.profiler import Profiler
from gw_jax.train.stop import MAX_STEPS_AHEAD, STOP_FIELD, StopConsensus, StopRequest
from gw_jax.train.task import Batch
from gw_jax.train.terminal import Terminal
from gw_jax.train.throughput import Throughput
from gw_jax.train.totals import Totals
from gw_jax.train.workdir import check_room_to_save


class Trainer:
    """One training run and what it carries from step to step.

    Attributes:
        experiment: task, network and steps of the run.
        workdir: its work directory.
        step: number of steps done.
        state: the state after them, on the devices.
        checkpoints: the checkpoints of the work directory.
    """

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, stop: StopRequest, hooks: Hooks):
        config, task = experiment.config, experiment.task
        self.experiment, self.workdir, self._stop, self._hooks = experiment, workdir, stop, hooks
        self._consensus = StopConsensus(stop)
        self.checkpoints = Checkpoints(workdir, config.checkpoint, task.best_metric)
        processes = jax.process_index(), jax.process_count()
        self._batches = task.train_batches(experiment.length.num_epochs, *processes)
        self._eval_batches = task.eval_batches(*processes)
        self.state, self._evaluated, self._evaluation = experiment.state, True, None
        self._totals = Totals()
        self._saved_at: int | None = None
        # Metrics on the devices, of steps that may still be running.
        self._in_flight: list[dict[str, Any]] = []
        if run_on_main("checkpoints found", lambda: bool(saved_steps(workdir))):
            self.step, self.state, progress = self.checkpoints.restore_newest(experiment.state)
            self._check_length()
            self._batches.set_state(progress.data)
            self._totals = Totals(progress.pending, progress.epoch_totals)
            self._evaluated, self._evaluation, self._saved_at = progress.evaluated, progress.evaluation, self.step
        else:
            self.step = int(self.state.step)
            self._batches.skip_to(self.step)
        self._writer = MetricsWriter(
            workdir,
            step=self.step,
            evaluated=self._evaluated,
            tensorboard=config.log.tensorboard,
            evaluation=self._evaluation_line(),
            config=flatten(config),
        )
        self._terminal = Terminal(
            total=experiment.length.total_steps,
            step=self.step,
            steps_per_epoch=experiment.length.steps_per_epoch,
            progress_bar=config.log.progress_bar,
            shown=task.terminal_metrics,
        )
        experiment.kernel_checks.say = self._terminal.say
        self._profiler = Profiler(workdir, config.log)
        self._throughput = Throughput(task.example_name)
        self._compiled: dict[Any, tuple[jax.stages.Compiled, float | None]] = {}

    def train(self) -> RunResult:
        """Trains to the end, or to a stop request."""
        length = self.experiment.length
        self._announce()
        try:
            with reporting_failures():
                self._hooks.before_training(self, flatten(self.experiment.config))
                if not self._evaluated and not self._consensus.should_stop:
                    self._evaluate_and_save()
                while self.step < length.total_steps and not self._consensus.should_stop:
                    self._take_step()
                    if self._logs():
                        self._log()
                    if length.evaluates(self.step):
                        self._evaluated = False
                        self._evaluate_and_save()
                    elif length.saves(self.step):
                        self._save()
                self._consensus.raise_failure(self._batches.failure)
                if self._consensus.should_stop:
                    return self._end_early()
                self.checkpoints.wait()
        finally:
            self._profiler.close()
            self._batches.close()
            self._eval_batches.close()
            self._terminal.close()
            self._writer.close()
            self.checkpoints.close()
        return self._finish()

    def _logs(self) -> bool:
        """Whether a training line is due."""
        length, every = self.experiment.length, self.experiment.config.log.every_steps
        return self.step % every == 0 or length.ends_epoch(self.step) or self.step == length.total_steps

    def _announce(self) -> None:
        """Reports the start of the run."""
        devices = self.experiment.mesh.devices.flat
        hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        where = f"{self.experiment.mesh.size} {devices[0].device_kind} device(s){hosts}"
        total = self.experiment.length.total_steps
        if self.step:
            self._terminal.say(f"Resuming from step {self.step} of {total} in {self.workdir}, on {where}.")
        else:
            self._terminal.say(f"Training for {total} steps in {self.workdir}, on {where}.")

    def _check_length(self) -> None:
        if self.step > self.experiment.length.total_steps:
            raise CheckpointError(
                f"The checkpoint {self.checkpoints.path(self.step)} is of step {self.step}, and the run has "
                f"{self.experiment.length.total_steps} steps. It belongs to another run; move it out of the work directory."
            )

    def _evaluation_line(self) -> dict[str, Any] | None:
        """The line of ``metrics.jsonl`` of the evaluation at this step, which the checkpoint holds, too."""
        if self._evaluation is None or self._evaluation["step"] != self.step:
            return None
        return {"step": self.step, "epoch": self.experiment.length.epoch(self.step), **self._evaluation["metrics"]}

    def _take_step(self) -> None:
        self._hooks.before_step(self)
        self._throughput.start()
        began = time.perf_counter()
        batch = next(self._batches)
        waited = time.perf_counter() - began
        batch = self.experiment.shard_batch(self._consensus.attach(batch, failed=self._batches.failure is not None))
        train_step, seconds_at_peak = self._compiled_step(batch)
        self._profiler.before(self.step)
        self._throughput.start()
        # Every transfer between host and devices is explicit here.
        with jax.transfer_guard("disallow"):
            self.state, metrics = train_step(self.state, batch)
        self.step += 1
        self._in_flight.append(metrics)
        self._terminal.advance()
        if len(self._in_flight) > MAX_STEPS_AHEAD:
            self._consensus.observe(jax.block_until_ready(self._in_flight[-1 - MAX_STEPS_AHEAD]))
        self._consensus.raise_failure(self._batches.failure)
        self._profiler.after(self.step, metrics)
        self._throughput.count(self.experiment.task.batch_size, waited, seconds_at_peak)
        self._hooks.after_step(self)

    def _compiled_step(self, batch: Batch) -> tuple[jax.stages.Compiled, float | None]:
        """The step for the shapes of ``batch``, compiled when they are seen first, and its seconds at the devices' peak."""
        leaves, structure = jax.tree.flatten(batch)
        shapes = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in self._compiled:
            # Compilation does not count as training time.
            jax.block_until_ready(self._in_flight)
            self._throughput.pause()
            self.experiment.kernel_checks.before(self.experiment.train_step, self.state, batch)
            # Lowered first: that gives the number of operations for "train/mfu" without compiling twice.
            lowered = self.experiment.train_step.lower(self.state, batch)
            # FLOPs of the global batch, before it is partitioned over the devices.
            flops, mesh = (lowered.cost_analysis() or {}).get("flops"), self.experiment.mesh
            chip = CHIPS.get(mesh.devices.flat[0].device_kind)
            self._compiled[shapes] = lowered.compile(), flops / (mesh.size * chip.flops) if flops and chip else None
        return self._compiled[shapes]

    def _collect(self) -> None:
        """Waits for all dispatched steps and moves their metrics to the host.

        Raises:
            TrainingError: the loss or the gradient of one of them is not finite.
        """
        first = self.step - len(self._in_flight) + 1
        arrived = jax.device_get(self._in_flight)
        self._in_flight = []
        for step, metrics in enumerate(arrived, start=first):
            self._consensus.observe(metrics)
            values = {name: (float(pair[0]), float(pair[1])) for name, pair in metrics.items() if name != STOP_FIELD}
            if not all(math.isfinite(number) for pair in values.values() for number in pair):
                self._raise_not_finite(step, values)
            self._totals.add(values)

    def _raise_not_finite(self, step: int, values: dict[str, tuple[float, float]]) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.last_step()
        means = {name: total / count if count else total for name, (total, count) in values.items()}
        rate = float(self.experiment.schedule(step - 1))
        raise divergence_error(
            step, means, rate, self.experiment.config, None if last is None else self.checkpoints.path(last)
        )

    def _log(self) -> None:
        """Writes a training line: the means since the last one, or, at the end of an epoch, those of the epoch."""
        self._collect()
        means = self._totals.read(of_epoch=self.experiment.length.ends_epoch(self.step))
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/learning_rate"] = float(self.experiment.schedule(self.step - 1))
        measured = self._throughput.read()
        values |= {f"train/{name}": value for name, value in measured.items()}
        self._write(values)

    def _write(self, values: dict[str, float]) -> None:
        self._writer.write(self.step, self.experiment.length.epoch(self.step), values)
        self._terminal.show(self.step, values)
        self._hooks.after_log(self, values)

    def _evaluate_and_save(self) -> None:
        """Evaluates, writes the line and saves; does neither if a stop request came first."""
        # Steps in flight would hold memory that the evaluation needs; one that is not finite needs no evaluation.
        self._collect()
        self._throughput.pause()
        self._hooks.before_evaluation(self)
        metrics = evaluate(self.experiment, self.state, self._eval_batches, self._consensus, self.workdir)
        if metrics is None:
            return
        self._evaluated, self._evaluation = True, {"step": self.step, "metrics": metrics}
        self._write(metrics)
        self._save(metrics)

    def _save(self, metrics: dict[str, float] | None = None) -> None:
        jax.block_until_ready(self._in_flight)
        self._throughput.pause()
        self._collect()
        # A process whose data failed has trained on substitutes since.
        self._consensus.raise_failure(self._batches.failure)
        self._hooks.before_save(self)
        # A save that is still being written needs space, too.
        self.checkpoints.wait()
        run_on_main("room to save", lambda: check_room_to_save(self.workdir, self.state))
        progress = Progress(
            data=self._batches.get_state(),
            pending=self._totals.pending,
            epoch_totals=self._totals.epoch,
            evaluated=self._evaluated,
            evaluation=self._evaluation,
        )
        self.checkpoints.save(self.state, progress, metrics)
        self._saved_at = self.step

    def _end_early(self) -> RunResult:
        # The signal may have come to another host.
        number = self._stop.signal or signal.SIGTERM
        if self._saved_at != self.step:
            self._save()
        self.checkpoints.wait()
        self._terminal.say(
            f"Stopped by {number.name} after step {self.step}; saved in {self.checkpoints.path(self.step)}. The same "
            "command resumes there."
        )
        return RunResult(self._evaluation and self._evaluation["metrics"], number)

    def _finish(self) -> RunResult:
        metrics = self._evaluation["metrics"] if self._evaluation else {}
        if is_main():
            # An evaluation may have hundreds of others, which are in metrics.jsonl.
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("eval/"))
            print(f"Done after step {self.step}: {numbers}", flush=True)
            if self.experiment.config.log.plot:
                plot_result(self.workdir, self.experiment.task)
        return RunResult(metrics or None)
