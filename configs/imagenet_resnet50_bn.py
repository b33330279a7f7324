"""ResNet-50 with BatchNorm, the baseline of imagenet_resnet50_gw.py.

    python train.py --config=configs/imagenet_resnet50_bn.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7623, the authors' result. Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """No whitening; all else as with it."""
    model = ModelConfig(
        name="resnet50",
        norm="bn",
        whiten="none",  # BatchNorm everywhere
        batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
    )
    return paper_recipe(model)
