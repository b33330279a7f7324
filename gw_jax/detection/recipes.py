"""The reference's optimiser and schedule for detectors, and the common parts of its recipes for COCO."""

from typing import Any

from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.data.config import SceneConfig
from gw_jax.detection.options import Sampling
from gw_jax.train.config import CheckpointConfig, OptimizerConfig, ScheduleConfig

# What the reference does not train: FREEZE_CONV_BODY_AT 2. Its frozen BatchNorms have no parameters here.
FROZEN = ("^backbone/stem_", "^backbone/stage1/")
_WARMUP_STEPS = 500


def reference_optimizer(learning_rate: float) -> OptimizerConfig:
    """SGD with momentum 0.9 and weight decay 1e-4; biases have twice the learning rate and no decay.

    Scales of norms decay like weights. The stem and the first stage are frozen.

    Source: the solver of the reference's nine configurations.

    Example:
        >>> from gw_jax.detection.recipes import reference_optimizer
        >>> reference_optimizer(0.02).learning_rate_factors
        ('bias$=2.0',)
    """
    return OptimizerConfig(
        name="sgd",
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=1e-4,
        no_decay=("bias$",),
        learning_rate_factors=("bias$=2.0",),
        frozen=FROZEN,
    )


def reference_schedule(*milestones: int) -> ScheduleConfig:
    """A tenth of the learning rate from each of the iterations ``milestones`` on, after a warm-up of 500 iterations.

    The reference counts iterations from 1, and iteration ``k < 500`` has ``1/3 + 2/3 k/500`` of the learning rate. Here
    schedules count the steps that are done, ``k - 1``.

    Example:
        >>> from gw_jax.detection.recipes import reference_schedule
        >>> reference_schedule(60_000, 80_000).milestone_steps
        (59999, 79999)
    """
    return ScheduleConfig(
        name="step",
        gamma=0.1,
        milestone_steps=tuple(step - 1 for step in milestones),
        warmup_steps=_WARMUP_STEPS - 1,
        warmup_from=1 / 3 + 2 / 3 / _WARMUP_STEPS,
    )


def faster_rcnn_recipe(model: DetectorConfig) -> DetectionConfig:
    """The reference's training of a Faster R-CNN with a ResNet-50 on COCO: 90,000 iterations of batches of 16.

    The learning rate falls from 0.02 at iterations 60,000 and 80,000. The reference trains 2 images on each of 8 GPUs, and
    the best 2,000 proposals of both are the proposals of a GPU.

    Source: ``e2e_faster_rcnn_R_50_*.yaml`` and their scripts.

    Example:
        >>> from gw_jax.detection.config import DetectorConfig
        >>> from gw_jax.detection.recipes import faster_rcnn_recipe
        >>> faster_rcnn_recipe(DetectorConfig(norm="frozen_bn")).batch_size
        16
    """
    return DetectionConfig(
        **_on_coco(num_steps=90_000),
        batch_size=16,
        reference_batch_size=16,
        sampling=Sampling(pool_images=2),
        model=model,
        optimizer=reference_optimizer(0.02),
        schedule=reference_schedule(60_000, 80_000),
    )


def mask_rcnn_recipe(model: DetectorConfig, *, pixels: str = "rgb") -> DetectionConfig:
    """The reference's training of a Mask R-CNN with a ResNeXt-101 on COCO: 180,000 iterations of batches of 8.

    The learning rate falls from 0.01 at iterations 120,000 and 160,000. The reference trains one image, of 1,000
    proposals, on each of 8 GPUs.

    Args:
        model: the network.
        pixels: "bgr" for weights of Caffe2.

    Source: ``e2e_mask_rcnn_X_101_32x8d_FPN_2Xconv_1Image_*.yaml`` and their scripts.

    Example:
        >>> from gw_jax.detection.config import DetectorConfig
        >>> from gw_jax.detection.recipes import mask_rcnn_recipe
        >>> mask_rcnn_recipe(DetectorConfig(mask_head=True)).optimizer.learning_rate
        0.01
    """
    return DetectionConfig(
        **_on_coco(num_steps=180_000),
        batch_size=8,
        reference_batch_size=8,
        pixels=pixels,
        sampling=Sampling(pool_images=1),
        model=model,
        optimizer=reference_optimizer(0.01),
        schedule=reference_schedule(120_000, 160_000),
    )


def _on_coco(num_steps: int) -> dict[str, Any]:
    """The fields that all recipes share.

    The reference saves every 2,500 iterations and tests the last model only. Here a ninth of the run lies between two
    evaluations, so that a run that fails is seen; the last one is still what counts.
    """
    return {
        "num_classes": 81,
        "eval_batch_size": 8,
        "data": SceneConfig(name="coco2017", min_side=800, max_side=1333, flip=True, num_workers=8),
        "num_steps": num_steps,
        "eval_every_steps": num_steps // 9,
        "checkpoint": CheckpointConfig(every_steps=2_500, evaluate="last"),
    }
