"""Batches of uint8 images from a prepared data set, in an order that depends on seed and epoch only.

An epoch is one global shuffle of the training split, cut into global batches; what is left over is dropped. A process
takes its consecutive share of every global batch, so neither the order nor a resume depends on the number of processes.
Evaluation visits every example of the split once: the last batch is padded and a mask says what counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.errors import DataError, raise_missing_package

Batch = dict[str, np.ndarray]


class TrainBatches(Iterator[Batch]):
    """Training batches ``{"image": uint8 [b, h, w, c], "label": int32 [b]}`` of this process, without end.

    Args:
        source: random access to the examples of the training split.
        batch_size: examples of the global batch.
        num_epochs: length of the run.
        seed: decides the order.
        image_size: edge to which images are resized, or None where they are all of one shape.
        process_index: which of the processes this is.
        process_count: number of processes; divides ``batch_size``.
        num_threads: reading and decoding threads.
    """

    def __init__(
        self,
        source: Sequence[Any],
        *,
        batch_size: int,
        num_epochs: int,
        seed: int,
        image_size: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
    ):
        grain = _import_grain()
        self.steps_per_epoch = len(source) // batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"data.batch_size={batch_size} exceeds the {len(source)} examples of the training split; "
                f"choose at most {len(source)}."
            )
        share = batch_size // process_count
        per_epoch = self.steps_per_epoch * batch_size
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle()[:per_epoch].repeat(num_epochs)

        def load(position: int) -> Batch:
            step, rank = divmod(position, share)
            return read_example(source, int(order[step * batch_size + process_index * share + rank]), image_size)

        dataset = grain.MapDataset.range(self.steps_per_epoch * num_epochs * share).map(load).batch(share)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2 * share, num_threads))
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position in the order, as JSON values; the same in every process."""
        return self._iterator.get_state()

    def skip_to(self, step: int) -> None:
        """Goes on after ``step`` batches from the start, without reading those."""
        self.set_state({"next_index": step})

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position that :meth:`get_state` returned."""
        self._iterator.set_state(state)


def eval_batches(
    source: Sequence[Any],
    *,
    batch_size: int,
    image_size: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> Iterator[Batch]:
    """Yields this process's share of the evaluation split: image, label and ``mask`` (bool ``[b]``, false for padding).

    Every process yields the same number of batches. Arguments are as for :class:`TrainBatches`.
    """
    grain = _import_grain()
    share = batch_size // process_count
    num_batches = -(-len(source) // batch_size)

    def load(position: int) -> Batch:
        batch, rank = divmod(position, share)
        index = batch * batch_size + process_index * share + rank
        counts = index < len(source)
        # Padding repeats a real example, so that it needs no case of its own in a network; the mask leaves it out.
        example = read_example(source, index if counts else 0, image_size)
        return {**example, "mask": np.asarray(counts)}

    dataset = grain.MapDataset.range(num_batches * share).map(load).batch(share)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2 * share, num_threads))
    return iter(dataset.to_iter_dataset(options))


def read_example(source: Sequence[Any], index: int, image_size: int | None) -> Batch:
    """Reads, decodes and, where ``image_size`` is given, resizes one example."""
    example = source[index]
    image = np.asarray(example["image"], np.uint8)
    if image_size is not None and image.shape[:2] != (image_size, image_size):
        image = _resize(image, image_size)
    return {"image": image, "label": np.asarray(example["label"], np.int32)}


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to ``size x size`` with Pillow's antialiased bilinear filter."""
    from PIL import Image

    channels = image.shape[-1]
    pixels = Image.fromarray(image[..., 0] if channels == 1 else image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(pixels, np.uint8).reshape(size, size, channels)


def _import_grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise_missing_package(error, "The input pipeline")
    return grain
