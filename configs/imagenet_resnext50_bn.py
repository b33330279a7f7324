"""ResNeXt-50 32x4d with BatchNorm, the baseline of imagenet_resnext50_gw.py.

    python train.py --config=configs/imagenet_resnext50_bn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7701, the authors' result. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """No whitening; all else as with it."""
    model = ModelConfig(
        name="resnext50_32x4d",
        norm="bn",
        whiten="none",  # BatchNorm everywhere
        batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
    )
    return paper_recipe(model)
