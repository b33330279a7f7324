import collections
import io

import chex
import numpy as np
import pytest
from PIL import Image

from gw_jax.data import EvalBatches, TrainBatches
from gw_jax.data.datasets import Records
from gw_jax.data.images import Transform
from gw_jax.errors import DataError
from tests.helpers.imagenet import examples

COUNT = 40
CROPS = Transform(size=16, crop=True, eval_resize=20)


class Unreadable(list):
    """Examples of which those at ``broken`` raise what readers raise."""

    def __init__(self, whole, broken):
        super().__init__(whole)
        self.broken = broken

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("DataLoss: checksum mismatch")
        return super().__getitem__(index)


def damaged(broken, how):
    """The examples, of which those at ``broken`` are damaged."""
    source = examples(COUNT)
    for index in broken:
        file = source[index]["image"]
        if how == "truncated":
            source[index]["image"] = file[: len(file) // 2]
        elif how == "corrupt":
            source[index]["image"] = bytes(20) + file[20:]
        elif how == "empty":
            source[index]["image"] = b""
    return Records(Unreadable(source, broken) if how == "unreadable" else source, "imagenet2012", "train")


def train(source, **options):
    options = {"batch_size": 8, "num_epochs": 3, "seed": 0, "transform": CROPS, **options}
    return list(TrainBatches(source, **options))


def evaluate(source, **options):
    return list(EvalBatches(source, batch_size=16, transform=CROPS, **options))


def joined(batches, field):
    return np.concatenate([batch[field] for batch in batches])


def warnings(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: example")]


def test_the_damaged_files_are_what_they_should_be():
    for how in ("truncated", "corrupt", "empty"):
        with pytest.raises(OSError):
            Image.open(io.BytesIO(damaged([5], how)[5]["image"])).load()
    with pytest.raises(OSError):
        damaged([5], "unreadable")[5]


@pytest.mark.parametrize("how", ["truncated", "corrupt", "empty", "unreadable"])
def test_training_substitutes_the_next_example_and_changes_no_other(capsys, how):
    # Neighbours, and the last one, after which comes the first.
    broken = [5, 6, 30, 39]
    whole, repaired = train(damaged([], how)), train(damaged(broken, how))
    labels, images = joined(whole, "label"), joined(whole, "image")
    others = ~np.isin(labels, broken)
    assert collections.Counter(labels.tolist()) == dict.fromkeys(range(COUNT), 3)
    assert np.array_equal(joined(repaired, "label")[others], labels[others])
    assert np.array_equal(joined(repaired, "image")[others], images[others])
    readable = {index: next(i % COUNT for i in range(index, 2 * COUNT) if i % COUNT not in broken) for index in broken}
    assert joined(repaired, "label")[~others].tolist() == [readable[label] for label in labels[~others].tolist()]
    names = {line.split(" cannot ")[0] for line in warnings(capsys)}
    file_names = {i: "" if how == "unreadable" else f" (n{i:08d}_1.JPEG)" for i in broken}
    assert names == {f"warning: example {i} of imagenet2012/train{file_names[i]}" for i in broken}


def test_an_example_is_named_once_and_counted_once(capsys):
    batches = TrainBatches(damaged([5, 6], "corrupt"), batch_size=8, num_epochs=3, seed=0, transform=CROPS, max_broken=2)
    assert len(list(batches)) == 15
    first, second = warnings(capsys)
    why = "UnidentifiedImageError: no image in one of the formats JPEG, PNG, GIF, BMP, WEBP, TIFF, PPM"
    assert first.endswith(f"cannot be read or decoded ({why}) and was skipped (1 so far).")
    assert second.endswith("(2 so far).")
    assert batches.broken.indices == {5, 6}


def test_batches_have_no_fields_beside_those_of_training_and_evaluation():
    source = damaged([5], "corrupt")
    assert {frozenset(batch) for batch in train(source)} == {frozenset({"image", "label"})}
    assert {frozenset(batch) for batch in evaluate(source)} == {frozenset({"image", "label", "mask"})}


@pytest.mark.parametrize("how", ["truncated", "corrupt", "empty", "unreadable"])
def test_evaluation_omits_a_broken_example_and_changes_no_other(capsys, how):
    # The first, which also fills up the last batch, its neighbour, another and the last one.
    broken = [0, 1, 17, 39]
    whole, repaired = evaluate(damaged([], how)), evaluate(damaged(broken, how))
    expected = np.zeros(48, bool)
    expected[[index for index in range(COUNT) if index not in broken]] = True
    assert joined(whole, "mask").sum() == COUNT
    assert np.array_equal(joined(repaired, "mask"), expected)
    for field in ("image", "label"):
        chex.assert_trees_all_equal(joined(repaired, field)[expected], joined(whole, field)[expected])
    assert len(warnings(capsys)) == len(broken)


def test_a_broken_example_that_pads_a_batch_is_not_reported(capsys):
    batches = EvalBatches(damaged([0], "corrupt"), batch_size=16, transform=CROPS, process_index=1, process_count=2)
    # The last of the three batches has 8 examples, all of the first process.
    assert joined(list(batches), "mask").tolist() == [True] * 16 + [False] * 8
    assert batches.broken.indices == set()
    assert warnings(capsys) == []


def test_two_passes_name_an_example_once(capsys):
    batches = EvalBatches(damaged([5], "truncated"), batch_size=16, transform=CROPS)
    assert [int(joined(list(batches), "mask").sum()) for _ in range(2)] == [39, 39]
    (line,) = warnings(capsys)
    assert "example 5 of imagenet2012/train (n00000005_1.JPEG) cannot be read" in line


@pytest.mark.parametrize("read", [train, evaluate])
def test_more_than_the_allowed_number_end_the_run(read):
    assert read(damaged([5, 6, 30], "corrupt"), max_broken=3)
    with pytest.raises(DataError, match=r"^3 examples cannot be read .*config.data.max_broken=2 are allowed"):
        read(damaged([5, 6, 30], "corrupt"), max_broken=2)
    with pytest.raises(DataError, match=r"^1 examples .*max_broken=0"):
        read(damaged([17], "corrupt"), max_broken=0)


def test_a_source_without_names_gives_the_index(capsys):
    source = examples(COUNT)
    source[7]["image"] = b"no image"
    train(source)
    (line,) = warnings(capsys)
    assert line.startswith("warning: example 7 cannot be read")


@pytest.mark.parametrize("read", [train, evaluate])
def test_a_source_of_which_nothing_can_be_read_ends_the_run(read):
    with pytest.raises(DataError, match=r"None of the examples from \d+ on can be read .*UnidentifiedImageError"):
        read(damaged(range(COUNT), "corrupt"))
