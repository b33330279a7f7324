"""Type checkers on a user's files: precise types where the use is right, an error on each line where it is not."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import get_args

import pytest

from gw_jax.models.arguments import AnyArguments
from gw_jax.models.create_model import create_model
from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS, Placement, ResNetName
from gw_jax.nn.reference_norms import REFERENCE_NORMS, ReferenceNormName

ROOT = pathlib.Path(__file__).parents[1]

GOOD = """\
import functools
from typing import assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import gw_jax
from gw_jax.models import MLP, ResNet

rngs = nnx.Rngs(0)
layer = gw_jax.GroupWhitening(64, num_groups=16, method="zca", implementation="plain", rngs=rngs)
assert_type(layer(jnp.ones((2, 8, 8, 64))), jax.Array)
assert_type(gw_jax.group_whiten(jnp.ones((2, 64)), 4), jax.Array)
model = gw_jax.create_model("resnet50", num_classes=10, norm="gw", whiten="S1-B2", output_stride=16, rngs=rngs)
assert_type(model, ResNet)
images = jnp.ones((2, 64, 64, 3))
assert_type(model(images), jax.Array)
assert_type(model.stages(images), tuple[jax.Array, jax.Array, jax.Array, jax.Array])
assert_type(gw_jax.create_model("mlp", depth=2, rngs=rngs), MLP)
assert_type(gw_jax.create_model("lenet", rngs=rngs)(images), jax.Array)
assert_type(gw_jax.create_model("autoencoder", rngs=rngs).encode(images), jax.Array)
assert_type(gw_jax.create_model(gw_jax.list_models()[0], rngs=rngs)(images), jax.Array)
gw_jax.save_pretrained("somewhere", model)
assert_type(gw_jax.load_pretrained("somewhere")(images), jax.Array)
assert_type(gw_jax.make_norm("gw", 64, rngs=rngs, num_groups=16), gw_jax.GroupWhitening)
assert_type(gw_jax.make_norm("iternorm", 64, rngs=rngs), gw_jax.BatchWhitening)
make = functools.partial(gw_jax.GroupWhitening, num_groups=16, rngs=rngs)
assert_type(gw_jax.swap_norms(model, "stage1", make), list[str])
twin = gw_jax.linen.GroupWhitening(num_groups=16)
assert_type(gw_jax.linen.swap_norms(nn.Sequential([nn.LayerNorm()]), ".*", lambda c: twin), nn.Sequential)
model.eval()
"""

BAD = """\
from flax import nnx

import gw_jax

rngs = nnx.Rngs(0)
gw_jax.create_model("resnet50", whiten="S1-B9", rngs=rngs)
gw_jax.create_model("resnet50", norm="gww", rngs=rngs)
gw_jax.create_model("resnet50", stem="big", rngs=rngs)
gw_jax.create_model("resnet50", output_stride=12, rngs=rngs)
gw_jax.create_model("resnet50")
gw_jax.create_model("mlp", rngs=rngs).stages
gw_jax.GroupWhitening(64, method="cholesky", rngs=rngs)
gw_jax.make_norm("gww", 64, rngs=rngs)
gw_jax.linen.GroupWhitening(implementation="fast")
gw_jax.swap_norms("resnet50", ".*", lambda c: gw_jax.GroupWhitening(c, rngs=rngs))
"""
FIRST_BAD_LINE = 6


def run_mypy(directory):
    """The lines with an error by file, and the output."""
    pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")
    # As after an editable install: errors of the package itself are none of the user's.
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--follow-imports=silent",
        f"--cache-dir={directory / 'cache'}",
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    result = subprocess.run(
        [*command, "good.py", "bad.py"], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1), result.stderr
    found = re.findall(r"^(good|bad)\.py:(\d+): error", result.stdout, re.MULTILINE)
    return {name: {int(line) for file, line in found if file == name} for name in ("good", "bad")}, result.stdout


def run_pyright(directory):
    """The same by pyright, or by its build for pip."""
    program = next((path for name in ("pyright", "basedpyright") if (path := _program(name))), None)
    if program is None:
        pytest.skip("pyright is not installed (extra dev)")
    (directory / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}))
    command = [program, "--outputjson", "--pythonpath", sys.executable, "good.py", "bad.py"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr
    report = json.loads(result.stdout[result.stdout.index("{") :])
    lines = {"good": set(), "bad": set()}
    for entry in report["generalDiagnostics"]:
        if entry["severity"] == "error":
            lines[pathlib.Path(entry["file"]).stem].add(entry["range"]["start"]["line"] + 1)
    return lines, result.stdout


def _program(name):
    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@pytest.mark.slow
@pytest.mark.parametrize("checker", [run_mypy, run_pyright])
def test_a_users_files(checker, tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    lines, output = checker(tmp_path)
    assert not lines["good"], output
    assert lines["bad"] == set(range(FIRST_BAD_LINE, len(BAD.splitlines()) + 1)), output


def test_literals_are_the_names_that_exist():
    assert get_args(ResNetName) == tuple(ARCHITECTURES)
    assert get_args(Placement) == tuple(PLACEMENTS)
    assert get_args(ReferenceNormName) == tuple(REFERENCE_NORMS)


def test_the_typed_arguments_are_those_of_create_model():
    import inspect

    parameters = inspect.signature(create_model).parameters
    assert set(AnyArguments.__annotations__) == set(parameters) - {"name"}
