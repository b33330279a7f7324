"""ResNeXt-101 32x8d with GroupNorm, 32 groups, at every norm.

    python train.py --config=configs/imagenet_resnext101_gn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig, NormConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """The authors' script sets the factor of the steps to 0 instead of 0.1, so that nothing is learnt after epoch 30."""
    model = ModelConfig(
        name="resnext101_32x8d",
        norm="gn",
        norm_options=NormConfig(num_groups=32),
        whiten="all",
    )
    return paper_recipe(model)
