"""Batches of a detector that are given as arrays, for tests of its training."""

import numpy as np


class InMemoryBatches:
    """The batches ``[batch, ...]`` in a circle."""

    failure = None

    def __init__(self, batches, rank, size):
        self.batches, self.rank, self.size, self.position = batches, rank, size, 0

    def __next__(self):
        batch = self.batches[self.position % len(self.batches)]
        self.position += 1
        return self.shard(batch)

    def __iter__(self):
        yield from map(self.shard, self.batches)

    def shard(self, batch):
        """This process's images."""
        return {name: np.split(array, self.size)[self.rank] for name, array in batch.items()}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def skip_to(self, step):
        self.position = step

    def close(self):
        pass


class CountingEvaluator:
    """Counts detections: an evaluator that needs no data set."""

    def __init__(self):
        self.images, self.detections = 0, 0

    def add(self, outputs):
        present = np.asarray(outputs["detections"].present)
        self.images += len(present)
        self.detections += int(present.sum())

    def result(self):
        return {"eval/box_ap": self.detections / (100 * self.images), "eval/count": self.images}


class InMemoryData:
    """See :class:`gw_jax.detection.task.DetectionData`."""

    eval_name = None
    name = "arrays"
    scenes = None

    def __init__(self, batches):
        self.batches = batches
        self.steps_per_epoch = len(batches)

    def train_batches(self, num_epochs, process_index, process_count):
        return InMemoryBatches(self.batches, process_index, process_count)

    def eval_batches(self, process_index, process_count):
        return InMemoryBatches(self.batches, process_index, process_count)

    def evaluator(self, workdir=None, step=0):
        return CountingEvaluator()
