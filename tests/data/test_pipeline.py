import json

import chex
import numpy as np
import pytest
from PIL import Image

from gw_jax.data import EvalBatches, TrainBatches
from gw_jax.data.images import Transform
from gw_jax.errors import DataError


class Source:
    """Random access to numbered examples: the label is the index."""

    def __init__(self, count, shape=(2, 2, 1)):
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": np.full(self.shape, index % 256, np.uint8), "label": index}


def labels(batches, count):
    return [next(batches)["label"].tolist() for _ in range(count)]


def train(source, **options):
    return TrainBatches(source, **{"batch_size": 8, "num_epochs": 3, "seed": 0, **options})


def test_an_epoch_shows_every_example_at_most_once_in_an_order_of_its_own():
    batches = train(Source(50))
    assert batches.steps_per_epoch == 6
    epochs = [[label for batch in labels(batches, 6) for label in batch] for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 48
        assert set(epoch) <= set(range(50))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])
    with pytest.raises(StopIteration):
        next(batches)


def test_batches_are_uint8_images_and_int32_labels():
    batch = next(train(Source(50)))
    chex.assert_shape([batch["image"], batch["label"]], [(8, 2, 2, 1), (8,)])
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    assert (batch["image"][:, 0, 0, 0] == batch["label"]).all()


def test_the_seed_decides_the_order():
    first = labels(train(Source(50)), 12)
    assert labels(train(Source(50), num_threads=5), 12) == first
    assert labels(train(Source(50), seed=1), 12) != first


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_batches_of_one(process_count):
    whole = labels(train(Source(50)), 18)
    parts = [labels(train(Source(50), process_index=i, process_count=process_count), 18) for i in range(process_count)]
    assert [[label for part in batch for label in part] for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("consumed", [0, 1, 5, 6, 13])
def test_resumes_exactly_on_any_number_of_processes(consumed):
    whole = labels(train(Source(50)), 18)
    before = train(Source(50), process_index=1, process_count=2)
    labels(before, consumed)
    state = json.loads(json.dumps(before.get_state()))
    after = train(Source(50))
    after.set_state(state)
    assert labels(after, 18 - consumed) == whole[consumed:]


def test_a_batch_larger_than_the_split_is_named():
    with pytest.raises(DataError, match=r"data.batch_size=8 exceeds the 7 examples"):
        train(Source(7))


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 21])
def test_evaluation_counts_every_example_once(count, process_count):
    seen, sizes = [], set()
    for index in range(process_count):
        batches = list(EvalBatches(Source(count), batch_size=8, process_index=index, process_count=process_count))
        sizes.add(len(batches))
        for batch in batches:
            assert len(batch["label"]) == 8 // process_count
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(count))
    assert sizes == {-(-count // 8)}


class Identified(Source):
    """Examples of a prepared set, which has a digest."""

    def __init__(self, count, digest):
        super().__init__(count)
        self.digest = digest


@pytest.mark.parametrize("other", [Identified(51, "a"), Identified(50, "b"), Source(50)])
def test_a_set_that_was_prepared_anew_is_refused(other):
    state = json.loads(json.dumps(train(Identified(50, "a")).get_state()))
    assert state == {"next_index": 0, "num_examples": 50, "digest": "a"}
    train(Identified(50, "a")).set_state(state)
    with pytest.raises(DataError, match=r"run on 50 examples of a data set with the digest a; .* prepared anew"):
        train(other).set_state(state)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_images_of_different_shapes_are_named(num_threads, batch_size):
    class Varied(Source):
        def __getitem__(self, index):
            return {"image": np.zeros((2, 2 + index // 40, 1), np.uint8), "label": index}

    with pytest.raises(DataError, match=r"differ in shape: \(2, 2, 1\), \(2, 3, 1\). Set config.data.image_size"):
        list(train(Varied(64), batch_size=batch_size, num_threads=num_threads))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_as_pillow_does(channels):
    image = np.random.default_rng(0).integers(0, 256, (9, 14, channels), dtype=np.uint8)

    class Varied(Source):
        def __getitem__(self, index):
            return {"image": image, "label": index}

    batch = next(train(Varied(8), transform=Transform(size=6)))
    pixels = Image.fromarray(image[..., 0] if channels == 1 else image)
    expected = np.asarray(pixels.resize((6, 6), Image.Resampling.BILINEAR)).reshape(6, 6, channels)
    assert (batch["image"] == expected).all()
