"""One process of a run on several hosts, and how to start them.

    python -m tests.helpers.host HELPER PORT COUNT INDEX DEVICES WORKDIR FAULT [FIELD=JSON ...]

HELPER is a module of tests.helpers with ``make_config``; FAULT is "none" or SIGNAL@METHOD@STEP: this process sends itself
that signal when the method of the hooks is called at that step.
"""

import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def main(helper, port, count, index, devices, workdir, fault, *changes):
    import jax

    jax.config.update("jax_num_cpu_devices", int(devices))
    from gw_jax.errors import UserError
    from gw_jax.models.resnet import ARCHITECTURES, Architecture
    from gw_jax.train import Hooks, distributed, run
    from tests.helpers.runs import At, set_field

    ARCHITECTURES["resnet6"] = Architecture(False, (1, 1, 0, 0))
    config = importlib.import_module(f"tests.helpers.{helper}").make_config()
    for change in changes:
        path, value = change.split("=", 1)
        set_field(config, path, json.loads(value))
    hooks = Hooks()
    if fault != "none":
        name, method, step = fault.split("@")

        def send(trainer):
            # What was saved before is then there, however fast the disk is.
            trainer.checkpoints.wait()
            os.kill(os.getpid(), signal.Signals[name])

        hooks = At(method, int(step), send)
    try:
        address, timeout = f"127.0.0.1:{port}", config.distributed.timeout_s
        distributed.initialize(address, int(count), int(index), timeout_s=timeout)
        with distributed.reporting_failures():
            run(config, workdir, hooks=hooks)
            distributed.finish()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(1, str(error))
    return 0


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(helper, workdir, changes=({}, {}), faults=("none", "none"), present=(0, 1), **environment):
    """Starts processes of two devices each; ``changes`` and ``faults`` are those of each."""
    port = free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.helpers.host", helper, str(port), str(len(changes)), str(index), "2"),
                *(str(workdir), faults[index], *(f"{path}={json.dumps(value)}" for path, value in changes[index].items())),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for index in present
    ]


def end(processes):
    """Waits for the processes; gives their exit codes and what they said."""
    said = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], said


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
