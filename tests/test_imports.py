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
    ["classification", "detection"],
    ["doctor"],
]
# Modules of gw_jax.detection that need the trainer or read data sets.
DETECTION_TRAINING = {
    *("config", "task", "recipes", "weights", "evaluator", "data", "prepare", "scene_data"),
    *("coco_evaluator", "detection_files", "draw_result", "predict", "predictor", "run_models"),
    *("description", "coco_categories"),
}
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


@pytest.mark.parametrize("path", sorted((PACKAGE / "detection").glob("*.py")), ids=lambda path: path.stem)
def test_numerics_of_detection_do_not_import_its_training(path):
    """The detector is used without a trainer; only config, task and the like know ``gw_jax.train`` and its packages."""
    if path.stem in DETECTION_TRAINING:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            assert parts[0] not in ("optax", "orbax", "ml_collections", "grain"), f"{path} imports {name}"
            assert parts[:2] != ["gw_jax", "train"], f"{path} imports {name}"
            trained = parts[:2] == ["gw_jax", "detection"] and DETECTION_TRAINING & set(parts[2:3])
            assert not trained, f"{path} imports {name}"


@pytest.mark.parametrize("module", ["gw_jax", "gw_jax.detection"])
def test_importing_takes_jax_and_flax_only_and_touches_no_device(module):
    script = (
        f"import sys, {module}\n"
        "from jax._src import xla_bridge\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'torch', 'grain', 'orbax', 'matplotlib', 'tensorboardX',\n"
        "         'mlxtend', 'PIL', 'pycocotools'}\n"
        "print(sorted(heavy & set(sys.modules)), xla_bridge.backends_are_initialized())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] False"


def test_typed_and_versioned():
    assert (PACKAGE / "py.typed").exists()
    assert gw_jax.__version__.count(".") == 2
