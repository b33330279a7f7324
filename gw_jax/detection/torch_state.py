"""State dicts of the reference's detectors to detectors, and back."""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

import gw_jax.detection.layout  # noqa: F401 -- registers the entries.
from gw_jax.convert import entries as table_of
from gw_jax.convert.entries import COUNTER
from gw_jax.convert.file_errors import file_errors
from gw_jax.convert.fill import fill, listed
from gw_jax.detection.detector import Detector, create_detector, require_detector
from gw_jax.detection.heads import ConvReLU
from gw_jax.detection.identify import identify_detector
from gw_jax.detection.layout import BOX_FEATURES
from gw_jax.errors import CheckpointError, ConfigError, shown
from gw_jax.models.pretrained import fill_model
from gw_jax.nn import FrozenBatchNorm
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.tree import variables

# Where the reference keeps the state dict in a checkpoint, and what its data-parallel wrapper puts before each name.
_WRAPPER = "model"
_PREFIX = "module."
# Smaller variances are those of channels that are always zero.
SMALLEST_VARIANCE = 1e-10
_XCONVS = f"{BOX_FEATURES}xconvs."


@dataclasses.dataclass(frozen=True)
class ReadDetector:
    """A detector as it was read from a state dict.

    Attributes:
        detector: with shapes in place of arrays.
        arrays: its arrays, by path.
        used: names of the entries that were read.
        notices: remarks on how they were found.
    """

    detector: Detector
    arrays: dict[str, np.ndarray]
    used: list[str]
    notices: list[str]


