"""Spectra of activations before and after the norms of a model."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax.typing import ArrayLike

from gw_jax.analysis.intercept import measure_linen, measure_nnx
from gw_jax.analysis.layers import Kinds, Measured, Options, listed, nnx_modules, require_batch_axis, select
from gw_jax.analysis.spectrum import Per, Spectrum, bad_samples, check_per, spectrum_of
from gw_jax.linen import swap as linen_swap
from gw_jax.nn import swap as nnx_swap
from gw_jax.norm_calls import compile_pattern

Call = Callable[[Any, jax.Array], Any]
NumGroups = int | Literal["channels"] | None


@dataclasses.dataclass(frozen=True, slots=True)
class NormAnalysis:
    """The spectra of a layer's input and output.

    Attributes:
        path: slash path of the layer, such as "stage1/0/norm1".
        kind: class of the layer, such as "GroupWhitening".
        num_features: channels ``c``.
        per: "sample" or "batch".
        before: :class:`Spectrum` of the input.
        after: :class:`Spectrum` of the output.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_norms
        >>> norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> analysis = analyze_norms(norm, jax.random.normal(jax.random.key(0), (4, 7, 7, 64)))[""]
        >>> analysis.kind, analysis.num_features, analysis.after.num_variables
        ('GroupWhitening', 64, 16)
    """

    path: str
    kind: str
    num_features: int
    per: Per
    before: Spectrum
    after: Spectrum


def analyze_norms(
    model: nnx.Module,
    images: ArrayLike,
    pattern: str = ".*",
    *,
    per: Per = "sample",
    num_groups: NumGroups = None,
    affine: bool = True,
    keep_covariance: bool = False,
    kinds: Kinds | None = None,
    call: Call | None = None,
) -> dict[str, NormAnalysis]:
    """Spectra, condition numbers and whitening errors before and after the norms of an NNX model.

    The model runs once on ``images``, in the mode in which it is (``model.train()`` or ``model.eval()``), as a copy: its
    parameters, running statistics and random generators do not change. :func:`covariance` states the covariances, and
    :class:`Spectrum` the numbers that describe them.

    A ReLU that one of our norms applies for its network (``norm(x, relu=True)``) is left out of ``after``. A layer that is
    called several times has an entry per call: "norm", "norm (call 2)", ... A layer at several places of the model has the
    first path that matches.

    Args:
        model: any NNX model, called as ``model(images)``.
        images: ``[n, ...]``, what the model accepts, with a batch axis.
        pattern: regular expression that is searched in the slash paths of norms, such as ``"stage1/.*/norm2"``.
        per: "sample" for one covariance per sample, "batch" for one over all samples.
        num_groups: the variables of the covariance are this many groups of channels; "channels" for one variable per
            channel. None for what the layer whitens: the groups of a GroupWhitening with ``per="sample"``, else channels.
        affine: whether the layers' scale and bias are part of ``after``. False shows the normalised values alone.
        keep_covariance: whether the spectra hold the covariances, ``[k, d, d]``.
        kinds: a class, or several, of the layers to analyse. None for the norms of this project and of ``flax.nnx``.
        call: ``call(model, images)`` runs the model, where ``model(images)`` does not. Passing the same function again, not
            a new lambda, reuses the compiled program.

    Returns:
        An analysis for every layer that was called, by path, in the order of the calls.

    Raises:
        TypeError: ``model`` is no NNX module.
        ValueError: nothing matches, groups that do not divide a layer's channels, an empty batch, images without a batch
            axis, activations that are not finite, or layers inside ``jax.checkpoint``, ``scan``, ``vmap`` or ``nnx.jit``
            only. The message names the layer.

    Source: Huang et al., Group Whitening (CVPR 2021), section 3 for the covariances.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_norms
        >>> model = gw_jax.create_model("mlp", norm="gw", norm_options={"num_groups": 10}, num_classes=10, rngs=nnx.Rngs(0))
        >>> images = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
        >>> found = analyze_norms(model, images, "norms/[01]")
        >>> list(found), found["norms/0"].after.eigenvalues.shape
        (['norms/0', 'norms/1'], (4, 10))
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"analyze_norms got a {type(model).__name__}; it accepts a flax.nnx.Module. For a flax.linen.Module use "
            "analyze_linen_norms(model, variables, images)."
        )
    options = _options(pattern, per, num_groups, affine, keep_covariance, nnx_swap.NORMS if kinds is None else kinds, call)
    images = _check_images(images)
    modules = nnx_modules(model)
    chosen = select(modules, options)
    for module in modules.values():
        if isinstance(module, nnx.Conv):
            require_batch_axis(images, module, images.ndim)
    measured = _traced(measure_nnx, model, images, options)
    called = {entry.path.split(" (call")[0] for entry in measured}
    missing = [path for path, _ in chosen.values() if path not in called]
    if not measured:
        raise ValueError(
            f"The model did not call {listed(missing)}. Layers are not observed inside nnx.jit, nnx.remat, nnx.scan or "
            "nnx.vmap, which call copies of them; and call= has to run the layers to analyse."
        )
    if missing:
        warnings.warn(f"The model did not call {listed(missing)}; there is no analysis of these layers.", stacklevel=2)
    return _results(measured, options)


