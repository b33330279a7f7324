"""ResNeXt-101 32x8d with IterNorm (running covariance) at S1-B2, 256 channels per group.

    python train.py --config=configs/imagenet_resnext101_iternorm_sigma_df.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig, NormConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """The reference makes a norm before the last layer, as for ResNet-50, and does not apply it."""
    model = ModelConfig(
        name="resnext101_32x8d",
        norm="iternorm_sigma",
        norm_options=NormConfig(channels_per_group=256, num_iterations=5, group_size=64),
        whiten="S1-B2",
        batch_norm_group_size=64,  # images on each of the authors' 4 GPUs
        last_norm=True,
        apply_last_norm=False,  # True whitens the features, which was meant
    )
    # Its parameters are unused and keep their initial values, as in the reference.
    return paper_recipe(model, no_decay=("^last_norm/",))
