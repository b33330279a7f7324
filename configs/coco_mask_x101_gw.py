"""Mask R-CNN, ResNeXt-101 32x8d, pyramid, box and mask head with Group Whitening, on COCO.

    python -m gw_jax.detection.prepare coco2017 \
        --train annotations/instances_train2017.json train2017 --eval annotations/instances_val2017.json val2017
    python -m gw_jax.convert resnext101_gw.pth backbones/x101_gw
    python train.py --config=configs/coco_mask_x101_gw.py --config.init_from=backbones/x101_gw

Hardware: any number of devices that divides 8, such as one host with 8.
Weights: the authors' ImageNet ResNeXt-101 with Group Whitening, or an exported run of imagenet_resnext101_gw.py.
Expected: eval/box_ap 0.4441 and eval/mask_ap 0.3917, the authors' results. One run, without a variance; not yet run here.
The values are those of e2e_mask_rcnn_X_101_32x8d_FPN_2Xconv_1Image_1x_GW.yaml.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import mask_rcnn_recipe
from gw_jax.models.config import NormConfig


def get_config() -> DetectionConfig:
    """Whitening of 64 groups in the backbone's stem and 3x3 convolutions, in the pyramid and in both heads."""
    model = DetectorConfig(
        backbone="resnext101_32x8d",
        norm="gw",
        norm_options=NormConfig(num_groups=64, num_iterations=5),
        fpn_norm="gw",
        box_head="4conv1fc",
        box_head_norm="gw",
        mask_head=True,
        mask_head_norm="gw",
    )
    return mask_rcnn_recipe(model)
