"""Small TFDS data sets, prepared in a moment."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def write_set(name, directory, features, examples, splits=("train", "test"), version="1.0.0"):
    """Prepares a small TFDS set under ``directory``."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, description=name, features=tfds.features.FeaturesDict(features))

    def generate(self, split):
        yield from enumerate(examples)

    members = {
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": lambda self, dl_manager: {split: self._generate_examples(split) for split in splits},
        "_generate_examples": generate,
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=directory, file_format="array_record").download_and_prepare()


def png(shape, seed=0):
    buffer = io.BytesIO()
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(array[..., 0] if shape[-1] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def labelled(shape, classes):
    return {
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }
