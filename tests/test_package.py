"""What users install: the files of the wheel and of the source distribution, and the extras."""

import importlib.metadata
import pathlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {str(path.relative_to(ROOT)) for path in (ROOT / "gw_jax").rglob("*.py")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory of a wheel and a source distribution."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(directory)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return directory


def test_the_wheel_holds_the_package_its_types_and_its_licence(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    outside = [name for name in names if not name.startswith("gw_jax/")]
    assert {name for name in names if name.endswith(".py")} == MODULES
    assert "gw_jax/py.typed" in names
    assert all(".dist-info/" in name for name in outside)
    assert [name for name in outside if name.endswith("/licenses/LICENSE")]


def test_the_source_distribution_builds_without_the_repository(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    assert names >= MODULES
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "gw_jax/py.typed"} <= names
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/", "docs/", "colab/"))}


def test_the_base_needs_jax_flax_and_safetensors_only():
    required = map(Requirement, PROJECT["dependencies"])
    assert {requirement.name for requirement in required} == {"jax", "flax", "safetensors"}


def test_no_extra_bounds_jax_or_flax_from_above():
    """pip would replace those of a runtime, and leave the plugin of its accelerator behind."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, lines):
        if requirement.name in ("jax", "jaxlib", "flax", "numpy"):
            assert all(bound.operator == ">=" for bound in requirement.specifier), requirement


def test_every_pip_finds_the_extras():
    """An extra with an underscore is one with a hyphen in the metadata, where pip 23 finds none, warns and goes on."""
    assert not [name for name in PROJECT["optional-dependencies"] if name != canonicalize_name(name)]


def test_the_constraints_of_colab_are_allowed():
    lines = (ROOT / "tests" / "constraints" / "colab.txt").read_text().splitlines()
    colab = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {"jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "grain"} <= set(colab)
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["examples"], *extras["hub"], *extras["serving"]]
    refused = [line for line in lines if not Requirement(line).specifier.contains(colab.get(Requirement(line).name, "99"))]
    assert not [line for line in refused if Requirement(line).name in colab]


def test_the_version_is_that_of_the_package():
    import gw_jax

    try:
        installed = importlib.metadata.version("gw_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gw_jax is not installed, only on the path")
    assert installed == gw_jax.__version__
