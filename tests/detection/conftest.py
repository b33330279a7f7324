import jax
import pytest


@pytest.fixture
def strict():
    """A silent change of type or a broadcast over axes of other number is an error, where it happens."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def quick(quick_compilation):
    """For programs whose time is mostly compilation."""
    with quick_compilation():
        yield
