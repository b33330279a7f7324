"""The entry point of training, evaluation and export."""

import dataclasses
import pathlib

import jax

from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.train.checkpoint import DIRECTORY, saved_steps
from gw_jax.train.config import TrainConfig, validate
from gw_jax.train.config_fields import flatten
from gw_jax.train.distributed import check_same_everywhere, is_main, wait_for_everyone
from gw_jax.train.experiment import build_experiment
from gw_jax.train.hooks import Hooks
from gw_jax.train.loop import Trainer
from gw_jax.train.modes import RunResult, evaluate_imported, evaluate_run, export_run
from gw_jax.train.stop import StopRequest
from gw_jax.train.warm_start import initial_state
from gw_jax.train.workdir import check_room, check_same_run, claim_workdir, versions


def run(
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    hooks: Hooks | None = None,
    devices: list[jax.Device] | None = None,
) -> RunResult:
    """Trains, evaluates or exports, as ``config.mode`` says, in ``workdir``.

    Training resumes from the newest checkpoint of ``workdir``, if there is one, and then ends with the same numbers as a
    run that was never stopped. On several hosts, ``workdir`` is a directory that all of them share.

    Args:
        config: the run and its task.
        workdir: directory of its checkpoints and metrics; one run owns it.
        hooks: calls from the training loop.
        devices: devices to run on; None for all.

    Raises:
        UserError: anything that the user can fix; the message says how. Nothing that was saved is lost.
    """
    validate(config)
    workdir = pathlib.Path(workdir).expanduser()
    check_same_everywhere({**flatten(config), **versions(), "workdir": str(workdir)})
    known = check_same_run(workdir, config)
    wait_for_everyone("work directory checked")
    with StopRequest() as stop:
        if config.mode == "evaluate" and config.init_from is not None and not known:
            return evaluate_imported(build_experiment(config, devices, training=False), workdir, stop)
        if config.mode != "train":
            if not known:
                raise CheckpointError(
                    f"{workdir} holds no run to {config.mode}. Train first, or give the --workdir of a run."
                )
            experiment = build_experiment(config, devices, training=False)
            return evaluate_run(experiment, workdir, stop) if config.mode == "evaluate" else export_run(experiment, workdir)
        return _train(config, workdir, known, stop, hooks or Hooks(), devices)


def _train(
    config: TrainConfig,
    workdir: pathlib.Path,
    known: bool,
    stop: StopRequest,
    hooks: Hooks,
    devices: list[jax.Device] | None,
) -> RunResult:
    if not known and saved_steps(workdir):
        raise ConfigError(
            f"{workdir / DIRECTORY} holds checkpoints, but {workdir} has no config.json that says of which run. Restore "
            "that file, or give another --workdir."
        )
    experiment = build_experiment(config, devices)
    if not saved_steps(workdir):
        # Before the directory is claimed: a run that cannot start must not claim it.
        experiment = dataclasses.replace(experiment, state=initial_state(experiment))
    wait_for_everyone("ready")
    if is_main():
        claim_workdir(workdir, config)
    wait_for_everyone("work directory claimed")
    check_room(workdir, experiment.state)
    return Trainer(experiment, workdir, stop, hooks).train()
