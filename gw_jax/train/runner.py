"""The entry point of training, evaluation and export."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Set

import jax

from gw_jax.errors import CheckpointError
from gw_jax.train.checkpoint import saved_steps
from gw_jax.train.config import TrainConfig, validate
from gw_jax.train.config_fields import flatten
from gw_jax.train.distributed import check_same_everywhere, is_main, run_on_main, wait_for_everyone
from gw_jax.train.experiment import build_experiment
from gw_jax.train.hooks import Hooks
from gw_jax.train.loop import Trainer
from gw_jax.train.modes import RunResult, evaluate_imported, evaluate_run, export_run
from gw_jax.train.stop import StopRequest
from gw_jax.train.warm_start import initial_state
from gw_jax.train.workdir import (
    check_disk_space,
    check_local_path,
    check_same_run,
    claim_workdir,
    config_from_stored,
    stored_config,
    versions,
)
from gw_jax.train.workdir_lock import WorkdirLock


def run(
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    given: Set[str] | None = None,
    hooks: Hooks | None = None,
    devices: list[jax.Device] | None = None,
) -> RunResult:
    """Trains, evaluates or exports, as ``config.mode`` says, in ``workdir``.

    Training resumes from the newest checkpoint of ``workdir``, if there is one, and then ends with the same numbers as a
    run that was never stopped. On several hosts, ``workdir`` is a directory that all of them share.

    Args:
        config: the run and its task.
        workdir: directory of its checkpoints and metrics; one run owns it.
        given: names of the fields that were set explicitly, such as on a command line. Evaluation and export read all
            others from the run in ``workdir``. None means all fields.
        hooks: calls from the training loop.
        devices: devices to run on; None for all.

    Raises:
        UserError: anything that the user can fix; the message says how. Nothing that was saved is lost.

    Example:
        >>> import gw_jax.train
        >>> from gw_jax.classification import ClassificationConfig, DataConfig, ModelConfig
        >>> model = ModelConfig(name="mlp", width=8, norm="bn")
        >>> config = ClassificationConfig(num_steps=2, data=DataConfig(batch_size=400), model=model)
        >>> gw_jax.train.run(config, "runs/mine").metrics["eval/count"]
        Done after step 2: ...
        1000
    """
    validate(config)
    config, resolved = config.resolve()
    validate(config)
    if resolved and config.mode == "train" and is_main():
        print(resolved, flush=True)
    workdir = check_local_path(workdir, "--workdir")
    for name in ("init_from", "resume_from"):
        if (path := getattr(config, name)) is not None:
            check_local_path(path, f"config.{name}")
    check_same_everywhere({**flatten(config), **versions(), "workdir": str(workdir)})
    stored = stored_config(workdir)
    if stored is not None and config.mode != "train":
        config = config_from_stored(workdir, stored, config, given)
        validate(config)
    else:
        check_same_run(workdir, config)
    wait_for_everyone("work directory checked")
    with StopRequest() as stop:
        if config.mode == "train":
            return _train(config, workdir, stop, hooks or Hooks(), devices)
        if stored is None and (config.mode != "evaluate" or config.init_from is None):
            imported = ", or set config.init_from to evaluate a converted model" if config.mode == "evaluate" else ""
            raise CheckpointError(
                f"{workdir} holds no run to {config.mode}. Train first, or give the --workdir of a run{imported}."
            )
        experiment = build_experiment(config, devices, training=False)
        if stored is None:
            return evaluate_imported(experiment, workdir, stop)
        return evaluate_run(experiment, workdir, stop) if config.mode == "evaluate" else export_run(experiment, workdir)


def _train(
    config: TrainConfig, workdir: pathlib.Path, stop: StopRequest, hooks: Hooks, devices: list[jax.Device] | None
) -> RunResult:
    experiment = build_experiment(config, devices)
    if not run_on_main("saved checkpoints", lambda: bool(saved_steps(workdir))):
        # Before the directory is claimed: a run that cannot start must not claim it.
        experiment = dataclasses.replace(experiment, state=initial_state(experiment))
    wait_for_everyone("ready")
    with WorkdirLock(workdir) if is_main() else contextlib.nullcontext():
        run_on_main("work directory claimed", lambda: claim_workdir(workdir, config))
        run_on_main("disk space checked", lambda: check_disk_space(workdir, experiment.state))
        trainer, result = Trainer(experiment, workdir, stop, hooks), None
        try:
            result = trainer.train()
        finally:
            hooks.after_training(trainer, result)
        return result
