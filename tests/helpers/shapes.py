"""A small classification run for tests: noisy images of four kinds, and a ResNet of two blocks."""

import dataclasses

import numpy as np

from gw_jax.classification import (
    ClassificationConfig,
    ClassificationTask,
    DataConfig,
    LogConfig,
    ModelConfig,
    NormConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from gw_jax.config_checks import choice
from gw_jax.data import Dataset, DatasetSpec
from gw_jax.models.config import CLASSIFIERS
from gw_jax.models.resnet import ARCHITECTURES, Architecture

SPEC = DatasetSpec("shapes", 4, (16, 16, 1), "train", "test", 160, 50, (0.4,), (0.3,))


class Shapes:
    """Images made on access: bright left, right, top or bottom half."""

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


def make_shapes():
    return Dataset(SPEC, Shapes(SPEC.num_train, 0), Shapes(SPEC.num_eval, 1))


def register_resnet6(patch):
    """A network of two blocks, which compiles in a fraction of the time of the smallest published one."""
    patch.setitem(ARCHITECTURES, "resnet6", Architecture(False, (1, 1, 0, 0)))


@dataclasses.dataclass(slots=True, kw_only=True)
class ShapesModelConfig(ModelConfig):
    """Accepts one more network."""

    name: str = choice("resnet6", (*CLASSIFIERS, "resnet6"))


@dataclasses.dataclass(slots=True, kw_only=True)
class ShapesConfig(ClassificationConfig):
    """Classifies the shapes."""

    model: ShapesModelConfig = dataclasses.field(default_factory=ShapesModelConfig)

    def make_task(self):
        return ClassificationTask(self, make_shapes())


def make_config():
    """A run of 3 epochs of 10 steps that takes seconds."""
    return ShapesConfig(
        num_epochs=3,
        data=DataConfig(name="shapes", batch_size=16, eval_batch_size=24, shift=1, flip=False),
        model=ShapesModelConfig(norm="gw", norm_options=NormConfig(num_groups=4), width=4),
        optimizer=OptimizerConfig(learning_rate=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
        log=LogConfig(every_steps=4, progress_bar=False, tensorboard=False, plot=False),
    )
