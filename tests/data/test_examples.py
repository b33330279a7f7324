"""Labels that are missing or outside the classes, and what a run on several processes does about a failure."""

import itertools

import numpy as np
import pytest

from gw_jax.data import EvalBatches, TrainBatches
from gw_jax.data.datasets import Records
from gw_jax.errors import DataError

COUNT = 24


def labelled(labels):
    """Examples whose image holds their index."""
    examples = [{"image": np.full((2, 2, 1), index, np.uint8), "label": label} for index, label in enumerate(labels)]
    return Records(examples, "ten_classes", "train")


def with_label(label, index=17):
    labels = [i % 10 for i in range(COUNT)]
    labels[index] = label
    return labelled(labels)


def train(source, **options):
    return TrainBatches(source, **{"batch_size": 8, "num_epochs": 2, "seed": 0, "num_classes": 10, **options})


def evaluate(source, **options):
    return EvalBatches(source, **{"batch_size": 8, "num_classes": 10, **options})


@pytest.mark.parametrize(
    ("read", "label", "num_workers"),
    [
        (train, 10, 0),
        (train, -2, 0),
        (evaluate, 10, 0),
        (evaluate, -2, 0),
        pytest.param(train, 10, 1, marks=pytest.mark.slow),
    ],
)
def test_a_label_outside_the_classes_is_named(read, label, num_workers):
    message = rf"example 17 of ten_classes/train has the label {label}; its set has integers from 0 to 9, and -1"
    with pytest.raises(DataError, match=message):
        list(read(with_label(label), num_workers=num_workers))


@pytest.mark.parametrize("read", [train, evaluate])
@pytest.mark.parametrize("label", [1 << 32, 3.0, "cat", None, np.float32(2.0)])
def test_an_invalid_label_is_named_also_without_a_number_of_classes(read, label):
    with pytest.raises(DataError, match=r"example 17 of ten_classes/train has the label .*; its set has integers from 0"):
        list(read(with_label(label), num_classes=None))


def test_training_on_an_unlabelled_example_is_refused():
    with pytest.raises(DataError, match=r"example 17 of ten_classes/train has the label -1, which means none"):
        list(train(with_label(-1)))


def test_unlabelled_examples_do_not_count_in_evaluation():
    (first, *_, last) = batches = list(evaluate(labelled([-1, 3, *range(9), -1])))
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [False] + 10 * [True] + 5 * [False]
    assert min(batch["label"].min() for batch in batches) == 0
    assert first["image"].shape == last["image"].shape == (8, 2, 2, 1)


def test_answers_outside_the_classes_are_named():
    examples = [
        {"image": np.zeros((2, 2, 1), np.uint8), "original_label": 1, "real_label": [2, wrong]} for wrong in (3, -1)
    ]
    with pytest.raises(DataError, match=r"example 1 of real/test has the label -1; its set has integers from 0 to 9"):
        list(evaluate(Records(examples, "real", "test")))


def test_the_number_of_classes_of_the_source_is_the_default():
    source = with_label(10)
    source.num_classes = 10
    for read in (train, evaluate):
        with pytest.raises(DataError, match="has the label 10"):
            list(read(source, num_classes=None))


class Unreadable(list):
    def __getitem__(self, index):
        if index in (3, 17):
            raise OSError("checksum mismatch")
        return super().__getitem__(index)


def broken():
    return Records(Unreadable(with_label(0)), "ten_classes", "train")


@pytest.mark.parametrize(("source", "message"), [(with_label(-1), "label -1"), (broken(), "1 examples cannot be read")])
def test_one_of_several_processes_keeps_its_failure_and_yields_batches(source, message):
    """The others take the same number of steps, so that all can agree to stop."""
    whole = list(train(labelled([0] * COUNT)))
    failures = []
    for process in range(2):
        batches = train(source, process_index=process, process_count=2, max_broken=0)
        found = list(batches)
        assert len(found) == len(whole)
        assert {batch["image"].shape for batch in found} == {(4, 2, 2, 1)}
        assert batches.get_state()["next_index"] == len(whole)
        failures.append(batches.failure)
        with pytest.raises(StopIteration):
            next(batches)
    # Two epochs show every example to one of the processes at least.
    assert any(failure is not None and message in str(failure) for failure in failures)
    with pytest.raises(DataError, match=message):
        list(train(source, max_broken=0))


def test_a_failure_in_the_first_batch_still_gives_batches():
    order = [label for batch in train(labelled(range(COUNT)), num_classes=None) for label in batch["image"][:, 0, 0, 0]]
    batches = train(with_label(99, index=int(order[1])), process_index=0, process_count=2)
    first = next(batches)
    assert "label 99" in str(batches.failure)
    assert first["image"].shape == (4, 2, 2, 1)
    assert (first["label"] < 10).all()


def test_an_unlabelled_set_fails_at_once_in_every_process():
    for process in range(2):
        batches = train(labelled([-1] * COUNT), process_index=process, process_count=2)
        with pytest.raises(DataError, match="label -1"):
            next(batches)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_after_a_failure_one_of_several_processes_yields_masked_evaluation_batches(num_workers):
    batches = evaluate(with_label(12, index=9), process_index=0, process_count=2, num_workers=num_workers)
    for _ in range(2):
        masks = [batch["mask"].tolist() for batch in batches]
        assert masks[-2:] == 2 * [4 * [False]]
        assert len(masks) == 3
    assert "example 9 of ten_classes/train has the label 12" in str(batches.failure)
    batches.close()


@pytest.mark.parametrize("read", [train, evaluate])
def test_arrays_that_are_no_images_name_the_set(read):
    source = Records([{"image": np.zeros((4, 4, 1), np.float32), "label": 0}] * COUNT, "floats", "train")
    with pytest.raises(
        DataError, match=r"example \d+ of floats/train cannot be used: arrays of type float32 have no known"
    ):
        next(itertools.chain(read(source)))


@pytest.mark.parametrize("read", [train, evaluate])
def test_running_out_of_memory_breaks_no_example(read):
    class Huge(list):
        def __getitem__(self, index):
            raise MemoryError

    batches = read(Records(Huge(range(COUNT)), "huge", "train"))
    with pytest.raises(DataError, match=r"Memory ran out while example \d+ of huge/train was decoded. Lower config.data"):
        list(batches)
    assert batches.broken.indices == set()


@pytest.mark.parametrize("read", [train, evaluate])
def test_a_batch_that_processes_cannot_share_is_refused(read):
    with pytest.raises(ValueError, match="A batch of 8 examples cannot be divided among 3 processes"):
        read(with_label(0), process_count=3)
