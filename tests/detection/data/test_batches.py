"""Batches of scenes: contents, mirror images, resume, processes, workers, and images that cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image

from gw_jax.data.decoding import open_image
from gw_jax.detection import pad_targets
from gw_jax.detection.data.batches import EvalSceneBatches, SceneBatches
from gw_jax.detection.data.canvases import CanvasOrder, EvalCanvasOrder
from gw_jax.detection.data.resize import target_sizes
from gw_jax.errors import DataError
from tests.detection.fake_scenes import FakeRecords, records, scene

CANVASES = ((64, 96), (96, 64))
SIDES = (60, 96)


def train(source=None, *, canvases=CANVASES, batch_size=2, seed=0, sides=SIDES[:1], **changes):
    source = records() if source is None else source
    sizes = np.stack([target_sizes(source.sizes, side, SIDES[1]) for side in sides])
    options = {"num_epochs": 3, "num_classes": 3, "max_objects": 3, "max_edges": 8, **changes}
    return SceneBatches(source, sizes, CanvasOrder(sizes.max(0), canvases, batch_size, seed), seed=seed, **options)


def evaluate(source=None, batch_size=4, **options):
    source = records(7, 5) if source is None else source
    sizes = target_sizes(source.sizes, *SIDES)
    return EvalSceneBatches(source, sizes, EvalCanvasOrder(sizes, CANVASES, batch_size), **options)


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def joined(parts):
    """The batches of all processes."""
    return [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]} for batch in zip(*parts, strict=True)
    ]


def test_a_batch_is_its_scenes_resized_and_padded():
    source = records()
    made = train(source, flip=False)
    order = CanvasOrder(made._load.sizes[0], CANVASES, 2, 0)
    for position in range(order.steps_per_epoch):
        batch, (canvas, indices) = next(made), order.batch(position)
        assert batch["image"].shape == (2, *canvas, 3)
        scenes = [source[index] for index in indices]
        ratio = 60 / 48
        expected = pad_targets(
            [each.boxes * ratio for each in scenes],
            [each.labels for each in scenes],
            [[[part * ratio for part in parts] for parts in each.polygons] for each in scenes],
            num_classes=3,
            max_objects=3,
            max_edges=8,
        )
        assert batch.keys() == {"image", "size", *expected}
        for name, array in expected.items():
            np.testing.assert_allclose(batch[name], array, rtol=1e-6, err_msg=name)
            assert batch[name].dtype == array.dtype
        for row, each in enumerate(scenes):
            size = (60, 90) if each.width == 72 else (90, 60)
            assert batch["size"][row].tolist() == list(size)
            pixels = open_image(each.image, 3).resize(size[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(batch["image"][row, : size[0], : size[1]], np.asarray(pixels))
            assert not batch["image"][row, size[0] :].any()
            assert not batch["image"][row, :, size[1] :].any()


def test_half_of_the_images_are_mirrored_with_their_objects():
    plain, flipped = list(train(flip=False, num_epochs=8)), list(train(num_epochs=8))
    count = 0
    for a, b in zip(plain, flipped, strict=True):
        for row, (_, width) in enumerate(a["size"].tolist()):
            if np.array_equal(a["image"][row], b["image"][row]):
                np.testing.assert_array_equal(a["boxes"][row], b["boxes"][row])
                np.testing.assert_array_equal(a["edges"][row], b["edges"][row])
                continue
            count += 1
            np.testing.assert_array_equal(a["image"][row, :, :width], b["image"][row, :, :width][:, ::-1])
            present = a["present"][row]
            np.testing.assert_allclose(b["boxes"][row, present, 0], width - 1 - a["boxes"][row, present, 2], atol=1e-4)
            np.testing.assert_allclose(b["boxes"][row, present, 2], width - 1 - a["boxes"][row, present, 0], atol=1e-4)
            used = a["parts"][row] >= 0
            np.testing.assert_allclose(b["edges"][row][used][:, 0], width - 1 - a["edges"][row][used][:, 0], atol=1e-4)
            np.testing.assert_array_equal(b["edges"][row][used][:, 1], a["edges"][row][used][:, 1])
    total = 2 * len(plain)
    assert 0.3 * total < count < 0.7 * total


def test_sizes_are_drawn_by_position():
    sides = (30, 45, 60)
    drawn, plain = list(train(sides=sides, num_epochs=8)), list(train(num_epochs=8))
    counts = dict.fromkeys(sides, 0)
    for small, large in zip(drawn, plain, strict=True):
        # The same images on the same canvases.
        assert small["image"].shape == large["image"].shape
        np.testing.assert_array_equal(small["labels"], large["labels"])
        for row, (height, width) in enumerate(small["size"].tolist()):
            counts[min(height, width)] += 1
            ratio = small["size"][row] / large["size"][row]
            expected = large["boxes"][row].reshape(-1, 2, 2) * ratio[::-1]
            # A mirrored box has its ends at width - 1 - x.
            np.testing.assert_allclose(small["boxes"][row].reshape(-1, 2, 2), expected, atol=1)
            assert not small["image"][row, height:].any()
    assert min(counts.values()) > len(drawn) / 3
    resumed = train(sides=sides, num_epochs=8)
    resumed.skip_to(7)
    assert_same(resumed, drawn[7:])
    one, other = (train(sides=sides, num_epochs=8, process_index=index, process_count=2) for index in (0, 1))
    assert_same(joined([one, other]), drawn)


def test_without_a_mask_head_there_are_no_polygons():
    assert next(train(max_edges=None)).keys() == {"image", "size", "boxes", "labels", "present"}


def test_objects_without_area_after_the_resize_are_left_out():
    tiny = scene(0, 120, 800, objects=1)
    tiny = tiny._replace(
        boxes=np.array([[799.0 - 1e-6, 5, 799, 9], [10, 10, 100, 100]]),
        labels=np.array([1, 2], np.int32),
        polygons=tiny.polygons * 2,
    )
    batch = next(train(FakeRecords([tiny, tiny]), flip=False))
    assert batch["present"].tolist() == [[True, False, False]] * 2
    assert batch["labels"][0, 0] == 2
    empty = tiny._replace(boxes=tiny.boxes[:1], labels=tiny.labels[:1], polygons=tiny.polygons[:1])
    assert not next(train(FakeRecords([empty, empty]), flip=False))["present"].any()


@pytest.mark.parametrize("consumed", [0, 1, 5, 11])
def test_a_resume_is_exact_on_any_number_of_processes(consumed):
    whole = list(train())
    assert len(whole) == 15
    before = train(process_index=1, process_count=2)
    for _ in range(consumed):
        next(before)
    state = json.loads(json.dumps(before.get_state()))
    parts = [train(process_index=index, process_count=2) for index in range(2)]
    single = train(num_threads=3)
    for each in (*parts, single):
        each.set_state(state)
    assert_same(single, whole[consumed:])
    assert_same(joined(parts), whole[consumed:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": records(8, 4)}, "run on 11 examples of a data set with the digest 0123; this set has 12"),
        ({"canvases": (*CANVASES, (64, 64))}, r"were 2 images on the canvases 64x96, 96x64 \(seed 0.*here.*96x64, 64x64"),
        ({"batch_size": 3}, "were 2 images on .*; here they are 3 images"),
        ({"seed": 1}, r"seed 0, .* here .*seed 1,"),
        ({"source": FakeRecords(reversed(records()))}, "The same position is another batch"),
    ],
)
def test_a_state_of_other_data_or_canvases_is_refused(changes, message):
    state = json.loads(json.dumps(train().get_state()))
    with pytest.raises(DataError, match=message):
        train(**changes).set_state(state)


@pytest.mark.slow  # Processes that import JAX.
def test_workers_read_what_threads_read():
    with_workers = train(num_workers=1, num_epochs=1)
    assert_same(with_workers, train(num_epochs=1))
    with_workers.close()
    once = list(evaluate())
    again = evaluate(num_workers=1)
    assert_same(again, once)
    assert_same(again, once)
    again.close()


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_evaluation_has_every_image_once(process_count):
    source = records(7, 5)
    batches = joined([list(evaluate(source, process_index=i, process_count=process_count)) for i in range(process_count)])
    seen = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert sorted(seen[mask].tolist()) == list(range(12))
    assert set(seen[~mask].tolist()) == {-1}
    for batch in batches:
        assert batch["image"].shape[1:3] in CANVASES
        assert (batch["index"].dtype, batch["mask"].dtype) == (np.int32, bool)
        for row in np.flatnonzero(batch["mask"]):
            original = source.sizes[batch["index"][row]]
            assert batch["original_size"][row].tolist() == original.tolist()
            assert batch["size"][row].tolist() == list((60, 90) if original[1] == 72 else (90, 60))
    assert_same(batches, evaluate(source))


def test_a_broken_training_image_is_named_and_replaced_by_one_of_the_same_canvas(capsys):
    broken = [0, 1, 10]
    made = train(records(broken=broken), flip=False)
    repaired, whole = list(made), list(train(flip=False))
    changed = [not np.array_equal(a["image"], b["image"]) for a, b in zip(repaired, whole, strict=True)]
    assert any(changed)
    assert not all(changed)
    assert {a["image"].shape for a in repaired} == {b["image"].shape for b in whole}
    assert made.broken.indices <= set(broken)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(made.broken.indices)
    assert all(" of fake cannot be read or decoded (" in line for line in lines)
    with pytest.raises(DataError, match=r"config.data.max_broken=0 are allowed"):
        list(train(records(broken=broken), max_broken=0))
    with pytest.raises(DataError, match="None of the examples from"):
        list(train(records(broken=range(11)), max_broken=100))


def test_a_broken_evaluation_image_keeps_its_index_and_does_not_count(capsys):
    repaired, whole = list(evaluate(records(7, 5, broken=[3]))), list(evaluate())
    for a, b in zip(repaired, whole, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["mask"], b["mask"] & (b["index"] != 3))
        np.testing.assert_array_equal(a["image"][a["mask"]], b["image"][a["mask"]])
    assert "image 24 of fake cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("make", [train, evaluate])
def test_one_of_several_processes_continues_on_the_same_canvases_after_a_failure(make, capsys):
    source = records(7, 5, broken=range(12))
    failed = make(source, max_broken=0, process_index=0, process_count=2)
    other = make(records(7, 5), process_index=1, process_count=2)
    pairs = list(zip(failed, other, strict=True))
    assert isinstance(failed.failure, DataError)
    for a, b in pairs:
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype)
        assert not a.get("mask", np.zeros(1)).any()
        assert not a.get("present", np.zeros(1)).any()
    with pytest.raises(DataError):
        list(make(source, max_broken=0))


def test_objects_beyond_the_limits_are_named():
    with pytest.raises(DataError, match=r"image \d+ of fake cannot be trained on: .*max_objects=1; choose a larger"):
        list(train(max_objects=1))
