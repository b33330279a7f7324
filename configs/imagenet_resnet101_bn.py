"""ResNet-101 with BatchNorm, the baseline of imagenet_resnet101_gw.py.

    python train.py --config=configs/imagenet_resnet101_bn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7769, the authors' result. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """No whitening; all else as with it."""
    model = ModelConfig(
        name="resnet101",
        norm="bn",
        whiten="none",  # BatchNorm everywhere
        batch_norm_group_size=128,  # as on each of the 2 GPUs of the authors' ResNet-50
    )
    return paper_recipe(model)
