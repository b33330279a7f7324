"""Batches of scenes on canvases, for training and for evaluation.

All images of a batch have the same canvas, and a batch is a function of its position alone: neither the order nor a resume
depends on the number of processes. See :mod:`gw_jax.detection.data.canvases`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.data.batches import Batches, check_identity
from gw_jax.data.broken import Batch
from gw_jax.data.loader import BatchReader
from gw_jax.data.shards import ProcessShard
from gw_jax.detection.data.canvases import CanvasOrder, EvalCanvasOrder
from gw_jax.detection.data.examples import EvalSceneExamples, SceneExamples
from gw_jax.errors import DataError


class SceneBatches(Batches, Iterator[Batch]):
    """Training batches of this process, to the end of the run.

    ``image`` uint8 RGB ``[b, h, w, 3]`` on the canvas of the batch, ``size`` int32 ``[b, 2]`` with heights and widths of
    the resized images, and the arrays of :func:`gw_jax.detection.pad_targets`.

    An image that cannot be read is named on standard error, counted, and replaced by the next of the same canvas. One of
    several processes that has failed continues with images of noise, of the canvas that the other processes have.

    Args:
        source: random access to the scenes to train on.
        sizes: heights and widths after the resize, int32 ``[n, 2]``; or after several, ``[k, n, 2]``, of which one is drawn
            for each image of each batch.
        order: canvases and scenes of the batches.
        num_epochs: length of the run.
        seed: decides what is mirrored, and which size is drawn.
        num_classes: with the background.
        max_objects: to which objects are padded.
        max_edges: to which the edges of an object are padded; None without a mask head.
        flip: whether images are mirrored with probability 0.5.
        process_index: which of the processes this is.
        process_count: number of processes; divides the batch.
        num_threads: reading and decoding threads, per worker if there are any.
        num_workers: reading and decoding processes; 0 leaves the work to threads of this one.
        max_broken: images that may be broken, per process; one more ends the run.

    Raises:
        DataError: from ``next``, in a single process: whatever ends the reading (see :attr:`failure`).
    """

    def __init__(
        self,
        source: Sequence[Any],
        sizes: np.ndarray,
        order: CanvasOrder,
        *,
        num_epochs: int,
        seed: int,
        num_classes: int,
        max_objects: int,
        max_edges: int | None,
        flip: bool = True,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
        num_workers: int = 0,
        max_broken: int = 10,
    ):
        shard = ProcessShard.of(order.batch_size, process_index, process_count)
        self._order, self._shard = order, shard
        self._load = SceneExamples(
            source=source,
            sizes=sizes.reshape(-1, len(source), 2),
            order=order,
            shard=shard,
            seed=seed,
            flip=flip,
            num_classes=num_classes,
            max_objects=max_objects,
            max_edges=max_edges,
        )
        reader = BatchReader(
            self._load,
            shard.size,
            order.steps_per_epoch * num_epochs,
            cyclic=False,
            num_threads=num_threads,
            num_workers=num_workers,
            chunk=1,
        )
        super().__init__(source, reader, max_broken=max_broken, process_count=process_count)
        self._identity: dict[str, Any] = {
            "num_examples": len(source),
            "digest": getattr(source, "digest", None),
            "order": order.identity(),
        }

    def __next__(self) -> Batch:
        return self._read()

    def get_state(self) -> dict[str, Any]:
        """The position in the order and what the order depends on, as JSON values; the same in every process."""
        return {"next_index": self._reader.position, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes at a position that :meth:`get_state` returned.

        Raises:
            DataError: the state is that of another data set or of other canvases, in which the same position stands for
                other images.
        """
        check_identity(state, self._identity)
        if state["order"] != self._identity["order"]:
            raise DataError(
                f"The checkpoint belongs to a run whose batches were {_shown(state['order'])}; here they are "
                f"{_shown(self._identity['order'])}. The same position is another batch. Resume with the configuration of "
                "before, or start a new run in another --workdir."
            )
        self.skip_to(state["next_index"])

    def skip_to(self, step: int) -> None:
        """Continues after ``step`` batches from the start, without reading those."""
        self._reader.seek(step)

    def _substitute(self, position: int, failure: DataError) -> Batch:
        del failure
        return _repeated(self._load.padding(self._order.batch(position)[0]), self._shard.size)


class EvalSceneBatches(Batches):
    """This process's shard of the evaluation: every image once, by canvas.

    ``image`` and ``size`` as in :class:`SceneBatches`; ``original_size`` int32 ``[b, 2]``, heights and widths before the
    resize; ``index`` int32 ``[b]``, of the scene in ``source``; ``mask`` bool ``[b]``, whether the image counts.

    The last batch of each canvas is padded with images of ``index`` -1, whose mask is false. An image that cannot be read
    is named and counted; it keeps its ``index`` and its mask is false, so that it can be reported as one without
    detections. Every pass gives the same batches, and every process gets the same number of them. Workers stay alive
    between two passes. Arguments and errors are those of :class:`SceneBatches`.
    """

    def __init__(
        self,
        source: Sequence[Any],
        sizes: np.ndarray,
        order: EvalCanvasOrder,
        *,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
        num_workers: int = 0,
        max_broken: int = 10,
    ):
        shard = ProcessShard.of(order.batch_size, process_index, process_count)
        self._order, self._shard = order, shard
        self._load = EvalSceneExamples(source=source, sizes=sizes, order=order, shard=shard)
        reader = BatchReader(
            self._load,
            shard.size,
            order.num_batches,
            cyclic=num_workers > 0,
            num_threads=num_threads,
            num_workers=num_workers,
            chunk=1,
        )
        super().__init__(source, reader, max_broken=max_broken, process_count=process_count)

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the scenes."""
        self._reader.seek(0)
        for _ in range(self._reader.num_batches):
            batch = self._read()
            yield batch if self.failure is None else {**batch, "mask": np.zeros_like(batch["mask"])}

    def _substitute(self, position: int, failure: DataError) -> Batch:
        del failure
        return _repeated(self._load.padding(self._order.batch(position)[0]), self._shard.size)


def _repeated(example: Batch, count: int) -> Batch:
    return {name: np.stack([value] * count) for name, value in example.items() if name != "broken"}


def _shown(order: dict[str, Any]) -> str:
    """The order of :meth:`CanvasOrder.identity` in a message."""
    return (
        f"{order['batch_size']} images on the canvases {order['canvases']} (seed {order['seed']}, assignment "
        f"{order['assigned']})"
    )
