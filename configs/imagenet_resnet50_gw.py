"""ResNet-50 with Group Whitening at S1-B2, 64 groups, 5 Newton iterations, trained as in the paper.

    python train.py --config=configs/imagenet_resnet50_gw.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7772, the authors' result; 0.7623 with BatchNorm (imagenet_resnet50_bn.py). Not run to the end here.
"""

from gw_jax.train import DataConfig, ModelConfig, NormConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> TrainConfig:
    """Whitening after the stem and after the 3x3 convolution of every block, BatchNorm elsewhere."""
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
            norm="gw",
            norm_options=NormConfig(num_groups=64, num_iterations=5),
            whiten="S1-B2",
            batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
        ),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="step", step_epochs=30, gamma=0.1),
    )
