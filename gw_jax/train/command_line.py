"""The command line of ``train.py``: a config file, fields that override it, the work directory, the other hosts."""

import dataclasses
import importlib.util
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import config_flags

from gw_jax.errors import ConfigError, UserError, one_line, shown
from gw_jax.train.config import TrainConfig
from gw_jax.train.config_fields import check_field_name, field_type, is_optional, set_field
from gw_jax.train.config_help import field_lines

_NONE = ("None", "none")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """The parsed command line of ``train.py``.

    Attributes:
        config: the configuration of the config file with the fields of the command line.
        workdir: the work directory.
        given: names of the fields that the command line set, such as "optimizer.momentum".
        coordinator: ``host:port`` of process 0, or None.
        num_processes: number of processes, or None.
        process_id: number of this process, or None.
    """

    config: TrainConfig
    workdir: str
    given: frozenset[str]
    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def parse(arguments: list[str], default_config: pathlib.Path) -> CommandLine:
    """Reads ``arguments``, of which the first is the program's name.

    An optional field is unset by ``--config.FIELD=None``.

    Raises:
        ConfigError: a name or a value that does not fit, in one line.
    """
    file, rest = _pop_config_file(arguments, default_config)
    config = load_config(file)
    rest, unset = _pop_unset(rest, config)
    values = flags.FlagValues()
    try:
        # Defining the flag already sets the fields that the command line names, so the names were checked before.
        holder = config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=rest)
        flags.DEFINE_string("workdir", None, "Checkpoints and metrics.", flag_values=values)
        flags.DEFINE_string("coordinator", None, "host:port of the first of several processes.", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "Number of processes, one per host.", flag_values=values)
        flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", flag_values=values)
        remaining = values(rest)
    except flags.Error as error:
        raise ConfigError(f"{one_line(str(error))}. --help lists the flags.") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The command line cannot be read: {one_line(str(error))}. --help lists the flags.") from error
    if len(remaining) > 1:
        raise ConfigError(f"Unexpected arguments {shown(remaining[1:])}; everything is given as --flag=value.")
    config = holder.value
    overrides: Any = values["config"]
    for name in unset:
        set_field(config, name, None)
    if values["workdir"].value == "":
        raise ConfigError("--workdir is empty; give a directory, or leave the flag out.")
    return CommandLine(
        config=config,
        workdir=values["workdir"].value or f"runs/{pathlib.Path(file.split(':')[0]).stem}",
        given=frozenset(overrides.override_values) | unset,
        coordinator=values["coordinator"].value,
        num_processes=values["num_processes"].value,
        process_id=values["process_id"].value,
    )


def help_text(arguments: list[str], default_config: pathlib.Path) -> str:
    """The flags, with every field of the configuration: its value in the config file, its meaning, what is allowed."""
    file, _ = _pop_config_file(arguments, default_config)
    config = load_config(file)
    kind = type(config)
    lines = [
        "--config=FILE    a file with get_config() -> TrainConfig; default: configs/quickstart.py",
        "--workdir=DIR    checkpoints and metrics; default: runs/ and the name of the config file",
        "--coordinator=HOST:PORT --num_processes=N --process_id=I",
        "                 one process per host; under SLURM, Open MPI and on TPU slices they find each other",
        "",
        f"Fields of {kind.__module__}.{kind.__name__}",
        f"with their values in {file}",
        "and, in brackets, what is allowed. A tuple is given as --config.FIELD=\"('a','b')\".",
        "",
        *field_lines(config, kind()),
    ]
    return "\n".join(lines)


def _pop_config_file(arguments: list[str], default: pathlib.Path) -> tuple[str, list[str]]:
    """The value of ``--config``, and the arguments without it."""
    file, rest, position = str(default), [], 0
    while position < len(arguments):
        argument = arguments[position]
        if argument in ("--config", "-config"):
            position += 1
            if position == len(arguments):
                raise ConfigError("--config needs a file: --config=configs/quickstart.py.")
            file = arguments[position]
        elif argument.startswith(("--config=", "-config=")):
            file = argument.split("=", 1)[1]
        else:
            rest.append(argument)
        position += 1
    path = pathlib.Path(file.split(":")[0])
    if not path.is_file():
        known = ", ".join(sorted(f"configs/{other.name}" for other in default.parent.glob("*.py")))
        raise ConfigError(f"There is no config file {shown(file)}. The project's own are {known}.")
    return file, rest


def _pop_unset(arguments: list[str], config: TrainConfig) -> tuple[list[str], frozenset[str]]:
    """The arguments without those that set an optional field to None, and the names of these fields."""
    rest, unset, position = arguments[:1], set(), 1
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        rest.append(argument)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            continue
        name, value = match.groups()
        check_field_name(config, name)
        unset.discard(name)
        used = 1
        # A flag of yes or no has no value of its own: --config.data.flip, --noconfig.data.flip.
        if value is None and position < len(arguments) and (not _is_flag(config, name) or arguments[position] in _NONE):
            value, used = arguments[position], 2
            rest.append(value)
            position += 1
        if value is None or not is_optional(config, name):
            continue
        if value in _NONE:
            del rest[-used:]
            unset.add(name)
        elif not value:
            raise ConfigError(f"--config.{name} is empty; give a value, or None.")
    return rest, frozenset(unset)


def _is_flag(config: TrainConfig, name: str) -> bool:
    return field_type(config, name) in (bool, bool | None)


def load_config(file: str) -> TrainConfig:
    """The configuration that ``get_config()`` of ``file`` returns; for "FILE:ARGUMENT", ``get_config(ARGUMENT)``.

    Raises:
        ConfigError: the file cannot be run, or returns something else than a configuration; the message gives the line.
    """
    name, *argument = file.split(":", 1)
    spec = importlib.util.spec_from_file_location("config_file", name)
    if spec is None or spec.loader is None:
        raise ConfigError(f"The config file {shown(name)} is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"The config file {shown(name)} has no function get_config().")
        config: Any = module.get_config(*argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # The file is code of the user's.
        raise ConfigError(
            f"The config file {shown(name)} cannot be loaded: {type(error).__name__}{_line_in(name, error)}: "
            f"{one_line(str(error))}"
        ) from error
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"get_config() returned a {type(config).__name__}; it must return a gw_jax.train.TrainConfig.")
    return config


def _line_in(name: str, error: BaseException) -> str:
    """The line of the file in which ``error`` arose, if it is known."""
    if isinstance(error, SyntaxError):
        return ""  # Its message has the line.
    frames = [frame for frame in traceback.extract_tb(sys.exc_info()[2]) if frame.filename == name]
    return f" in line {frames[-1].lineno}" if frames else ""
