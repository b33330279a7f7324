import ast
import pathlib
import re
import subprocess
import sys

import pytest

import gw_jax

PACKAGE = pathlib.Path(gw_jax.__file__).parent
# From the ground up. A package imports itself and those of the floors below, never its neighbours.
FLOORS = [
    ["_version", "versions"],
    ["errors", "tree"],
    ["files", "config_checks", "norm_calls"],
    ["ops"],
    ["nn", "linen"],
    ["models"],
    ["data", "augment"],
    ["convert"],
    ["analysis", "serving"],
    ["train"],
    ["classification"],
    ["doctor"],
]
LEVELS = {name: level for level, names in enumerate(FLOORS) for name in names}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return  # The front door may show every floor.
    own = parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            if name.startswith("gw_jax."):
                other = name.split(".")[1]
                assert other == own or LEVELS[other] < LEVELS[own], f"{path} imports {name}"
            assert name.split(".")[0] not in ("tests", "benchmarks", "configs")


@pytest.mark.parametrize("path", sorted((PACKAGE / "train").glob("*.py")), ids=lambda path: path.stem)
def test_training_names_no_task(path):
    """A second task must not find words of the first in its way. An example of a field's path is none."""
    words = set(re.findall(r"[a-z0-9]+", path.read_text().lower().replace("class ", "").replace(":class:", "")))
    assert not words & {"label", "labels", "top1", "image", "images", "classes", "logits", "class"}


def test_importing_takes_jax_and_flax_only_and_touches_no_device():
    script = (
        "import sys, gw_jax\n"
        "from jax._src import xla_bridge\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'torch', 'grain', 'matplotlib', 'tensorboardX', 'mlxtend'}\n"
        "print(sorted(heavy & set(sys.modules)), xla_bridge.backends_are_initialized())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] False"


def test_typed_and_versioned():
    assert (PACKAGE / "py.typed").exists()
    assert gw_jax.__version__.count(".") == 2
