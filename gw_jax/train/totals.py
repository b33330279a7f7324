"""Means of training metrics over windows of steps and over epochs."""

import math

Values = dict[str, tuple[float, float]]


class Totals:
    """Adds up the metrics of steps, each a pair (total, count), for two kinds of means.

    Args:
        pending: metrics of the steps since the last line, from :attr:`pending` of a checkpoint.
        epoch: sums over the epoch so far, from :attr:`epoch`.

    Attributes:
        pending: metrics of each step since the last line, as JSON values.
        epoch: sums over the steps of the epoch so far, as JSON values.
    """

    def __init__(
        self, pending: list[dict[str, list[float]]] | None = None, epoch: dict[str, list[float]] | None = None
    ) -> None:
        self.pending = list(pending or [])
        self.epoch = dict(epoch or {})

    def add(self, values: Values) -> None:
        """Adds the metrics of one step."""
        self.pending.append({name: list(pair) for name, pair in values.items()})
        for name, (total, count) in values.items():
            before = self.epoch.get(name, [0.0, 0.0])
            self.epoch[name] = [before[0] + total, before[1] + count]

    def read(self, *, of_epoch: bool) -> dict[str, float]:
        """The means since the last call, or of the epoch, which then begins anew. "loss" is first, "grad_norm" last.

        A metric whose count is zero, such as one of no example at all, is left out.
        """
        if of_epoch:
            sums = self.epoch
        else:
            names = dict.fromkeys(name for step in self.pending for name in step)
            sums = {
                name: [math.fsum(step[name][i] for step in self.pending if name in step) for i in range(2)]
                for name in names
            }
        self.pending = []
        if of_epoch:
            self.epoch = {}
        order = sorted(sums, key=lambda name: (name != "loss", name == "grad_norm"))
        return {name: sums[name][0] / sums[name][1] for name in order if sums[name][1]}
