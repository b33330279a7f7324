import importlib.util
import pathlib

import jax
import pytest

_spec = importlib.util.spec_from_file_location("reference", pathlib.Path(__file__).with_name("reference.py"))
_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reference)


@pytest.fixture(autouse=True)
def strict():
    """A silent change of type or a broadcast over axes of other number is an error, where it happens."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def quick(quick_compilation):
    """Compiles without most optimisations."""
    with quick_compilation():
        yield


@pytest.fixture(scope="session")
def reference():
    """The module that makes the golden networks' files."""
    return _reference


@pytest.fixture(scope="session")
def torch():
    """PyTorch, or a reason to skip."""
    return pytest.importorskip("torch", reason="PyTorch, an optional extra that brings gigabytes, is not installed")
