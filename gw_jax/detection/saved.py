"""Detectors in a directory: ``model.safetensors`` with the arrays and ``config.json`` with the detector's arguments."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gw_jax.detection.detector import Detector, create_detector, require_detector
from gw_jax.errors import CheckpointError, one_line, shown
from gw_jax.models.hub import download, is_hub_address
from gw_jax.models.pretrained import fill_model, write_directory
from gw_jax.models.remembered import require_unchanged
from gw_jax.models.saved_files import CONFIG_FILE, DETECTOR, MODEL_FILE, read_arrays, read_config
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.tree import variables


def save_detector(directory: str | pathlib.Path, detector: Detector, *, source: Mapping[str, Any] | None = None) -> None:
    """Writes a detector so that :func:`load_detector` needs nothing else. The directory appears whole or not at all.

    Args:
        directory: the new directory.
        detector: of :func:`gw_jax.detection.create_detector`, :func:`gw_jax.detection.from_torch_state` or
            :func:`load_detector`.
        source: where it comes from, a human-readable addition to ``config.json``; JSON values.

    Raises:
        CheckpointError: ``directory`` exists, or cannot be written.
        ConfigError: it is no detector, or was changed since it was made, such as by :func:`gw_jax.swap_norms`; a value is
            no JSON value.

    Example:
        >>> import os, tempfile
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector, load_detector, save_detector
        >>> detector = create_detector("resnet18", norm="frozen_bn", width=8, fpn_features=8, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_detector(f"{directory}/detector", detector)
        ...     print(sorted(os.listdir(f"{directory}/detector")), type(load_detector(f"{directory}/detector")).__name__)
        ['config.json', 'model.safetensors'] Detector
    """
    require_detector(detector, "save_detector")
    record = detector.record
    expected = abstract_detector(record.arguments, record.dtype, record.param_dtype or jnp.float32)
    advice = "Save gw_jax.tree.variables(detector), and repeat the change after loading."
    require_unchanged(detector, expected, f"create_detector({shown(record.arguments, 300)})", advice)
    arrays = {path: np.asarray(leaf) for path, leaf in variables(detector).items()}
    write_directory(directory, arrays, record.arguments, source=source, training=None, kind=DETECTOR)


def load_detector(
    directory: str | pathlib.Path, *, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32
) -> Detector:
    """The detector that :func:`save_detector` or ``python -m gw_jax.detection.convert`` wrote, in evaluation mode.

    Args:
        directory: the detector's directory, or ``"hf://OWNER/NAME[@REVISION][/SUBFOLDER]"`` on the Hugging Face Hub (extra
            ``hub``).
        dtype: type of the activations, such as ``jnp.bfloat16``. Logits, deltas and boxes are at least float32.
        param_dtype: type of the parameters.

    Raises:
        CheckpointError: the directory or a file of it is missing, damaged or inconsistent, or holds a classifier, or cannot
            be downloaded.
        ConfigError: the package for the hub is not installed, or the address is malformed.

    Example:
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector, load_detector, save_detector
        >>> detector = create_detector("resnet18", norm="frozen_bn", width=8, fpn_features=8, rngs=nnx.Rngs(0))
        >>> save_detector("detectors/mine", detector)
        >>> load_detector("detectors/mine").arguments["width"]
        8
    """
    if is_hub_address(directory):
        directory = download(str(directory))
    arguments = read_config(directory, DETECTOR)[DETECTOR]
    try:
        detector = abstract_detector(arguments, dtype, param_dtype)
    except Exception as error:  # The file decides which of create_detector's errors comes.
        raise CheckpointError(
            f"The detector of {pathlib.Path(directory) / CONFIG_FILE} cannot be made: {one_line(str(error))}"
        ) from error
    loaded: Detector = fill_model(detector, read_arrays(directory, MODEL_FILE, variables(detector)))
    return loaded


def abstract_detector(arguments: Mapping[str, Any], dtype: DTypeLike | None, param_dtype: DTypeLike) -> Detector:
    """The detector of ``arguments`` with shapes in place of arrays."""
    return create_detector(**arguments, dtype=dtype, param_dtype=param_dtype, rngs=AbstractRngs())
