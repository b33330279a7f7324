"""Runs all experiments, then draws the figures and prints the tables.

    python -m experiments [--quick] [--seeds=5] [--out=DIRECTORY]

Each experiment is a process of its own, so that one that fails leaves the others' results. With ``--out``, figures and
results are written there; without it, to ``experiments/results`` and ``docs``.
"""

import subprocess
import sys

from experiments.tables import EXPERIMENTS


def main() -> int:
    """Runs each experiment in turn; the number of those that failed."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    failed = [
        name for name in EXPERIMENTS if subprocess.run([sys.executable, "-m", f"experiments.{name}", *arguments]).returncode
    ]
    out = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--out=")]
    places = [f"--results={out[-1]}"] if out else []
    figures = [f"--figures={out[-1]}"] if out else []
    subprocess.run([sys.executable, "-m", "experiments.figures", *places, *figures], check=True)
    subprocess.run([sys.executable, "-m", "experiments.tables", *places], check=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
