"""Trains or evaluates a network: ``python train.py [--config=FILE] [--config.FIELD=VALUE ...] [--workdir=DIR]``.

Without arguments it runs ``configs/quickstart.py``. The same command again resumes where the last one stopped.
"""

import os
import pathlib
import signal
import sys
import types

DEFAULT_CONFIG = pathlib.Path(__file__).parent / "configs" / "quickstart.py"


def main(arguments: list[str]) -> int:
    """Runs what the command line says. Returns the exit code."""
    # Before the imports below, which take seconds. While a run can lose something, it has a handler of its own.
    signal.signal(signal.SIGINT, _end_at_once)
    from gw_jax.errors import UserError
    from gw_jax.train import command_line, distributed, run
    from gw_jax.train.terminal import quiet_libraries, tolerate_closed_streams

    tolerate_closed_streams()
    quiet_libraries()
    try:
        if {"--help", "-h", "--helpfull", "-help"} & set(arguments):
            print(f"{__doc__}\n{command_line.help_text(arguments, DEFAULT_CONFIG)}")
            return 0
        line = command_line.parse(arguments, DEFAULT_CONFIG)
        timeout_s = line.config.distributed.timeout_s
        distributed.initialize(line.coordinator, line.num_processes, line.process_id, timeout_s=timeout_s)
        with distributed.reporting_failures():
            outcome = run(line.config, line.workdir, given=line.given)
            distributed.finish()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(1, str(error))
    except KeyboardInterrupt:
        print("Interrupted before the state could be saved; what was saved before is unchanged.", file=sys.stderr)
        distributed.leave(128 + signal.SIGINT, "it was interrupted")
    # A preempted run ended as it should and is started again by whoever sent SIGTERM; Ctrl-C ends a chain of commands.
    return 128 + signal.SIGINT if outcome.stopped_by == signal.SIGINT else 0


def _end_at_once(number: int, _: types.FrameType | None) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
