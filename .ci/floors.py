"""Prints the lowest allowed version of every dependency, as pip's constraints: ``floors.py EXTRA ...``."""

import pathlib
import sys
import tomllib

from packaging.requirements import Requirement

project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras, done = set(sys.argv[1:]), set()
requirements = [Requirement(line) for line in project["dependencies"]]
while extras - done:
    extra = (extras - done).pop()
    done.add(extra)
    for requirement in map(Requirement, project["optional-dependencies"][extra]):
        if requirement.name == project["name"]:
            extras |= requirement.extras
        else:
            requirements.append(requirement)
for requirement in requirements:
    floors = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(floors) != 1:
        sys.exit(f"error: pyproject.toml states no lowest version of {requirement.name}")
    print(f"{requirement.name}=={floors[0]}")
