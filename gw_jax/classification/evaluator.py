"""Top-k accuracy and cross-entropy of a classifier over a split."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gw_jax.errors import DataError
from gw_jax.train.task import Batch


def batch_sums(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Sums over the examples that ``batch["mask"]`` counts: ``loss``, ``top1``, ``top5`` and ``count``.

    Args:
        logits: ``[n, num_classes]``; with fewer than 5 classes, top-5 is top-k with all of them.
        batch: ``label`` int32 ``[n]`` and ``mask`` bool ``[n]``. Where it has ``labels``, bool ``[n, num_classes]``,
            several classes are right: any of them is a hit, and the loss is the mean over them.
    """
    labels, mask = batch["label"], batch["mask"]
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    if "labels" in batch:
        right = batch["labels"]
        targets = right / jnp.maximum(right.sum(-1, keepdims=True), 1).astype(logits.dtype)
        loss = optax.softmax_cross_entropy(logits, targets)
        hits = jnp.take_along_axis(right, best, -1)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = best == labels[:, None]
    return {
        # Selected, not multiplied: 0 times an infinite loss is not 0.
        "loss": jnp.where(mask, loss, 0).sum(),
        "top1": (hits[:, 0] & mask).sum(),
        "top5": (hits.any(-1) & mask).sum(),
        "count": mask.sum(),
    }


class TopKEvaluator:
    """Adds up :func:`batch_sums` of every batch; the sums of a batch are made on the devices."""

    def __init__(self) -> None:
        self._sums: list[dict[str, jax.Array]] = []

    def add(self, outputs: dict[str, jax.Array]) -> None:
        """Adds the sums of a batch."""
        self._sums.append(outputs)

    def result(self) -> dict[str, Any]:
        """``eval/loss``, ``eval/top1``, ``eval/top5``, means over ``eval/count`` examples.

        Raises:
            DataError: no example counts.
        """
        arrived = jax.device_get(self._sums)
        totals = {name: math.fsum(sums[name].item() for sums in arrived) for name in ("loss", "top1", "top5", "count")}
        if not totals["count"]:
            raise DataError("No example of the evaluation split counts: none could be read, or none has a label.")
        count = int(totals["count"])
        return {**{f"eval/{name}": totals[name] / count for name in ("loss", "top1", "top5")}, "eval/count": count}