def from_torch_state(
    state: Mapping[str, Any],
    *,
    conv_relu: ConvReLU = "last",
    norm_options: dict[str, Any] | None = None,
    epsilon: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Detector:
    """The detector to which a state dict of the reference belongs, with its arrays.

    Names and shapes determine the backbone, the norms and the heads. Nothing is guessed or left out: every entry is used
    and every array is filled.

    Args:
        state: name -> array, in the reference's layout, the buffers ``rpn.anchor_generator.cell_anchors.*`` too; perhaps
            under "model", perhaps with "module." before each name.
        conv_relu: where the ReLUs of the box head "4conv1fc" are; names do not determine it. ``"last"``: once after
            the four convolutions, as in the published code. ``"each"``: after each, as in maskrcnn-benchmark, whose
            numbering of the convolutions is then read, too.
        norm_options: of the norms that ``norm`` of :func:`create_detector` names, such as ``{"num_groups": 32}``.
        epsilon: of the frozen batch norms; the reference has none.
        dtype: type of the activations.
        param_dtype: type of the parameters.

    Returns:
        The detector, in evaluation mode.

    Raises:
        CheckpointError: an entry is missing, left over, misshapen or not finite; the anchors are others; a variance is near
            zero without ``epsilon``; or it is no detector's.
        ConfigError: ``state`` is no dict, or the options do not fit the network.

    Source: the reference's ``utils/model_serialization.py``, without its silent losses.

    Example:
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector, from_torch_state, to_torch_state
        >>> options = {"width": 8, "fpn_features": 8, "head_features": 16, "norm_options": {"num_groups": 4}}
        >>> detector = create_detector("resnet18", num_classes=3, **options, rngs=nnx.Rngs(0))
        >>> state = to_torch_state(detector)
        >>> again = from_torch_state(state, norm_options={"num_groups": 4})
        >>> list(state)[0], again.box_head.logits.kernel.shape
        ('backbone.body.stem.conv1.weight', (16, 3))
    """
    found = read_state(
        state,
        "the state dict",
        conv_relu=conv_relu,
        norm_options=norm_options,
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    detector: Detector = fill_model(found.detector, found.arrays)
    return detector


def to_torch_state(detector: Detector) -> "OrderedDict[str, np.ndarray]":
    """The state dict that the reference would have for ``detector``: its names, shapes and order, the anchors too.

    The arrays are float32, in C order. The convolutions of the box head are numbered as in the published code.

    Raises:
        ConfigError: it is no detector.

    Example:
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector, to_torch_state
        >>> options = {"width": 8, "fpn_features": 8, "head_features": 16, "norm_options": {"num_groups": 4}}
        >>> state = to_torch_state(create_detector("resnet18", num_classes=3, **options, rngs=nnx.Rngs(0)))
        >>> state["rpn.anchor_generator.cell_anchors.0"][1].tolist()
        [-14.0, -14.0, 17.0, 17.0]
    """
    require_detector(detector, "to_torch_state")
    state = table_of.to_torch_state(detector)
    return OrderedDict((name, np.ascontiguousarray(value, np.float32)) for name, value in state.items())


def read_state(
    state: Mapping[str, Any],
    source: str,
    *,
    conv_relu: ConvReLU,
    norm_options: dict[str, Any] | None,
    epsilon: float,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> ReadDetector:
    """As :func:`from_torch_state`, with the arrays apart from the detector; ``source`` names the state in messages."""
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"The state is a {type(state).__name__}; a dict of names and arrays is needed. 'python -m "
            "gw_jax.detection.convert IN.pth OUT_DIR' reads a file."
        )
    with file_errors(source):
        notices: list[str] = []
        arrays = _arrays(state, source, notices)
        arrays = _published_names(arrays, source, conv_relu, notices)
        arguments = identify_detector({name: value.shape for name, value in arrays.items()})
        try:
            detector = create_detector(
                **arguments,
                conv_relu=conv_relu,
                norm_options=norm_options,
                frozen_bn_epsilon=epsilon,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=AbstractRngs(),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The detector cannot be made with conv_relu={shown(conv_relu)}, norm_options={shown(norm_options)} and "
                f"epsilon={shown(epsilon)}: {error}"
            ) from error
        table = list(table_of.entries(detector))
        # Counters of batch norms are no entries of frozen ones.
        if counters := [name for name in arrays if name.endswith(COUNTER)]:
            raise CheckpointError(
                f"The entries of {source} do not fit: {len(counters)} that the network does not have: {listed(counters)}. "
                "Is this the backbone of a classifier?"
            )
        filled = fill(table, arrays, variables(detector), source)
        check_variances(detector, filled, {entry.path: entry.key for entry in table}, source)
        return ReadDetector(detector, filled, [entry.key for entry in table], notices)


def _arrays(state: Mapping[str, Any], source: str, notices: list[str]) -> dict[str, np.ndarray]:
    """The arrays of ``state`` without the reference's wrappers."""
    if isinstance(state.get(_WRAPPER), Mapping):
        if others := [str(name) for name in state if name != _WRAPPER]:
            notices.append(f"{_WRAPPER!r} was read, and {listed(others)} was not")
        state = state[_WRAPPER]
    arrays: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"The name {shown(name)} in {source} is a {type(name).__name__}; strings are needed.")
        arrays[name] = np.asarray(value)
    if arrays and all(name.startswith(_PREFIX) for name in arrays):
        arrays = {name.removeprefix(_PREFIX): value for name, value in arrays.items()}
        notices.append(f"every name had the prefix {_PREFIX!r}, which was removed")
    return arrays


def _published_names(
    arrays: dict[str, np.ndarray], source: str, conv_relu: ConvReLU, notices: list[str]
) -> dict[str, np.ndarray]:
    """``arrays`` with the box head's convolutions as the published code numbers them.

    With a ReLU after each, they are 0, 3, 6 and 9 with a norm and 0, 2, 4 and 6 without, instead of every second or every
    number.
    """
    pattern = re.compile(re.escape(_XCONVS) + r"(\d{1,3})\.(weight|bias)")
    places = {name: found for name in arrays if (found := pattern.fullmatch(name))}
    numbers = sorted({int(found[1]) for found in places.values()})
    with_norm, without_norm = [0, 1, 3, 4, 6, 7, 9, 10], [0, 2, 4, 6]
    if numbers not in (with_norm, without_norm):
        return arrays
    if conv_relu != "each":
        raise CheckpointError(
            f"The convolutions of the box head in {source} are numbered {', '.join(map(str, numbers))}: there was a ReLU "
            "after each of them. Pass conv_relu='each' (--conv_relu=each)."
        )
    notices.append("the convolutions of the box head were numbered as with a ReLU after each of them")
    new = {number: index for index, number in enumerate(numbers)}
    return {
        f"{_XCONVS}{new[int(places[name][1])]}.{places[name][2]}" if name in places else name: value
        for name, value in arrays.items()
    }


def check_variances(model: nnx.Module, arrays: Mapping[str, np.ndarray], names: Mapping[str, str], source: str) -> None:
    """Raises CheckpointError for variances near zero in frozen norms without epsilon, with the numbers of their channels.

    Args:
        model: the network, perhaps abstract.
        arrays: its arrays, by path.
        names: the reference's names of their entries, by path.
        source: what they come from, for messages.
    """
    found = []
    for path, norm in nnx.iter_graph(model):
        if isinstance(norm, FrozenBatchNorm):
            variable = ".".join(map(str, (*path, "var")))
            variance = np.asarray(arrays[variable], np.float64)
            bad = np.flatnonzero(~(variance + norm.epsilon >= SMALLEST_VARIANCE) | (variance < 0))
            if bad.size:
                channels = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
                found.append(f"{names[variable]} ({bad.size} of {variance.size}: {channels})")
    if found:
        raise CheckpointError(
            f"Channels in {source} have a variance near 0, and frozen batch norms divide by its root without an epsilon: "
            f"{listed(found)}. Pass the epsilon of the training: epsilon=1e-5 (--epsilon=1e-5), or frozen_bn_epsilon=1e-5 "
            "of create_detector (config.model.frozen_bn_epsilon=1e-5)."
        )
