"""Networks as programs for serving: StableHLO by ``jax.export``, and TensorFlow's SavedModel by ``jax2tf``.

Both hold the network in evaluation mode with its parameters, and run without this package.
"""

import contextlib
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Literal, cast

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.errors import ConfigError, DataError, shown
from gw_jax.files import replacing
from gw_jax.ops.checks import require_integer
from gw_jax.ops.kernels.placement import compiling_for

__all__ = ["export", "load", "save", "save_tensorflow"]

PLATFORMS = ("cpu", "cuda", "tpu")
Batch = int | Literal["symbolic"]


def export(
    model: nnx.Module,
    image_shape: Sequence[int],
    *,
    batch: Batch = "symbolic",
    platforms: Sequence[str] = PLATFORMS,
    dtype: DTypeLike = jnp.float32,
) -> jax.export.Exported:
    """Exports a network with its parameters as one StableHLO program.

    The program is for all ``platforms`` and holds no fused kernel, wherever it is exported: Group Whitening is in plain
    XLA, which computes the same. :func:`save` writes it to a file, and :func:`load` reads it, also in a later version of
    JAX, within the compatibility guarantees of ``jax.export``.

    Args:
        model: an NNX model called as ``model(images)``, after ``model.eval()``.
        image_shape: ``(h, w, c)``, the shape of one image.
        batch: number of images, or "symbolic" for any number from one up.
        platforms: of "cpu", "cuda", "rocm", "tpu".
        dtype: type of the images.

    Returns:
        The program. ``exported.call(images)`` maps ``[n, h, w, c]`` to the model's output.

    Raises:
        TypeError: ``model`` is no NNX module.
        ValueError: the model is in training mode, or a shape, batch or platform that is not possible.

    Source: ``jax.export``, https://docs.jax.dev/en/latest/export/.

    Example:
        >>> import gw_jax, jax
        >>> from flax import nnx
        >>> model = gw_jax.create_model("mlp", norm_options={"num_groups": 10}, num_classes=10, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> exported = gw_jax.serving.export(model, (28, 28, 1))
        >>> exported.call(jax.numpy.ones((5, 28, 28, 1))).shape
        (5, 10)
    """
    shape = _image_shape(image_shape)
    function, state = _inference(model)
    unknown = [name for name in platforms if name not in (*PLATFORMS, "rocm")]
    if isinstance(platforms, str) or unknown or not platforms:
        raise ValueError(f"platforms={platforms!r}; give a sequence of cpu, cuda, rocm and tpu.")
    if batch == "symbolic":
        (size,) = jax.export.symbolic_shape("n")
    else:
        size = require_integer("batch", batch, 1)
    images = jax.ShapeDtypeStruct((size, *shape), dtype)
    exporter = jax.export.export(jax.jit(lambda images: function(state, images)), platforms=tuple(platforms))
    with _without_kernels():
        return exporter(images)


def save(exported: jax.export.Exported, path: str | os.PathLike[str]) -> None:
    """Writes an exported program to a file, such as ``resnet50.jax``.

    Raises:
        ConfigError: the package flatbuffers, with which JAX serialises, is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> model = gw_jax.create_model("lenet", num_classes=10, rngs=nnx.Rngs(0))
        >>> gw_jax.serving.save(gw_jax.serving.export(model, (28, 28, 1), platforms=["cpu"]), "lenet.jax")
    """
    _require_flatbuffers()
    path = pathlib.Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(exported.serialize())


def load(path: str | os.PathLike[str]) -> jax.export.Exported:
    """Reads a program that :func:`save` wrote. It does the same as ``jax.export.deserialize``, with clear errors.

    Load only files from sources that you trust: JAX runs the program.

    Args:
        path: the file.

    Returns:
        The program; ``load(path).call(images)`` runs it.

    Raises:
        ConfigError: the package flatbuffers is not installed.
        DataError: the file is missing or holds no program, or one of a version that this JAX does not read.

    Example:
        >>> import gw_jax, jax
        >>> from flax import nnx
        >>> model = gw_jax.create_model("lenet", num_classes=10, rngs=nnx.Rngs(0))
        >>> gw_jax.serving.save(gw_jax.serving.export(model, (28, 28, 1), platforms=["cpu"]), "lenet.jax")
        >>> gw_jax.serving.load("lenet.jax").call(jax.numpy.ones((2, 28, 28, 1))).shape
        (2, 10)
    """
    _require_flatbuffers()
    path = pathlib.Path(path)
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{shown(str(path))} cannot be read: {error.strerror}.") from error
    except Exception as error:  # The parser raises whatever its bytes lead to.
        raise DataError(
            f"{shown(str(path))} holds no program of gw_jax.serving.save that jax {jax.__version__} can read: "
            f"{type(error).__name__}: {shown(str(error))}."
        ) from error


