"""ResNet-50 with IterNorm (running covariance) at S1-B2, 256 channels per group, and on the features.

    python train.py --config=configs/imagenet_resnet50_iternorm_sigma_df.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: see the paper's table; the authors' code gives no number. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig, NormConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """The features before the last layer are whitened, too."""
    model = ModelConfig(
        name="resnet50",
        norm="iternorm_sigma",
        norm_options=NormConfig(channels_per_group=256, num_iterations=5, group_size=128),
        whiten="S1-B2",
        batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
        last_norm=True,
    )
    return paper_recipe(model)
