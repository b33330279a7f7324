"""A JAX or Flax that is too old, too new, or too old for the kernels."""

import logging
import pathlib
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import pytest

from gw_jax import group_whiten, versions
from gw_jax.ops import kernels
from gw_jax.ops.kernels import placement

TPU = placement.DeviceKind("tpu", "TPU v5 lite")
PYPROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture
def installed(monkeypatch):
    """Sets the versions that seem to be installed; None is a missing package."""

    def pretend(**found):
        monkeypatch.setattr(versions, "installed", found.get)

    return pretend


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"jax": (0, 7, 1), "flax": (0, 12, 0)}, "jax 0.7.1 and flax 0.12.0"),
        ({"jax": (0, 10, 0), "flax": (0, 10, 7)}, "jax 0.10.0 and flax 0.10.7"),
        ({"jax": (0, 4, 38), "flax": None}, r"jax 0.4.38 and flax \(missing\)"),
    ],
)
def test_a_version_that_is_too_old_is_named_with_what_to_do(installed, found, named):
    installed(**found)
    with pytest.raises(ImportError, match=f"needs at least jax 0.7.2 and flax 0.11.2; .* {named}.*pip install -U .*Colab"):
        versions.require_supported()


def test_the_oldest_and_the_newest_versions_are_accepted(installed):
    installed(**versions.OLDEST)
    versions.require_supported()
    installed(**versions.NEWEST_TESTED)
    versions.require_supported()
    assert versions.untested() is None


def test_newer_versions_than_the_tested_ones_are_named(installed):
    installed(jax=(99, 1, 0), flax=versions.NEWEST_TESTED["flax"])
    versions.require_supported()
    assert "jax 99.1.0 (tested: up to" in versions.untested()
    assert "flax" not in versions.untested()


def test_the_floors_are_those_of_the_package():
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    for package, oldest in versions.OLDEST.items():
        assert f"{package}>={versions.dotted(oldest)}" in dependencies


def test_suffixes_of_versions_are_ignored(monkeypatch):
    for text, expected in (("0.7.2", (0, 7, 2)), ("0.12.0.1", (0, 12, 0)), ("0.11.3.dev20260101", (0, 11, 3))):
        monkeypatch.setattr(versions.importlib.metadata, "version", lambda _, text=text: text)
        assert versions.installed("jax") == expected
    monkeypatch.undo()
    assert versions.installed("jax") == jax.__version_info__[:3]
    assert versions.installed("a_package_that_does_not_exist") is None


def test_an_import_fails_at_once_and_does_not_import_the_old_version():
    script = (
        "import importlib.metadata, sys\n"
        "importlib.metadata.version = {'jax': '0.4.30', 'flax': '0.8.5'}.get\n"
        "try:\n    import gw_jax.nn\n"
        "except ImportError as error:\n    print('jax' in sys.modules, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False gw_jax needs at least jax 0.7.2 and flax 0.11.2;")
    assert "this environment has jax 0.4.30 and flax 0.8.5" in result.stdout


def test_there_are_no_kernels_below_the_jax_that_they_were_tested_with(monkeypatch, caplog):
    monkeypatch.setattr(jax, "__version_info__", (0, 7, 2))
    monkeypatch.setattr(jax, "__version__", "0.7.2")
    kernels._log_once.cache_clear()
    reason = "kernels need jax >= 0.10.2, .*; this is jax 0.7.2"
    x = jnp.zeros((8, 8, 8, 128))
    with placement._compiling_for(TPU), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert kernels.choose_kernel(x.shape, x.dtype, 64, 5, 0.0, TPU) is None
            assert "pallas_call" not in str(
                jax.make_jaxpr(lambda x: group_whiten(x, 64, implementation="prefer_kernel"))(x)
            )
        with pytest.raises(ValueError, match=rf'{reason}.* Choose "auto"'):
            group_whiten(x, 64, implementation="kernel")
    (record,) = caplog.records
    assert "kernels need jax >= 0.10.2" in record.getMessage()


def test_there_are_kernels_from_the_tested_jax_on(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", versions.OLDEST_JAX_FOR_KERNELS)
    assert versions.no_kernels_because() is None
    assert kernels.choose_kernel((8, 4, 4, 128), "float32", 64, 5, 0.0, TPU) is not None
