from collections import OrderedDict

import jax
import pytest

import tests.helpers.reference


@pytest.fixture(autouse=True)
def strict():
    """A silent change of type or a broadcast over axes of other number is an error, where it happens."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def reference():
    """The module that makes the golden networks' files."""
    return tests.helpers.reference


@pytest.fixture(scope="session")
def torch():
    """PyTorch, or a reason to skip."""
    return pytest.importorskip("torch", reason="PyTorch, an optional extra that brings gigabytes, is not installed")


@pytest.fixture
def tensors(reference, torch):
    """The state dict of an MLP with one hidden layer and group whitening, as tensors."""
    state = reference.make_state(reference.MLP)
    return OrderedDict((key, torch.from_numpy(value)) for key, value in state.items())
