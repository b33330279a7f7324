"""A training run from its first step, or from its last checkpoint, to the curves."""

import contextlib
import dataclasses
import math
import pathlib
import signal
import time
import types
from collections.abc import Set
from typing import Any

import jax

from gw_jax.data.pipeline import TrainBatches
from gw_jax.errors import CheckpointError, TrainingError
from gw_jax.train.checkpoint import BEST_METRIC, Checkpoints, Progress, has_checkpoint
from gw_jax.train.chips import CHIPS
from gw_jax.train.config import TrainConfig, validate
from gw_jax.train.config_fields import flatten
from gw_jax.train.distributed import check_same_everywhere, is_main, telling_failures, wait_for_everyone
from gw_jax.train.evaluate import Outcome, evaluate, evaluate_imported, evaluate_run, export_run, open_eval_batches
from gw_jax.train.initial import initial_state
from gw_jax.train.metrics import MetricsWriter, read_metrics
from gw_jax.train.plot import plot_curves
from gw_jax.train.profiler import Profiler
from gw_jax.train.setup import Experiment, image_transform, set_up
from gw_jax.train.stop import MAX_STEPS_AHEAD, StopConsensus, StopRequest
from gw_jax.train.terminal import Terminal
from gw_jax.train.throughput import Throughput
from gw_jax.train.workdir import (
    check_disk_space,
    check_local_path,
    check_room_to_save,
    check_same_run,
    claim_workdir,
    config_from_stored,
    stored_config,
    versions,
)
from gw_jax.train.workdir_lock import WorkdirLock

# What a training step reports, in the order in which checkpoints store it.
STEP_METRICS = ("loss", "top1", "grad_norm")
SHOWN = {"loss": "train/loss", "top1": "train/top1", "eval_top1": "eval/top1", "images/s": "train/images_per_sec"}
CURVES = (
    types.SimpleNamespace(title="cross-entropy", metrics=("train/loss", "eval/loss"), log_scale=True),
    types.SimpleNamespace(title="top-1 accuracy", metrics=("train/top1", "eval/top1"), log_scale=False),
)


def run(config: TrainConfig, workdir: str | pathlib.Path, *, given: Set[str] | None = None) -> Outcome:
    """Trains, evaluates or exports, as ``config.mode`` says, in ``workdir``.

    Training goes on from the newest checkpoint of ``workdir``, if there is one, and then ends with the same numbers as a
    run that was never stopped. On several hosts, ``workdir`` is a directory that all of them share.

    Raises:
        UserError: anything that the user can mend; the message says how. Nothing that was saved is lost.
    """
    validate(config)
    workdir = check_local_path(workdir, "--workdir")
    check_same_everywhere({**flatten(config), **versions(), "workdir": str(workdir)})
    stored = stored_config(workdir)
    known = stored is not None
    if stored is not None and config.mode != "train":
        config = config_from_stored(workdir, stored, config, given)
        validate(config)
    else:
        check_same_run(workdir, config)
    wait_for_everyone("work directory looked at")
    with StopRequest() as stop:
        if config.mode == "evaluate" and config.init_from is not None and not known:
            return evaluate_imported(set_up(config), workdir, stop)
        if config.mode != "train":
            if not known:
                raise CheckpointError(
                    f"{workdir} holds no run to {config.mode}. Train first, or give the --workdir of a run."
                )
            if config.mode == "evaluate":
                return evaluate_run(set_up(config), workdir, stop)
            return export_run(set_up(config), workdir)
        experiment = set_up(config)
        if not has_checkpoint(workdir):
            # Before the directory is claimed: what cannot start must not occupy it.
            experiment = dataclasses.replace(experiment, state=initial_state(experiment))
        wait_for_everyone("ready")
        with WorkdirLock(workdir) if is_main() else contextlib.nullcontext():
            if is_main():
                claim_workdir(workdir, config)
            wait_for_everyone("work directory claimed")
            check_disk_space(workdir, experiment.state)
            return _Trainer(experiment, workdir, stop).train()


