"""Canvases for images, and orders in which all images of a batch have the same canvas."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.detection.data.resize import target_sizes
from gw_jax.detection.inputs import aligned
from gw_jax.errors import ConfigError

Canvas = tuple[int, int]

# What random numbers are for, so that those of an order are not those of the mirror images.
SHUFFLE, FLIP, SCALE = 0, 1, 2


def random_bits(seed: int, purpose: int, number: int, count: int) -> np.ndarray:
    """``count`` random uint64, a function of the arguments only, in every version of NumPy."""
    return np.random.Philox(key=[seed | purpose << 32, number]).random_raw(count)


def assign_canvases(sizes: np.ndarray, canvases: Sequence[Canvas]) -> np.ndarray:
    """For each of the resized ``sizes`` the canvas of smallest area that it fits into, the first of several.

    Args:
        sizes: heights and widths ``[n, 2]``.
        canvases: heights and widths.

    Returns:
        Indices of ``canvases``, int64 ``[n]``; -1 for an image that is larger than all.
    """
    sides = np.asarray(canvases, np.int64)
    fits = np.all(np.asarray(sizes)[:, None, :] <= sides[None], axis=-1)
    areas = np.where(fits, sides.prod(-1)[None], np.iinfo(np.int64).max)
    return np.where(fits.any(1), areas.argmin(1), -1)


def fitting_canvases(
    sizes: np.ndarray, min_side: int = 800, max_side: int = 1333, count: int | None = None
) -> tuple[Canvas, ...]:
    """Canvases that take all images of these ``sizes``, with little padding.

    The first are the smallest for all images that are at least as wide as high, and for all others. Where ``count`` is
    larger, canvases are added one at a time, each of them the one that saves most padded pixels.

    Args:
        sizes: heights and widths ``[n, 2]`` of the images before the resize, of one image at least.
        min_side: length in pixels to which the shorter side is resized.
        max_side: largest length of the longer side.
        count: number of canvases, each of which is compiled; None for one per orientation that occurs.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.canvases import fitting_canvases
        >>> fitting_canvases(np.array([[480, 640], [427, 640], [640, 480]]))
        ((800, 1216), (1088, 800))
    """
    return _fitting(target_sizes(sizes, min_side, max_side), count or 0)


def _fitting(resized: np.ndarray, count: int) -> tuple[Canvas, ...]:
    """:func:`fitting_canvases` of images of these sizes after the resize."""
    distinct, images = np.unique(aligned(resized), axis=0, return_counts=True)
    wide = distinct[:, 1] >= distinct[:, 0]
    bounds = [distinct[part].max(0) for part in (wide, ~wide) if part.any()]
    canvases: list[Canvas] = [(int(height), int(width)) for height, width in bounds]
    candidates = [(int(height), int(width)) for height, width in distinct]

    def pixels(chosen: list[Canvas]) -> int:
        areas = np.prod(np.asarray(chosen, np.int64), 1)
        return int((areas[assign_canvases(distinct, chosen)] * images).sum())

    while len(canvases) < count:
        best = min(candidates, key=lambda canvas: pixels([*canvases, canvas]))
        if pixels([*canvases, best]) == pixels(canvases):
            break
        canvases.append(best)
    return tuple(canvases)


def assigned_canvases(
    sizes: np.ndarray, canvases: Sequence[Canvas], where: Callable[[int], str] | None = None
) -> np.ndarray:
    """:func:`assign_canvases`, where every image must fit.

    Args:
        sizes: heights and widths ``[n, 2]`` of the resized images.
        canvases: heights and widths.
        where: names an image by its index.

    Raises:
        ConfigError: images are larger than every canvas: how many, the first of them, and canvases that fit all.
    """
    assigned = assign_canvases(sizes, canvases)
    large = np.flatnonzero(assigned < 0)
    if len(large):
        first = int(large[0])
        name = where(first) if where else f"image {first}"
        height, width = sizes[first].tolist()
        raise ConfigError(
            f"{len(large)} of {len(sizes)} images are larger than every canvas ({listed(canvases)}) after the resize; the "
            f"first is {name} with {height}x{width} pixels (height x width). Add {listed(_fitting(sizes[large], 0))} to "
            "config.canvases, or lower config.data.min_side and config.data.max_side."
        )
    return assigned


def listed(canvases: Sequence[Canvas]) -> str:
    """``canvases`` as in the configuration, such as "800x1344, 1344x800"."""
    return ", ".join(f"{height}x{width}" for height, width in canvases)


class CanvasOrder:
    """The order of training: in each epoch a shuffle of all images, dealt into their canvases and cut into full batches.

    What is left over in a canvas is dropped; the batches are then shuffled. So an epoch has the same number of batches
    each time, and a batch is a function of its position alone, on any number of processes.

    Args:
        sizes: heights and widths ``[n, 2]`` of the resized images.
        canvases: heights and widths.
        batch_size: images of a batch, over all processes.
        seed: decides the order.
        where: names an image by its index.

    Attributes:
        steps_per_epoch: batches of an epoch.
        left_out: for each canvas with less than a batch of images, how many these are. They are never used.

    Raises:
        ConfigError: an image is larger than every canvas, or no canvas has a batch of images.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.canvases import CanvasOrder
        >>> order = CanvasOrder(np.array([[64, 90]] * 5 + [[90, 64]] * 3), ((64, 96), (96, 64)), batch_size=2, seed=0)
        >>> order.steps_per_epoch, order.batch(0)[0]
        (3, (64, 96))
    """

    def __init__(
        self,
        sizes: np.ndarray,
        canvases: Sequence[Canvas],
        batch_size: int,
        seed: int,
        where: Callable[[int], str] | None = None,
    ):
        self.canvases, self.batch_size, self._seed = tuple(canvases), batch_size, seed
        self._assigned = assigned_canvases(sizes, canvases, where)
        counts = np.bincount(self._assigned, minlength=len(self.canvases)).tolist()
        self.steps_per_epoch = sum(count // batch_size for count in counts)
        self.left_out = {
            canvas: count for canvas, count in zip(self.canvases, counts, strict=True) if 0 < count < batch_size
        }
        if not self.steps_per_epoch:
            most = max(range(len(counts)), key=counts.__getitem__)
            raise ConfigError(
                f"config.batch_size={batch_size} fits no canvas: the one with most images, "
                f"{listed([self.canvases[most]])}, has {counts[most]}. Choose a batch of at most {max(counts[most], 1)}, "
                "or canvases that take more of the images."
            )
        self._epochs: dict[int, np.ndarray] = {}

    def batch(self, position: int) -> tuple[Canvas, np.ndarray]:
        """The canvas and the indices int64 ``[batch_size]`` of the batch at ``position`` of the run."""
        epoch, step = divmod(position, self.steps_per_epoch)
        indices = self._epoch(epoch)[step]
        return self.canvases[self._assigned[indices[0]]], indices

    def same_canvas(self, index: int) -> Iterator[int]:
        """``index`` and the images after it of the same canvas, around the end of the set."""
        yield index
        members = np.flatnonzero(self._assigned == self._assigned[index])
        start = int(np.searchsorted(members, index))
        yield from (int(members[(start + offset) % len(members)]) for offset in range(1, len(members)))

    def identity(self) -> dict[str, Any]:
        """What the order depends on, as JSON values."""
        digest = hashlib.sha256(self._assigned.astype("<i4").tobytes()).hexdigest()[:16]
        return {"canvases": listed(self.canvases), "batch_size": self.batch_size, "seed": self._seed, "assigned": digest}

    def _epoch(self, epoch: int) -> np.ndarray:
        """The batches of an epoch, int64 ``[steps_per_epoch, batch_size]``."""
        # Threads that read ahead are in one epoch or in the next.
        if epoch not in self._epochs:
            self._epochs = {**{known: self._epochs[known] for known in list(self._epochs)[-1:]}, epoch: self._deal(epoch)}
        return self._epochs[epoch]

    def _deal(self, epoch: int) -> np.ndarray:
        bits = random_bits(self._seed, SHUFFLE, epoch, len(self._assigned) + self.steps_per_epoch)
        shuffled = np.argsort(bits[: len(self._assigned)], kind="stable")
        batches = []
        for canvas in range(len(self.canvases)):
            members = shuffled[self._assigned[shuffled] == canvas]
            full = len(members) // self.batch_size
            batches.append(members[: full * self.batch_size].reshape(full, self.batch_size))
        return np.concatenate(batches)[np.argsort(bits[len(self._assigned) :], kind="stable")]


class EvalCanvasOrder:
    """The order of an evaluation: every image once, by canvas, and then in the order of the set.

    The last batch of each canvas is padded with the index -1.

    Args:
        sizes: heights and widths ``[n, 2]`` of the resized images.
        canvases: heights and widths.
        batch_size: images of a batch, over all processes.
        where: names an image by its index.

    Attributes:
        num_batches: batches of one pass.

    Raises:
        ConfigError: an image is larger than every canvas.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.canvases import EvalCanvasOrder
        >>> order = EvalCanvasOrder(np.array([[90, 64], [64, 90], [90, 64]]), ((64, 96), (96, 64)), batch_size=2)
        >>> [(canvas, indices.tolist()) for canvas, indices in map(order.batch, range(order.num_batches))]
        [((64, 96), [1, -1]), ((96, 64), [0, 2])]
    """

    def __init__(
        self,
        sizes: np.ndarray,
        canvases: Sequence[Canvas],
        batch_size: int,
        where: Callable[[int], str] | None = None,
    ):
        assigned = assigned_canvases(sizes, canvases, where)
        self.batch_size = batch_size
        self._batches: list[tuple[Canvas, np.ndarray]] = []
        for number, canvas in enumerate(canvases):
            members = np.flatnonzero(assigned == number)
            padded = np.full(-(-len(members) // batch_size) * batch_size, -1, np.int64)
            padded[: len(members)] = members
            self._batches += [(canvas, indices) for indices in padded.reshape(-1, batch_size)]
        self.num_batches = len(self._batches)

    def batch(self, position: int) -> tuple[Canvas, np.ndarray]:
        """The canvas and the indices int64 ``[batch_size]`` of the batch at ``position`` of a pass."""
        return self._batches[position]
