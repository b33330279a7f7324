import jax
import pytest


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """The operations are tested as users compile them, in tests/ops; here it is about the layers around them."""
    with quick_compilation():
        yield


@pytest.fixture(autouse=True)
def strict():
    """A silent change of type or a broadcast over axes of other number is an error, where it happens."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
