"""Data sets and batches. Heavy packages are imported inside the functions that need them."""

from gw_jax.data.datasets import Dataset, open_dataset
from gw_jax.data.pipeline import EvalBatches, TrainBatches
from gw_jax.data.specs import DatasetSpec

__all__ = ["Dataset", "DatasetSpec", "EvalBatches", "TrainBatches", "open_dataset"]
