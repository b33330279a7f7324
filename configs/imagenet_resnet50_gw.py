"""ResNet-50 with Group Whitening at S1-B2, 64 groups, 5 Newton iterations, trained as in the paper.

    python train.py --config=configs/imagenet_resnet50_gw.py

Hardware: any number of devices that divides 256, such as one host with 8.
Expected: eval/top1 0.7772, the authors' result; 0.7623 with BatchNorm (imagenet_resnet50_bn.py). Not yet run in full.
"""

from gw_jax.classification import ClassificationConfig, ModelConfig, NormConfig
from gw_jax.classification.recipes import paper_recipe


def get_config() -> ClassificationConfig:
    """Whitening after the stem and after the 3x3 convolution of every block, BatchNorm elsewhere."""
    model = ModelConfig(
        name="resnet50",
        norm="gw",
        norm_options=NormConfig(num_groups=64, num_iterations=5),
        whiten="S1-B2",
        batch_norm_group_size=128,  # images on each of the authors' 2 GPUs
    )
    return paper_recipe(model)
