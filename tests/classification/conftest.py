import shutil

import pytest

from gw_jax.train import run
from tests.helpers import shapes
from tests.helpers.runs import set_field


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


@pytest.fixture(scope="session", autouse=True)
def resnet6():
    with pytest.MonkeyPatch.context() as patch:
        shapes.register_resnet6(patch)
        yield


@pytest.fixture
def config():
    """A run of 3 epochs of 10 steps on 160 images, with 50 to evaluate on."""
    return shapes.make_config()


@pytest.fixture(name="set_field")
def set_field_fixture():
    return set_field


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, quick_compilation, resnet6):
    """A work directory in which the run of ``config`` went to its end, undisturbed, and its result."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    with quick_compilation():
        return workdir, run(shapes.make_config(), workdir)


@pytest.fixture
def finished(whole_run, tmp_path):
    """A copy of the work directory of ``whole_run`` for one test, and the result."""
    shutil.copytree(whole_run[0], tmp_path / "whole")
    return tmp_path / "whole", whole_run[1]
