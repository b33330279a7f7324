"""ResNeXt-50 32x4d with IterNorm (running covariance) at S1-B2, 256 channels a group.

    python train.py --config=configs/imagenet_resnext50_iternorm_sigma_df.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not run to the end here.
"""

from gw_jax.train import DataConfig, ModelConfig, NormConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    """The reference makes a norm before the last layer, as for ResNet-50, and forgets to apply it."""
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
            name="resnext50_32x4d",
            norm="iternorm_sigma",
            norm_options=NormConfig(channels_per_group=256, num_iterations=5, group_size=128),
            whiten="S1-B2",
            batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
            last_norm=True,
            apply_last_norm=False,  # True whitens the features, which was meant
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            no_decay=("^last_norm/",),  # without a use; left at their initial values, as in the reference
        ),
        schedule=ScheduleConfig(name="step", step_epochs=30, gamma=0.1),
    )
