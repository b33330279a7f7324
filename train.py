"""Trains or evaluates a network: ``python train.py [--config=FILE] [--config.FIELD=VALUE ...] [--workdir=DIR]``.

Without arguments it runs ``configs/quickstart.py``. The same command again goes on where the last one stopped.
"""

import pathlib
import signal
import sys

from absl import flags, logging
from ml_collections import config_flags

from gw_jax.errors import ConfigError, UserError
from gw_jax.train import TrainConfig, distributed, run
from gw_jax.train.config_fields import check_field_name, flatten

DEFAULT_CONFIG = pathlib.Path(__file__).parent / "configs" / "quickstart.py"


def print_help() -> None:
    """Prints what the command line takes, with every field and the value it has if no config file sets it."""
    print(__doc__)
    print("--config=FILE    a file with get_config() -> TrainConfig; default: configs/quickstart.py")
    print("--workdir=DIR    checkpoints and metrics; default: runs/ and the name of the config file")
    print("--coordinator=HOST:PORT --num_processes=N --process_id=I")
    print("                 one process a host; under SLURM, Open MPI and on TPU slices they find each other by themselves")
    print("Fields (gw_jax/train/config.py explains them), with the values they have where the config file says nothing:")
    for name, value in flatten(TrainConfig()).items():
        print(f"  --config.{name}={value}")


def parse_flags(arguments: list[str]) -> tuple[TrainConfig, str]:
    """The configuration and the work directory; a name or a value that does not fit is an error of one line."""
    if {"--help", "-h", "--helpfull", "-help"} & set(arguments):
        print_help()
        raise SystemExit(0)
    for argument in arguments[1:]:
        name = argument.lstrip("-").split("=", 1)[0]
        if argument.startswith("-") and name.startswith("config."):
            check_field_name(TrainConfig(), name.removeprefix("config."))
    config_file = next((a.split("=", 1)[1] for a in arguments if a.startswith(("--config=", "-config="))), None)
    if config_file is not None and not pathlib.Path(config_file.split(":")[0]).is_file():
        known = ", ".join(sorted(f"configs/{path.name}" for path in DEFAULT_CONFIG.parent.glob("*.py")))
        raise ConfigError(f"There is no config file {config_file!r}. The project's own are {known}.")
    # Defining the flag already sets the fields that the command line names, so the names are checked before.
    config = config_flags.DEFINE_config_file("config", str(DEFAULT_CONFIG), "A file with get_config() -> TrainConfig.")
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory of the run's checkpoints and metrics; default: runs/ and the name of the config file."
    )
    flags.DEFINE_string("coordinator", None, "host:port of the first of several processes.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, one a host.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    try:
        remaining = flags.FLAGS(arguments)
    except flags.Error as error:
        raise ConfigError(f"{error}. --help lists the flags.") from error
    if len(remaining) > 1:
        raise ConfigError(f"Unexpected arguments {remaining[1:]}; everything is given as --flag=value.")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    return config.value, workdir.value or f"runs/{name}"


def main(arguments: list[str]) -> int:
    """Runs what the command line says. Returns the exit code."""
    # TFDS warns about every data set that is not prepared yet.
    logging.set_verbosity(logging.ERROR)
    try:
        config, workdir = parse_flags(arguments)
        distributed.initialize(*(flags.FLAGS[name].value for name in ("coordinator", "num_processes", "process_id")))
        outcome = run(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted before the state could be saved; what was saved before is untouched.", file=sys.stderr)
        return 128 + signal.SIGINT
    # A preempted run ended as it should and is started again by whoever sent SIGTERM; Ctrl-C ends a chain of commands.
    return 128 + signal.SIGINT if outcome.stopped_by == signal.SIGINT else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
