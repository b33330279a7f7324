import shutil

import gw_jax.train.setup
import numpy as np
import pytest

from gw_jax.data import Dataset, DatasetSpec
from gw_jax.models.resnet import ARCHITECTURES, Architecture
from gw_jax.train import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    NormConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


class Shapes:
    """Noisy images of four kinds, made on access: bright left, right, top or bottom half."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        label = int(rng.integers(4))
        image = rng.integers(0, 100, (16, 16, 1), dtype=np.uint8)
        halves = (np.s_[:, :8], np.s_[:, 8:], np.s_[:8], np.s_[8:])
        image[halves[label]] += 120
        return {"image": image, "label": label}


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


@pytest.fixture(scope="session", autouse=True)
def resnet6():
    """A network of two blocks, which compiles in a fraction of the time of the smallest one that is published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "resnet6", Architecture(False, (1, 1, 0, 0)))
        yield


SPEC = DatasetSpec("shapes", 4, (16, 16, 1), "train", "test", 160, 50, (0.4,), (0.3,))


def make_shapes():
    return Dataset(SPEC, Shapes(SPEC.num_train, 0), Shapes(SPEC.num_eval, 1))


def make_config():
    return TrainConfig(
        num_epochs=3,
        data=DataConfig(name="shapes", batch_size=16, eval_batch_size=24, shift=1, flip=False),
        model=ModelConfig(name="resnet6", norm="gw", norm_options=NormConfig(num_groups=4), width=4),
        optimizer=OptimizerConfig(learning_rate=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
        checkpoint=CheckpointConfig(),
        log=LogConfig(every_steps=4, progress_bar=False),
    )


def set_field(config, path, value):
    """Sets a field by the name that the command line has for it."""
    *groups, name = path.split(".")
    for group in groups:
        config = getattr(config, group)
    setattr(config, name, value)


@pytest.fixture(name="set_field")
def set_field_fixture():
    """The function of that name, for tests, which cannot import this file."""
    return set_field


@pytest.fixture
def shapes(monkeypatch):
    """The data set "shapes", 160 examples to train on and 50 to evaluate on, in place of TFDS."""
    dataset = make_shapes()
    monkeypatch.setattr(gw_jax.train.setup, "open_dataset", lambda name, data_dir, **_: dataset)
    return dataset


@pytest.fixture
def config():
    """A run of 3 epochs of 10 steps that takes seconds."""
    return make_config()


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, quick_compilation):
    """A work directory in which the run of ``config`` went to its end, undisturbed, and its outcome."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch.setattr(gw_jax.train.setup, "open_dataset", lambda name, data_dir, **_: make_shapes())
        return workdir, gw_jax.train.run(make_config(), workdir)


@pytest.fixture
def finished(whole_run, shapes, tmp_path):
    """A copy of the work directory of ``whole_run`` for one test, and the outcome."""
    shutil.copytree(whole_run[0], tmp_path / "whole")
    return tmp_path / "whole", whole_run[1]
