"""Detectors from the checkpoints of a run, without its data."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gw_jax.detection.config import DetectionConfig
from gw_jax.detection.data.scenes import open_scenes
from gw_jax.detection.description import default_categories, entries
from gw_jax.detection.detector import Detector, create_detector
from gw_jax.detection.pixels import PIXELS
from gw_jax.detection.task import DetectionTask
from gw_jax.errors import CheckpointError, UserError
from gw_jax.train.checkpoint import Checkpoints
from gw_jax.train.config_fields import flatten, set_field
from gw_jax.train.mesh import make_mesh, state_shardings
from gw_jax.train.optimizer import make_optimizer
from gw_jax.train.state import state_initializer
from gw_jax.train.workdir import CONFIG_FILE, stored_config


def is_run(directory: pathlib.Path) -> bool:
    """Whether ``directory`` is the work directory of a run."""
    try:
        return stored_config(directory) is not None
    except UserError:
        return False


def load_run(workdir: pathlib.Path, dtype: Any = None) -> tuple[Detector, dict[str, Any], int]:
    """The detector of the best checkpoint of a run, or of the last one if ``config.checkpoint.evaluate`` says so.

    Args:
        workdir: the work directory; nothing is written.
        dtype: type of the activations.

    Returns:
        The detector in evaluation mode, the content of the ``config.json`` that its export would have, and the step.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it is none of a detector.
    """
    config = _config_of(workdir)
    arguments = config.model_arguments()
    param_dtype = jnp.float64 if config.dtype == "float64" else jnp.float32

    def make_model(rngs: nnx.Rngs) -> Detector:
        return create_detector(**arguments, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    # The state of an optimiser has the same arrays under every schedule.
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
    graphdef, _, abstract = state_initializer(make_model, config.seed, optimizer, with_ema=config.ema_decay > 0)
    shardings = state_shardings(make_mesh(jax.devices()[:1]), abstract)
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    checkpoints = Checkpoints(workdir, config.checkpoint, DetectionTask.best_metric, read_only=True)
    try:
        step = checkpoints.best_step() if config.checkpoint.evaluate == "best" else checkpoints.last_step()
        if step is None:
            raise CheckpointError(f"{workdir} holds no checkpoint yet; train first.")
        state, _ = checkpoints.restore(step, like)
    finally:
        checkpoints.close()
    detector: Detector = nnx.merge(graphdef, *state.eval_weights)
    detector.eval()
    try:
        categories = open_scenes(config.data.name, config.data.data_dir, training=False).categories
    except UserError:  # The set is on another machine.
        categories = ()
    if len(categories) != config.num_classes - 1:
        categories = default_categories(config.num_classes)
    source = {
        "pixels": PIXELS[config.pixels].to_json(),
        **entries(categories, config.data.min_side, config.data.max_side),
    }
    return detector, {"source": source}, step


def _config_of(workdir: pathlib.Path) -> DetectionConfig:
    stored = stored_config(workdir)
    if stored is None or not {"model.backbone", "model.mask_head"} <= stored.keys():
        raise CheckpointError(f"{workdir} holds no run of a detector, as its {CONFIG_FILE} says.")
    config = DetectionConfig()
    known = flatten(config)
    # A subclass may have fields of its own, which do not change the network.
    for name, value in stored.items():
        if name in known:
            set_field(config, name, value)
    return config