class _Trainer:
    """The loop and what it carries from step to step."""

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, stop: StopRequest):
        config = experiment.config
        self.experiment, self.workdir, self.stop, self.config = experiment, workdir, stop, config
        self.consensus = StopConsensus(stop)
        self.checkpoints = Checkpoints(workdir, config.checkpoint)
        self.batches = TrainBatches(
            experiment.dataset.train,
            batch_size=config.data.batch_size,
            num_epochs=config.num_epochs,
            seed=config.seed,
            transform=image_transform(config.data),
            channels=experiment.dataset.spec.image_shape[-1],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=config.data.num_threads,
            num_workers=config.data.num_workers,
            max_broken=config.data.max_broken,
        )
        self.eval_batches = open_eval_batches(experiment)
        self.state = experiment.state
        self.evaluated = True
        # Of the steps since the last line of metrics.jsonl: on the host (restored), and still on the devices.
        self.pending: list[list[float]] = []
        self.in_flight: list[Any] = []
        self.metrics: dict[str, float] | None = None
        if self.checkpoints.last_step() is not None:
            self.step, self.state, progress = self.checkpoints.restore_newest(experiment.state)
            self.batches.set_state(progress.data)
            self.pending, self.evaluated = progress.pending, progress.evaluated
        else:
            self.step = int(self.state.step)
            self.batches.skip_to(self.step)
        self.writer = MetricsWriter(workdir, step=self.step, evaluated=self.evaluated, tensorboard=config.log.tensorboard)
        self.terminal = Terminal(
            total=experiment.total_steps,
            step=self.step,
            steps_per_epoch=experiment.steps_per_epoch,
            progress_bar=config.log.progress_bar,
            shown={
                "loss": "train/loss",
                "top1": "train/top1",
                "eval_top1": "eval/top1",
                "images/s": "train/images_per_sec",
            },
        )
        self.profiler = Profiler(workdir, config.log)
        self.throughput = Throughput("images")
        self.compiled_step: Any = None
        self.peak_steps_per_second: float | None = None

    def train(self) -> Outcome:
        """Runs to the end, or to a wish to stop."""
        saved_at = self._announce()
        try:
            with telling_failures():
                if not self.evaluated and not self.consensus.should_stop:
                    self._evaluate_and_save()
                while self.step < self.experiment.total_steps and not self.consensus.should_stop:
                    self._take_step()
                    ends_epoch = self.step % self.experiment.steps_per_epoch == 0
                    if ends_epoch or self.step % self.config.log.every_steps == 0:
                        self._log()
                    every = self.config.checkpoint.every_steps
                    if self.experiment.eval_is_due(self.step):
                        self.evaluated = False
                        if self._evaluate_and_save():
                            saved_at = self.step
                    elif every is not None and self.step % every == 0:
                        self._save()
                        saved_at = self.step
                if self.consensus.should_stop:
                    return self._end_early(saved_at)
                self.checkpoints.wait()
        finally:
            self.profiler.close()
            self.batches.close()
            self.eval_batches.close()
            self.terminal.close()
            self.writer.close()
            self.checkpoints.close()
        return self._finish()

    def _announce(self) -> int:
        """Says where the run starts; returns the step that is saved already."""
        devices = self.experiment.mesh.devices.flat
        hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        where = f"{self.experiment.mesh.size} {devices[0].device_kind} device(s){hosts}"
        if self.step:
            self.terminal.say(
                f"Going on from step {self.step} of {self.experiment.total_steps} in {self.workdir}, on {where}."
            )
        else:
            self.terminal.say(f"Training for {self.experiment.total_steps} steps in {self.workdir}, on {where}.")
        return self.step

    def _take_step(self) -> None:
        self.throughput.start()
        began = time.perf_counter()
        batch = next(self.batches)
        waited = time.perf_counter() - began
        batch = self.experiment.put(self.consensus.attach(batch))
        if self.compiled_step is None:
            self.throughput.pause()
            self._compile(batch)
            self.throughput.start()
        self.profiler.before(self.step)
        # Whatever moves between host and devices here moves on purpose.
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.compiled_step(self.state, batch)
        self.step += 1
        self.in_flight.append(metrics)
        self.terminal.advance()
        if len(self.in_flight) > MAX_STEPS_AHEAD:
            self.consensus.observe(jax.block_until_ready(self.in_flight[-1 - MAX_STEPS_AHEAD]))
        self.profiler.after(self.step, metrics)
        self.throughput.count(self.config.data.batch_size, waited)

    def _compile(self, batch: Any) -> None:
        """Compiles the step for the shapes of ``batch``, and counts its operations where the devices' peak is known."""
        lowered = self.experiment.train_step.lower(self.state, batch)
        self.compiled_step = lowered.compile()
        chip = CHIPS.get(self.experiment.mesh.devices.flat[0].device_kind)
        if chip is not None:
            # Of the whole batch, before the compiler splits it up.
            flops = (lowered.cost_analysis() or {}).get("flops")
            self.peak_steps_per_second = self.experiment.mesh.size * chip.flops / flops if flops else None

    def _collect(self) -> None:
        """Waits for all steps taken and moves their metrics to the host.

        Raises:
            TrainingError: the loss or the gradient of one of them is not finite.
        """
        first = self.step - len(self.in_flight) + 1
        arrived = jax.device_get(self.in_flight)
        self.in_flight = []
        for metrics in arrived:
            self.consensus.observe(metrics)
        values = [[float(metrics[name]) for name in STEP_METRICS] for metrics in arrived]
        for step, numbers in enumerate(values, start=first):
            if not all(map(math.isfinite, numbers)):
                self._raise_not_finite(step, dict(zip(STEP_METRICS, numbers, strict=True)))
        self.pending += values

    def _raise_not_finite(self, step: int, numbers: dict[str, float]) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.last_step()
        good = (
            "Nothing was saved before." if last is None else f"The last good checkpoint is {self.checkpoints.path(last)}."
        )
        raise TrainingError(
            f"At step {step} the loss is {numbers['loss']} and the norm of its gradient {numbers['grad_norm']}; both must "
            f"be finite. Training stopped, and this state was not saved. {good} Lower config.optimizer.learning_rate "
            f"({float(self.experiment.schedule(step - 1)):.3g} at that step) or lengthen config.schedule.warmup_epochs, in "
            "another --workdir."
        )

    def _log(self) -> None:
        """Writes the training line of the steps since the last one."""
        self._collect()
        means = {
            f"train/{name}": math.fsum(numbers) / len(numbers)
            for name, numbers in zip(STEP_METRICS, zip(*self.pending, strict=True), strict=True)
        }
        self.pending = []
        values = {**means, "train/learning_rate": float(self.experiment.schedule(self.step - 1))}
        measured = self.throughput.read(self.peak_steps_per_second)
        values |= {f"train/{name}": value for name, value in measured.items()}
        self._write(values)

    def _write(self, values: dict[str, float]) -> None:
        epoch = round(self.step / self.experiment.steps_per_epoch, 4)
        self.writer.write(self.step, int(epoch) if epoch == int(epoch) else epoch, values)
        self.terminal.show(self.step, values)

    def _evaluate_and_save(self) -> bool:
        """Evaluates, writes the line and saves; false if a wish to stop came first."""
        # The devices' memory is for the evaluation now.
        jax.block_until_ready(self.in_flight)
        self.throughput.pause()
        metrics = evaluate(self.experiment, self.state, self.eval_batches, self.stop)
        if metrics is None:
            return False
        self.metrics = metrics
        self.evaluated = True
        self._write(metrics)
        self._save(metrics)
        return True

    def _save(self, metrics: dict[str, float] | None = None) -> pathlib.Path:
        self._collect()
        self.throughput.pause()
        progress = Progress(data=self.batches.get_state(), pending=self.pending, evaluated=self.evaluated)
        if is_main():
            check_room_to_save(self.workdir, self.state)
        best = None if metrics is None else {BEST_METRIC: metrics[BEST_METRIC]}
        return self.checkpoints.save(self.state, progress, best)

    def _end_early(self, saved_at: int) -> Outcome:
        # The wish may have come from another host.
        wish = self.stop.signal or signal.SIGTERM
        path = self.checkpoints.path(self.step) if saved_at == self.step else self._save()
        self.checkpoints.wait()
        self.terminal.say(
            f"Stopped by {wish.name} after step {self.step}; saved in {path}. The same command goes on from there."
        )
        return Outcome(self.metrics, wish)

    def _finish(self) -> Outcome:
        if not is_main():
            return Outcome(self.metrics)
        evaluations = [line for line in read_metrics(self.workdir) if "eval/count" in line]
        last = {name: value for name, value in evaluations[-1].items() if name.startswith("eval/")}
        if self.config.log.plot:
            print(f"Curves: {plot_curves(self.workdir, CURVES)}")
        print(f"Done after step {self.step}: " + "  ".join(f"{name} {value:.4f}" for name, value in last.items()))
        return Outcome(last)
