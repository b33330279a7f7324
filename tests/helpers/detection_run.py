"""A run of a detector on the miniature of COCO, in one process or in several."""

from flax import nnx

from gw_jax.detection import Sampling, create_detector, save_detector
from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.data.config import SceneConfig
from gw_jax.detection.prepare import main as prepare
from gw_jax.detection.recipes import reference_optimizer, reference_schedule
from gw_jax.models.config import NormConfig
from gw_jax.train import LogConfig
from tests.helpers.coco import write_miniature

NAME = "mini"


def make_config():
    """3 steps, an evaluation after the second one and at the end; one canvas."""
    return DetectionConfig(
        num_classes=81,
        batch_size=4,
        eval_batch_size=4,
        num_steps=3,
        eval_every_steps=2,
        canvases=("96x96",),
        max_objects=8,
        max_edges=16,
        dtype="float32",
        sampling=Sampling(rpn_batch=32, box_batch=16, pre_nms_top_n=40, post_nms_top_n=40, proposals=24),
        data=SceneConfig(name=NAME, min_side=64, max_side=96),
        model=DetectorConfig(
            **{"backbone": "resnet18", "width": 8, "fpn_features": 16, "head_features": 32},
            **{"norm_options": NormConfig(num_groups=8), "mask_head": True},
        ),
        optimizer=reference_optimizer(0.001),
        schedule=reference_schedule(1000, 2000),
        log=LogConfig(every_steps=1, progress_bar=False, tensorboard=False),
    )


def prepare_miniature(directory, num_val=7):
    """Prepares the set in ``directory``."""
    prepare([NAME, *write_miniature(directory / "source", 8, num_val), f"--data_dir={directory / 'data'}"])
    return str(directory / "data")


def write_confident(directory):
    """A random detector that is sure of what it says: one of initial values finds nothing."""
    detector = create_detector(**make_config().model_arguments(), rngs=nnx.Rngs(0))
    logits = detector.box_head.logits.kernel
    logits[...] = logits[...] * 400
    save_detector(directory, detector)
    return str(directory)
