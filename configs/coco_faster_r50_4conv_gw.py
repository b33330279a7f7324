"""Faster R-CNN, ResNet-50 and four convolutions in the box head with Group Whitening, pyramid with GroupNorm, on COCO.

    python -m gw_jax.detection.prepare coco2017 \
        --train annotations/instances_train2017.json train2017 --eval annotations/instances_val2017.json val2017
    python -m gw_jax.convert resnet50_gw.pth backbones/r50_gw
    python train.py --config=configs/coco_faster_r50_4conv_gw.py --config.init_from=backbones/r50_gw

Hardware: any number of devices that divides 8, such as one host with 8, of 2 images each. On 16 devices, of one
image each: --config.sampling.pool_images=1 --config.eval_batch_size=16.
Weights: the authors' ImageNet ResNet-50 with Group Whitening, or an exported run of imagenet_resnet50_gw.py.
Expected: eval/box_ap 0.3960, the authors' result. One run, without a variance; not yet run here. It differs from
coco_faster_r50_4conv_bn.py in the backbone, in the box head and by the pyramid's norm.
The values are those of e2e_faster_rcnn_R_50_0selfStep_1FPN_2Xconv_1x_GW.yaml.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import faster_rcnn_recipe
from gw_jax.models.config import NormConfig


def get_config() -> DetectionConfig:
    """The published file has GroupNorm in the pyramid, not Group Whitening."""
    model = DetectorConfig(
        backbone="resnet50",
        norm="gw",
        norm_options=NormConfig(num_groups=64, num_iterations=5),
        fpn_norm="gn",
        box_head="4conv1fc",
        box_head_norm="gw",
    )
    return faster_rcnn_recipe(model)
