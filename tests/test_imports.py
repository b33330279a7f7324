import ast
import pathlib
import subprocess
import sys

import pytest

import gw_jax

PACKAGE = pathlib.Path(gw_jax.__file__).parent
# From the ground up; a floor may import those before it.
FLOORS = ["errors", "_version", "files", "ops", "nn", "linen", "models", "data", "augment", "convert", "train"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return  # The front door may show every floor.
    floor = FLOORS.index(parts[0])
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            if name.startswith("gw_jax."):
                assert FLOORS.index(name.split(".")[1]) <= floor, f"{path} imports {name}"
            assert name.split(".")[0] not in ("tests", "benchmarks", "configs")


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
