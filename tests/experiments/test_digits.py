"""The digits of the experiments are those of the data set ``mnist5k``, and its parts do not mix."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments.digits import load_digits


@pytest.mark.slow
def test_the_parts_are_disjoint_and_balanced():
    digits = load_digits()
    assert (len(digits.train), len(digits.test), len(digits.validation)) == (4000, 1000, 500)
    assert not np.intersect1d(digits.train, digits.test).size
    assert np.isin(digits.validation, digits.train).all()
    assert not np.intersect1d(digits.train_without_validation, digits.validation).size
    for members in (digits.train, digits.test, digits.validation, digits.train_sample, digits.train_without_validation):
        assert len(set(np.bincount(digits.labels[members], minlength=10))) == 1
    assert (digits.images.min(), digits.images.max()) == (-1, 1)


@pytest.mark.slow
def test_the_split_is_that_of_the_data_set(data_dir):
    from gw_jax.data.datasets import open_dataset

    digits, dataset = load_digits(), open_dataset("mnist5k", data_dir)
    for source, members in ((dataset.train, digits.train), (dataset.evaluation, digits.test)):
        theirs = sorted(
            (int(x["label"]), Image.open(io.BytesIO(x["image"])).tobytes()) for x in (source[i] for i in range(len(source)))
        )
        pixels = np.round((digits.images[members] + 1) * 127.5).astype(np.uint8)
        ours = sorted((int(y), x.tobytes()) for x, y in zip(pixels, digits.labels[members], strict=True))
        assert theirs == ours
