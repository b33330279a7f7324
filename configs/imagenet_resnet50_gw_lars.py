"""ResNet-50 with Group Whitening for pods: LARS, batches of 4096, 8192, 16384 or 32768 images.

    python train.py --config=configs/imagenet_resnet50_gw_lars.py:16384

Hardware: 32 devices for 4096 up to 256 for 32768. With 128 images per device, BatchNorm's groups stay on one.
Expected: the aim is the 0.7772 of imagenet_resnet50_gw.py. Not measured.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig, NormConfig, OptimizerConfig, ScheduleConfig
from gw_jax.classification.recipes import imagenet_data
from gw_jax.errors import ConfigError

# Batch size: peak learning rate, epochs of warm-up, weight decay. The rates and warm-ups are those of TensorFlow's official
# ResNet-50 (4096) and of Google's for MLPerf (the others), both with BatchNorm: a starting point.
RECIPES = {
    4096: (5.0, 5, 5e-5),
    8192: (10.0, 5, 5e-5),
    16384: (25.0, 5, 5e-5),
    32768: (31.2, 25, 2e-4),
}


def get_config(batch_size: str = "4096") -> ClassificationConfig:
    """The recipe for ``batch_size``, which stands after the colon of ``--config``."""
    if batch_size not in map(str, RECIPES):
        raise ConfigError(
            f"imagenet_resnet50_gw_lars.py has no recipe for a batch of {batch_size!r}; give one of "
            f"{', '.join(map(str, RECIPES))} after the colon."
        )
    learning_rate, warmup_epochs, weight_decay = RECIPES[int(batch_size)]
    return ClassificationConfig(
        seed=1,
        num_epochs=90,
        eval_every_epochs=5,  # an epoch has 312 steps at most, and 39 at least
        label_smoothing=0.1,
        data=imagenet_data(int(batch_size), 2048),
        model=ModelConfig(
            name="resnet50",
            norm="gw",
            norm_options=NormConfig(num_groups=64, num_iterations=5),
            whiten="S1-B2",
            batch_norm_group_size=128,
        ),
        optimizer=OptimizerConfig(
            name="lars",
            learning_rate=learning_rate,
            momentum=0.9,
            weight_decay=weight_decay,
            no_decay=("scale$", "bias$"),
            trust_coefficient=0.001,
        ),
        schedule=ScheduleConfig(name="polynomial", warmup_epochs=warmup_epochs, power=2.0),
    )
