"""A tiny detector on a tiny set of two classes over two canvases, a run of seconds."""

from gw_jax.detection import Sampling
from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.data.config import SceneConfig
from gw_jax.detection.prepare import main
from gw_jax.detection.recipes import reference_optimizer, reference_schedule
from gw_jax.models.config import NormConfig
from gw_jax.train import LogConfig
from tests.helpers import coco


def prepare(directory, monkeypatch):
    """Prepares the set "tiny" in ``directory / "sets"``, whose path it returns."""
    monkeypatch.setattr(coco, "CATEGORIES", coco.CATEGORIES[:2])
    arguments = coco.write_miniature(directory / "files", 12, 5)
    main(["tiny", *arguments, f"--data_dir={directory / 'sets'}", "--keep_empty"])
    return str(directory / "sets")


def make_config() -> DetectionConfig:
    return DetectionConfig(
        num_classes=3,
        batch_size=4,
        eval_batch_size=4,
        seed=1,
        num_steps=4,
        eval_every_steps=4,
        canvases=("64x96", "96x64"),
        max_objects=4,
        max_edges=16,
        sampling=Sampling(rpn_batch=32, box_batch=16, pre_nms_top_n=40, post_nms_top_n=40, proposals=24),
        data=SceneConfig(name="tiny", min_side=64, max_side=96),
        model=DetectorConfig(
            backbone="resnet18",
            norm="gn",
            width=8,
            fpn_features=16,
            head_features=32,
            norm_options=NormConfig(num_groups=8),
        ),
        optimizer=reference_optimizer(0.01),
        schedule=reference_schedule(1000, 2000),
        log=LogConfig(every_steps=1, progress_bar=False, plot=False, tensorboard=False),
    )
