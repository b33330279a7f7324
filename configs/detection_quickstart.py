"""A small Mask R-CNN with Group Whitening, trained from scratch on digits that are pasted on photographs.

    python train.py --config=configs/detection_quickstart.py

Nothing is downloaded: digits and photographs ship in packages, and the set, a composite, is prepared on first use.
Hardware: 2 CPU cores, 9 minutes. Expected: eval/box_ap 0.55 to 0.56 and eval/mask_ap 0.36, measured with seeds 0 to 2.
"""

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.data.config import SceneConfig
from gw_jax.detection.options import Sampling
from gw_jax.models.config import NormConfig
from gw_jax.train.config import CheckpointConfig, OptimizerConfig, ScheduleConfig


def get_config() -> DetectionConfig:
    """A quarter of a ResNet-18's width, whitening in its stem and its 3x3 convolutions, and samples for 5 objects.

    Nothing is frozen, and AdamW replaces SGD, because the backbone has no weights of another training. Images are enlarged,
    to one of several sizes in training, because 1,000 scenes are few. A mirrored digit is none.
    """
    return DetectionConfig(
        num_classes=11,
        num_steps=1500,
        batch_size=8,
        eval_batch_size=25,
        eval_every_steps=750,
        canvases=("160x160",),
        max_objects=5,
        max_edges=416,
        data=SceneConfig(name="digit_scenes", min_side=120, max_side=160, train_min_sides=(84, 96, 108, 120), flip=False),
        sampling=Sampling(rpn_batch=64, box_batch=32, pre_nms_top_n=200, post_nms_top_n=100, proposals=100),
        model=DetectorConfig(
            backbone="resnet18",
            norm="gw",
            norm_options=NormConfig(num_groups=16),
            mask_head=True,
            frozen_bn_epsilon=1e-5,
            width=16,
            fpn_features=32,
            head_features=128,
            frozen_stages=0,
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.05, no_decay=("scale$", "bias$")),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        checkpoint=CheckpointConfig(evaluate="last"),
    )
