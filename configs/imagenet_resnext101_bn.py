"""ResNeXt-101 32x8d with BatchNorm, the baseline of imagenet_resnext101_gw.py.

    python train.py --config=configs/imagenet_resnext101_bn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7929, the authors' result. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """No whitening; all else as with it."""
    model = ModelConfig(
        name="resnext101_32x8d",
        norm="bn",
        whiten="none",  # BatchNorm everywhere
        batch_norm_group_size=64,  # images on each of the authors' 4 GPUs
    )
    return paper_recipe(model)
