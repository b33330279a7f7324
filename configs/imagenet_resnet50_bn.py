"""ResNet-50 with BatchNorm, the baseline of imagenet_resnet50_gw.py.

    python train.py --config=configs/imagenet_resnet50_bn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7623, the authors' result. Not run to the end here.
"""

from gw_jax.train import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    """No whitening; all else as with it."""
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
            norm="bn",
            whiten="none",  # BatchNorm everywhere
            batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
        ),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="step", step_epochs=30, gamma=0.1),
    )
