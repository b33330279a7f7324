"""All tests see 8 pretended CPU devices, so that sharding is tested everywhere.

Compiled programs are shared by the test processes, and by those that the tests start, for the length of one run.
"""

import atexit
import contextlib
import os
import shutil
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="gw_jax_tests_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

if "GW_JAX_CACHE_DIR" not in os.environ:
    # Tests neither read nor leave answers of kernel checks in the user's directory.
    _answers = tempfile.mkdtemp(prefix="gw_jax_answers_")
    atexit.register(shutil.rmtree, _answers, ignore_errors=True)
    os.environ["GW_JAX_CACHE_DIR"] = _answers

# Triton reads it when it is imported. Without a GPU its kernels are interpreted.
if "cuda" not in os.environ.get("JAX_PLATFORMS", "cpu"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import jax

# JAX_PLATFORMS=cuda runs the tests that need one device on a GPU.
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402

from gw_jax.versions import enable_x64  # noqa: E402


def pytest_collection_modifyitems(items):
    """Long tests first: the last one to end would leave the other process idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def float64():
    """Double precision, in which the golden files and the truths of the numerical tests are written."""
    with enable_x64():
        yield


@contextlib.contextmanager
def _quick_compilation():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def quick_compilation():
    """A context that compiles without most optimisations, in two thirds of the time, where speed is all they change."""
    return _quick_compilation


@pytest.fixture
def quick(quick_compilation):
    """Compiles a test's programs without most optimisations, where its time is mostly compilation."""
    with quick_compilation():
        yield


@pytest.fixture
def strict():
    """A silent change of type or a broadcast over axes of other number is an error, where it happens."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A directory in which the digits are prepared."""
    from gw_jax.data.datasets import open_dataset

    directory = str(tmp_path_factory.mktemp("tfds"))
    open_dataset("mnist5k", directory)
    return directory