def analyze_linen_norms(
    model: linen.Module,
    variables: Mapping[str, Any],
    images: ArrayLike,
    pattern: str = ".*",
    *,
    per: Per = "sample",
    num_groups: NumGroups = None,
    affine: bool = True,
    keep_covariance: bool = False,
    kinds: Kinds | None = None,
    call: Call | None = None,
    rngs: Any = None,
) -> dict[str, NormAnalysis]:
    """Spectra, condition numbers and whitening errors before and after the norms of a Linen model.

    The counterpart of :func:`analyze_norms`, which states the arguments that both have, the result and the errors.
    ``variables`` do not change: updates of running statistics are dropped.

    Args:
        model: any Linen model, called as ``model.apply(variables, images)``.
        variables: its parameters and other collections.
        images: ``[n, ...]``, what the model accepts, with a batch axis.
        pattern: regular expression that is searched in the slash paths of norms, such as ``"ResNetBlock_0/BatchNorm"``.
        per: "sample" or "batch".
        num_groups: an integer, "channels", or None for what the layer whitens.
        affine: whether the layers' scale and bias are part of ``after``.
        keep_covariance: whether the spectra hold the covariances.
        kinds: a class, or several, of the layers to analyse. None for :class:`gw_jax.linen.GroupWhitening` and the norms of
            ``flax.linen``.
        call: ``call(bound_model, images)`` runs the model, where ``bound_model(images)`` does not, such as
            ``lambda model, images: model(images, train=False)``.
        rngs: random generators by name, as for ``model.apply``.

    Returns:
        An analysis for every layer that was called, by path, in the order of the calls.

    Raises:
        TypeError: ``model`` is no Linen module.
        ValueError: as for :func:`analyze_norms`.

    Example:
        >>> import jax
        >>> from flax import linen
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_linen_norms
        >>> model = linen.Sequential((linen.Conv(32, (3, 3)), gw_jax.linen.GroupWhitening(num_groups=8)))
        >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> variables = model.init(jax.random.key(1), images)
        >>> list(analyze_linen_norms(model, variables, images))
        ['layers_1']
    """
    if not isinstance(model, linen.Module):
        raise TypeError(
            f"analyze_linen_norms got a {type(model).__name__}; it accepts a flax.linen.Module. For a flax.nnx.Module use "
            "analyze_norms(model, images)."
        )
    options = _options(
        pattern, per, num_groups, affine, keep_covariance, linen_swap.NORMS if kinds is None else kinds, call
    )
    measured = _traced(measure_linen, model, variables, _check_images(images), options, rngs)
    return _results(measured, options)


def _options(
    pattern: str,
    per: Per,
    num_groups: NumGroups,
    affine: bool,
    keep_covariance: bool,
    kinds: Kinds,
    call: Call | None,
) -> Options:
    check_per(per)
    if isinstance(num_groups, str) and num_groups != "channels":
        raise ValueError(f"num_groups={num_groups!r}; give an integer, 'channels' or None.")
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return Options(compile_pattern(pattern), per, num_groups, affine, keep_covariance, kinds, call)


def _check_images(images: ArrayLike) -> jax.Array:
    images = jnp.asarray(images)
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"images have shape {images.shape}; give at least one, with a batch axis: [n, ...].")
    return images


def _traced(measure: Callable[..., tuple[Measured, ...]], *arguments: Any) -> tuple[Measured, ...]:
    try:
        return measure(*arguments)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "A chosen layer is called inside jax.checkpoint, nn.remat, scan or vmap, where it is not observed. Choose "
            "other layers by the pattern, or switch the transformation off for the analysis."
        ) from error


def _results(measured: tuple[Measured, ...], options: Options) -> dict[str, NormAnalysis]:
    """The results of what was measured, checked to be finite in the order of the calls."""
    found: dict[str, NormAnalysis] = {}
    for entry in jax.device_get(measured):
        for side, of_side in (("input", entry.before), ("output", entry.after)):
            if not of_side.finite.all():
                raise ValueError(
                    f"The {side} of {entry.path} ({entry.kind}) is not finite{bad_samples(of_side, options.per)}. It is "
                    "the first such layer among those analysed."
                )
        before, after = (
            spectrum_of(of_side, entry.variables, entry.epsilon, options.keep_covariance)
            for of_side in (entry.before, entry.after)
        )
        found[entry.path] = NormAnalysis(entry.path, entry.kind, entry.features, options.per, before, after)
    return found
