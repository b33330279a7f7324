"""Faster R-CNN, ResNet-50 with frozen BatchNorm, pyramid, two linear layers in the box head, on COCO.

    python -m gw_jax.detection.prepare coco2017 \
        --train annotations/instances_train2017.json train2017 --eval annotations/instances_val2017.json val2017
    python -m gw_jax.convert resnet50.pth backbones/r50_bn
    python train.py --config=configs/coco_faster_r50_bn.py --config.init_from=backbones/r50_bn

Hardware: any number of devices that divides 8, such as one host with 8, of 2 images each. On 16 devices, of one
image each: --config.sampling.pool_images=1 --config.eval_batch_size=16.
Weights: an ImageNet ResNet-50 with BatchNorm, such as torchvision's; the authors do not say which they used.
Expected: eval/box_ap 0.3631, the authors' result. One run, without a variance; not yet run here.
The values are those of e2e_faster_rcnn_R_50_0selfStep_1FPN_2fc_1x.yaml.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import faster_rcnn_recipe


def get_config() -> DetectionConfig:
    """Frozen BatchNorm in the backbone, no norm elsewhere."""
    model = DetectorConfig(backbone="resnet50", norm="frozen_bn", box_head="2fc")
    return faster_rcnn_recipe(model)
