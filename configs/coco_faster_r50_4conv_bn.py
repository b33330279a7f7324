"""Faster R-CNN, ResNet-50 with frozen BatchNorm, pyramid, four convolutions in the box head, on COCO.

    python -m gw_jax.detection.prepare coco2017 \
        --train annotations/instances_train2017.json train2017 --eval annotations/instances_val2017.json val2017
    python -m gw_jax.convert resnet50.pth backbones/r50_bn
    python train.py --config=configs/coco_faster_r50_4conv_bn.py --config.init_from=backbones/r50_bn

Hardware: any number of devices that divides 8, such as one host with 8, of 2 images each. On 16 devices, of one
image each: --config.sampling.pool_images=1 --config.eval_batch_size=16.
Weights: an ImageNet ResNet-50 with BatchNorm, such as torchvision's; the authors do not say which they used.
Expected: eval/box_ap 0.3639, the authors' result. One run, without a variance; not yet run here.
The values are those of e2e_faster_rcnn_R_50_0selfStep_1FPN_2Xconv_1x.yaml.
Its key MODEL.RESNETS.DF, which keeps it from loading, is left out.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import faster_rcnn_recipe


def get_config() -> DetectionConfig:
    """One ReLU after the four convolutions, as in the published code: without a norm they are one linear map before it."""
    model = DetectorConfig(backbone="resnet50", norm="frozen_bn", box_head="4conv1fc")
    return faster_rcnn_recipe(model)
