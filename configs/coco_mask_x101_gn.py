"""Mask R-CNN, ResNeXt-101 32x8d, pyramid, box and mask head with GroupNorm, on COCO.

    python -m gw_jax.detection.prepare coco2017 \
        --train annotations/instances_train2017.json train2017 --eval annotations/instances_val2017.json val2017
    python train.py --config=configs/coco_mask_x101_gn.py --config.init_from=backbones/x101_gn

Hardware: any number of devices that divides 8, such as one host with 8.
Weights: none are published. backbones/x101_gn is an exported run of imagenet_resnext101_gn.py.
Expected: eval/box_ap 0.4218 and eval/mask_ap 0.3754, the authors' results. One run, without a variance; not yet run here.
The values are those of e2e_mask_rcnn_X_101_32x8d_FPN_2Xconv_1Image_1x_GN.yaml.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import mask_rcnn_recipe
from gw_jax.models.config import NormConfig


def get_config() -> DetectionConfig:
    """GroupNorm of 32 groups in backbone, pyramid and heads."""
    model = DetectorConfig(
        backbone="resnext101_32x8d",
        norm="gn",
        norm_options=NormConfig(num_groups=32),
        fpn_norm="gn",
        box_head="4conv1fc",
        box_head_norm="gn",
        mask_head=True,
        mask_head_norm="gn",
    )
    return mask_rcnn_recipe(model)
