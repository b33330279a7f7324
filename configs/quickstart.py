"""A Group Whitening ResNet on 4,000 real MNIST digits that ship in a package.

    python train.py

Hardware: 2 CPU cores. Expected: eval/top1 >= 0.98 over the 1,000 test digits.
"""

from gw_jax.classification import (
    ClassificationConfig,
    DataConfig,
    ModelConfig,
    NormConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config() -> ClassificationConfig:
    """ResNet-18 with a stem for small images, an eighth of the usual width, whitening at S1-B2 in 8 groups."""
    return ClassificationConfig(
        num_epochs=8,
        data=DataConfig(name="mnist5k", batch_size=64, eval_batch_size=200, shift=2),
        model=ModelConfig(
            name="resnet18", norm="gw", norm_options=NormConfig(num_groups=8), whiten="S1-B2", stem="small", width=8
        ),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
    )