def save_tensorflow(
    model: nnx.Module,
    image_shape: Sequence[int],
    directory: str | os.PathLike[str],
    *,
    batch: Batch = "symbolic",
    platforms: Sequence[str] = PLATFORMS,
    dtype: DTypeLike = jnp.float32,
) -> None:
    """Writes a network with its parameters as a TensorFlow SavedModel, by ``jax.experimental.jax2tf``.

    Its signature ``serving_default`` maps ``images`` ``[n, h, w, c]`` to ``{"outputs": ...}``. It runs in TensorFlow and
    TensorFlow Serving without JAX.

    Args:
        model: an NNX model called as ``model(images)``, after ``model.eval()``. Its output is one array.
        image_shape: ``(h, w, c)``.
        directory: where to write; it may exist only if it is empty.
        batch: number of images, or "symbolic" for any number from one up.
        platforms: of "cpu", "cuda", "rocm", "tpu".
        dtype: type of the images.

    Raises:
        ConfigError: TensorFlow is not installed, this JAX has no jax2tf, or ``directory`` is not empty.
        TypeError: ``model`` is no NNX module.
        ValueError: the model is in training mode, or a shape, batch or platform that is not possible.

    Example:
        >>> import gw_jax  # needs TensorFlow
        >>> from flax import nnx
        >>> model = gw_jax.create_model("lenet", num_classes=10, rngs=nnx.Rngs(0))
        >>> gw_jax.serving.save_tensorflow(model, (28, 28, 1), "lenet_saved_model")
    """
    shape = _image_shape(image_shape)
    function, state = _inference(model)
    size = None if batch == "symbolic" else require_integer("batch", batch, 1)
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{shown(str(directory))} exists and is not an empty directory; choose another one.")
    tf, jax2tf = _tensorflow()
    leaves, structure = jax.tree.flatten(state)
    converted = jax2tf.convert(
        lambda leaves, images: function(jax.tree.unflatten(structure, leaves), images),
        polymorphic_shapes=[None, "(n, ...)" if size is None else None],
        with_gradient=False,
        native_serialization_platforms=tuple(platforms),
    )
    module = tf.Module()
    # Variables, not constants: a graph may have 2 GiB.
    module.weights = [tf.Variable(leaf, trainable=False) for leaf in leaves]
    signature = tf.TensorSpec((size, *shape), jnp.dtype(dtype).name, name="images")
    module.serve = tf.function(
        lambda images: {"outputs": converted(list(module.weights), images)}, input_signature=[signature], autograph=False
    )
    with _without_kernels():
        tf.saved_model.save(module, str(directory), signatures={"serving_default": module.serve})


def _inference(model: nnx.Module) -> tuple[Callable[[Any, jax.Array], Any], Any]:
    """The network as a function of its state and images, and its state."""
    if not isinstance(model, nnx.Module) or not callable(model):
        raise TypeError(f"model is of type {type(model).__name__}; give a flax.nnx.Module that is called on images.")
    for path, module in nnx.iter_graph(model):
        if not isinstance(module, nnx.Module):
            continue
        drops = getattr(module, "deterministic", True) is False and getattr(module, "rate", True)
        if drops or getattr(module, "use_running_average", True) is False:
            where = "/".join(map(str, path)) or "the model itself"
            raise ValueError(
                f"The model is in training mode: {where} ({type(module).__name__}) would use the statistics of the batch "
                "or random numbers. Call model.eval() first."
            )
    # TensorFlow has no type for random keys, which evaluation does not use.
    parts: Any = nnx.split(model, nnx.RngState, ...)
    graphdef, keys, state = parts
    return lambda state, images: nnx.merge(graphdef, keys, state)(images), state


def _image_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(image_shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape={shape}; give the shape of one image without the batch, (h, w, c).")
    return tuple(require_integer("image_shape", size, 1) for size in shape)


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """Within it, "auto" chooses as on a CPU: the choice of a kernel would depend on the machine that exports."""
    with compiling_for(cast(jax.Device, SimpleNamespace(platform="cpu", device_kind="cpu"))):
        yield


def _require_flatbuffers() -> None:
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise ConfigError(
            "jax.export needs the package 'flatbuffers' to write and read programs. Install the extra: "
            "pip install 'gw_jax[serving]', or pip install flatbuffers."
        ) from error


def _tensorflow() -> tuple[Any, Any]:
    """TensorFlow and jax2tf."""
    try:
        tf = importlib.import_module("tensorflow")
    except ImportError as error:
        raise ConfigError(
            f"A SavedModel needs TensorFlow, which cannot be imported ({error}). pip install tensorflow, or use "
            "gw_jax.serving.export, which needs JAX only."
        ) from error
    try:
        return tf, importlib.import_module("jax.experimental.jax2tf")
    except ImportError as error:
        raise ConfigError(
            f"jax {jax.__version__} has no jax.experimental.jax2tf that works with TensorFlow {tf.__version__} ({error}). "
            "Install a JAX that has it, such as 0.10.2, or use gw_jax.serving.export."
        ) from error
