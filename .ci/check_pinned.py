"""Fails unless the environment has exactly the versions of a constraint file: ``check_pinned.py FILE``."""

import importlib.metadata
import pathlib
import sys

from packaging.version import Version

lines = [line.split("#")[0].strip() for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
pinned = dict(line.split("==") for line in lines if line)
found = {name: importlib.metadata.version(name) for name in pinned}
wrong = [
    f"{name} is {found[name]}, not {version}"
    for name, version in pinned.items()
    if Version(found[name]) != Version(version)
]
if wrong:
    sys.exit(f"error: installing gw_jax replaced versions of {sys.argv[1]}: {'; '.join(wrong)}")
print(f"All {len(pinned)} packages have the versions of {sys.argv[1]}.")
