"""ResNet-50 with IterNorm (running covariance) at S1-B2, 256 channels a group, and on the features.

    python train.py --config=configs/imagenet_resnet50_iternorm_sigma_df.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not run to the end here.
"""

from gw_jax.train import DataConfig, ModelConfig, NormConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    """The features before the last layer are whitened, too."""
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
            name="resnet50",
            norm="iternorm_sigma",
            norm_options=NormConfig(channels_per_group=256, num_iterations=5, group_size=128),
            whiten="S1-B2",
            batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
            last_norm=True,
        ),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="step", step_epochs=30, gamma=0.1),
    )
