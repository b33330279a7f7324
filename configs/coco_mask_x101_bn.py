"""Mask R-CNN, ResNeXt-101 32x8d with frozen BatchNorm, pyramid, four convolutions in the box head, on COCO.

    python -m gw_jax.detection.prepare coco2017 \
        --train annotations/instances_train2017.json train2017 --eval annotations/instances_val2017.json val2017
    python -m gw_jax.detection.convert X-101-32x8d.pkl backbones/x101_bn
    python train.py --config=configs/coco_mask_x101_bn.py --config.init_from=backbones/x101_bn

Hardware: any number of devices that divides 8, such as one host with 8.
Weights: Caffe2's ResNeXt-101 32x8d, for BGR pixels with standard deviation 1.
Expected: eval/box_ap 0.4224 and eval/mask_ap 0.3753, the authors' results. One run, without a variance; not yet run here.
Its weights are of another training than those of coco_mask_x101_gn.py and coco_mask_x101_gw.py.
The values are those of e2e_mask_rcnn_X_101_32x8d_FPN_2Xconv_1Image_1x.yaml.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import mask_rcnn_recipe


def get_config() -> DetectionConfig:
    """No norm in pyramid and heads. BGR pixels belong to Caffe2's weights; PyTorch's need config.pixels=rgb."""
    model = DetectorConfig(backbone="resnext101_32x8d", norm="frozen_bn", box_head="4conv1fc", mask_head=True)
    return mask_rcnn_recipe(model, pixels="bgr")
