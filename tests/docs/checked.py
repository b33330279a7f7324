"""``pip`` and ``pytest`` of the shell blocks: checks that extras and paths exist, and does nothing else."""

import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[2]


def check_pip(arguments):
    """The extras of ``pip install -e '.[extras]'`` and of ``gw_jax[extras] @ ...``; a constraint file."""
    assert arguments[0] in ("install", "check"), arguments
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := re.match(r"(?:\.|gw_jax)\[([\w,-]+)\]", argument):
            unknown = set(match[1].split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"no such extra: {unknown}"
        if argument in ("-c", "--constraint", "-r"):
            assert (ROOT / following).is_file(), f"no such file: {following}"


def check_pytest(arguments):
    """The paths."""
    paths = [path for path in arguments if path.startswith("tests")]
    missing = [path for path in paths if not (ROOT / path.split("::")[0]).exists()]
    assert not missing, f"no such path: {missing}"


if __name__ == "__main__":
    {"pip": check_pip, "pytest": check_pytest}[sys.argv[1]](sys.argv[2:])
