"""Label smoothing, mixup, CutMix and random erasing on the device."""

import math

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import accumulation_dtype, require_floating

# Zhong et al. 2020: share of the image's area, height / width, and attempts (torchvision's number) to fit a rectangle.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_ATTEMPTS = 10


def one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """``(1 - smoothing) onehot + smoothing / num_classes``, float32 ``[n, k]``, for integer labels ``[n]``.

    Rounded once: ``optax.smooth_labels`` multiplies and adds in float32, and is off by one unit in the last place for some
    numbers of classes.

    Raises:
        TypeError: the labels are not integers.
        ValueError: ``smoothing`` is not in [0, 1].

    Source: Szegedy et al. 2016, section 7, as in torch's ``CrossEntropyLoss(label_smoothing=...)``.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"one_hot got labels of type {labels.dtype} and shape {labels.shape}; integers [n] are needed.")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing={smoothing}; 0 to 1 is allowed (0.1 is usual).")
    hit = labels.astype(jnp.int32)[:, None] == jnp.arange(num_classes, dtype=jnp.int32)[None]
    floor = smoothing / num_classes
    return jnp.where(hit, jnp.float32(1 - smoothing + floor), jnp.float32(floor))


def mix(
    images: jax.Array, targets: jax.Array, key: jax.Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes examples 0 and 1, 2 and 3, ... with each other, by mixup or CutMix; one choice and one ``lam`` per batch.

    ``lam ~ Beta(alpha, alpha)``. mixup: ``lam x + (1 - lam) partner``. CutMix: a box with the partner's pixels, of the
    image's shape and ``1 - lam`` of its area, its centre uniform over the image, cut off at the image's edge; then
    ``lam`` is the share of pixels that stayed. Targets become ``lam t + (1 - lam) partner's t`` in both. With both alphas
    above 0 each is applied with probability 1/2; with both 0 the inputs are returned unchanged.

    Pairs are neighbours so that devices exchange nothing where each holds an even number of consecutive examples. They
    are as random as the order of the batch.

    Args:
        images: ``[n, h, w, c]``, floating-point, normalised; n even.
        targets: ``[n, k]``, floating-point, as from :func:`one_hot`.
        key: the only source of randomness.
        mixup_alpha: 0 for no mixup.
        cutmix_alpha: 0 for no CutMix.

    Returns:
        Images and targets of the given shapes and types.

    Raises:
        TypeError: images or targets are not floating-point.
        ValueError: n is odd, the shapes do not fit, or an alpha is negative.

    Source: Zhang et al. 2018 (mixup) and Yun et al. 2019 (CutMix, algorithm A1).
    """
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise ValueError(f"mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}; 0 (off) or more is allowed.")
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets):
        raise ValueError(
            f"mix got images of shape {images.shape} and targets of shape {targets.shape}; [n, h, w, c] and "
            "[n, k] are needed. Turn integer labels into targets with one_hot."
        )
    require_floating(images, "mix")
    require_floating(targets, "mix")
    if len(images) % 2:
        raise ValueError(f"mix got a batch of {len(images)}; it mixes pairs, so give an even number of examples.")
    lam_key, uniform_key = jax.random.split(key)
    method, *centre = jax.random.uniform(uniform_key, (3,), jnp.float32)
    use_mixup = method < (0.5 if mixup_alpha and cutmix_alpha else float(mixup_alpha > 0))
    # Two gamma variates make a beta variate; drawn together, they compile to one loop, and in logarithms none underflows.
    alpha = jnp.where(use_mixup, jnp.float32(mixup_alpha), jnp.float32(cutmix_alpha))
    log_gammas = jax.random.loggamma(lam_key, alpha, (2,), jnp.float32)
    lam = jax.nn.sigmoid(log_gammas[0] - log_gammas[1])
    weights = jnp.where(use_mixup, lam, _outside_box(centre, lam, *images.shape[1:3]).astype(jnp.float32))
    lam = jnp.where(use_mixup, lam, weights.mean())
    return _mix_pairs(images, weights[None, :, :, None]), _mix_pairs(targets, lam[None, None])


def _outside_box(centre: list[jax.Array], lam: jax.Array, height: int, width: int) -> jax.Array:
    """Bool ``[h, w]``, false at the pixels whose centres lie in CutMix's box; the image is 1 high and 1 wide."""
    half_side = jnp.sqrt(1 - lam) / 2
    rows, columns = (
        jnp.abs((jnp.arange(size, dtype=jnp.float32) + 0.5) / size - middle) >= half_side
        for size, middle in zip((height, width), centre, strict=True)
    )
    return rows[:, None] | columns[None, :]


def _mix_pairs(values: jax.Array, weights: jax.Array) -> jax.Array:
    """``weights values + (1 - weights) partners``, computed in float32 at least, in the type of ``values``."""
    dtype = accumulation_dtype(values.dtype)
    wide, weights = values.astype(dtype), weights.astype(dtype)
    partners = wide.reshape(-1, 2, *wide.shape[1:])[:, ::-1].reshape(wide.shape)
    return (weights * wide + (1 - weights) * partners).astype(values.dtype)


def random_erasing(images: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Sets a rectangle of every image to zero, the mean colour, with the given probability.

    Its area is uniform in 0.02 to 1/3 of the image, height / width log-uniform in 0.3 to 1/0.3, its place uniform. It is
    drawn anew until both sides are below the image's, 10 times at most; then the image stays whole.

    Accepts and returns floating-point, normalised ``[n, h, w, c]``.

    Raises:
        TypeError: the images are not floating-point.
        ValueError: ``probability`` is not in [0, 1].

    Source: Zhong et al. 2020, as in torchvision's ``RandomErasing``.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}; 0 to 1 is allowed.")
    require_floating(images, "random_erasing")
    if not probability:
        return images
    num_images, height, width, _ = images.shape
    size_key, place_key = jax.random.split(key)
    area, log_aspect = jax.random.uniform(size_key, (2, num_images, ERASING_ATTEMPTS), jnp.float32)
    area = _between(area, *ERASED_AREA) * (height * width)
    aspect = jnp.exp(_between(log_aspect, *(math.log(bound) for bound in ERASED_ASPECT)))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    erased_height, erased_width = (jnp.take_along_axis(sides, first, 1) for sides in (heights, widths))
    row, column, chance = jax.random.uniform(place_key, (3, num_images, 1), jnp.float32)
    erase = fits.any(1, keepdims=True) & (chance < probability)
    rows = _run(row, erased_height, height) & erase
    columns = _run(column, erased_width, width)
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0, images)


def _between(uniform: jax.Array, low: float, high: float) -> jax.Array:
    return low + (high - low) * uniform


def _run(uniform: jax.Array, lengths: jax.Array, size: int) -> jax.Array:
    """Bool ``[n, size]``: ``lengths`` ``[n, 1]`` true entries side by side, at the place that ``uniform`` draws."""
    start = jnp.floor(uniform * (size - lengths + 1).astype(jnp.float32)).astype(jnp.int32)
    position = jnp.arange(size, dtype=jnp.int32)[None]
    return (position >= start) & (position < start + lengths)
