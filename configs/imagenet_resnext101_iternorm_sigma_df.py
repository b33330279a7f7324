"""ResNeXt-101 32x8d with IterNorm (running covariance) at S1-B2, 256 channels per group.

    python train.py --config=configs/imagenet_resnext101_iternorm_sigma_df.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig
from gw_jax.classification.recipes import resnext_iternorm_recipe


def get_config() -> ClassificationConfig:
    """Statistics are those of the 64 images on each of the authors' 4 GPUs."""
    return resnext_iternorm_recipe("resnext101_32x8d", group_size=64)
