"""Data sets, batches and augmentation. Heavy packages are imported inside the functions that need them."""

from gw_jax.data.datasets import Dataset, open_dataset
from gw_jax.data.pipeline import TrainBatches, eval_batches
from gw_jax.data.specs import DatasetSpec

__all__ = ["Dataset", "DatasetSpec", "TrainBatches", "eval_batches", "open_dataset"]
