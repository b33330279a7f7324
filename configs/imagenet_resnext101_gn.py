"""ResNeXt-101 32x8d with GroupNorm, 32 groups, at every norm.

    python train.py --config=configs/imagenet_resnext101_gn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not run to the end here.
"""

from gw_jax.train import DataConfig, ModelConfig, NormConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    """The authors' script sets the factor of the steps to 0 instead of 0.1, so that nothing is learnt after epoch 30."""
    return TrainConfig(
        seed=1,
        num_epochs=100,
        data=DataConfig(
            name="imagenet2012",
            batch_size=256,
            eval_batch_size=256,
            image_size=224,
            crop=True,
            eval_resize=256,
            flip=True,
            num_workers=8,
        ),
        model=ModelConfig(
            name="resnext101_32x8d",
            norm="gn",
            norm_options=NormConfig(num_groups=32),
            whiten="all",
        ),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="step", step_epochs=30, gamma=0.1),
    )
