import jax
import pytest

from gw_jax.ops.kernels import check_cache
from tests.helpers import pretend


@pytest.fixture(autouse=True)
def strict():
    """A silent change of type or a broadcast over axes of other number is an error, where it happens."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Makes this machine one with a GPU whose kernel is wrong as the arguments say, and an empty cache."""
    monkeypatch.setenv(check_cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    check_cache._warn.cache_clear()
    # With several, the sharding of a batch is known in the trainer only.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return lambda **wrong: pretend.install(monkeypatch.setattr, **wrong)
