import pytest


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield
