"""Orders by canvas: every image at most once per epoch, batches of one canvas, a function of the position."""

import pickle

import numpy as np
import pytest

from gw_jax.detection.data.canvases import CanvasOrder, EvalCanvasOrder, assign_canvases, fitting_canvases
from gw_jax.detection.data.resize import target_sizes
from gw_jax.detection.inputs import choose_canvas
from gw_jax.errors import ConfigError

CANVASES = ((64, 96), (96, 64), (64, 64))
# Height of the canvas and indices of the batches of two epochs.
EXPECTED = [(96, [6, 8]), (64, [4, 3]), (64, [1, 2]), (96, [5, 7]), (64, [3, 4]), (96, [5, 6]), (64, [0, 2]), (96, [7, 8])]


def sizes(count=60):
    kinds = np.array([(64, 90), (90, 64), (50, 60), (64, 96)], np.int32)
    return kinds[np.random.default_rng(0).integers(0, 4, count)]


def order(**changes):
    given = {"sizes": sizes(), "canvases": CANVASES, "batch_size": 4, "seed": 0, **changes}
    return CanvasOrder(given.pop("sizes"), given.pop("canvases"), **given)


def epoch(made, number):
    steps = made.steps_per_epoch
    return [made.batch(position) for position in range(number * steps, (number + 1) * steps)]


def test_the_canvas_is_that_of_single_images():
    rng = np.random.default_rng(0)
    many = rng.integers(1, 97, (200, 2))
    many = many[(many <= 96).all(1) & ((many <= 64).any(1))]
    canvases = (*CANVASES, (96, 64), (32, 96))
    assigned = assign_canvases(many, canvases)
    assert [canvases[place] for place in assigned] == [choose_canvas(*size, canvases) for size in many.tolist()]
    assert assigned.max() == 4
    assert 3 not in assigned  # The first of two equal ones.
    assert assign_canvases(np.array([[96, 96], [64, 96]]), canvases).tolist() == [-1, 0]


def test_an_epoch_has_full_batches_of_one_canvas_and_every_image_at_most_once():
    made = order()
    assigned = assign_canvases(sizes(), CANVASES)
    counts = np.bincount(assigned)
    assert made.steps_per_epoch == (counts // 4).sum() < counts.sum() / 4
    for number in range(3):
        batches = epoch(made, number)
        seen = np.concatenate([indices for _, indices in batches])
        assert len(set(seen.tolist())) == len(seen) == 4 * made.steps_per_epoch
        for canvas, indices in batches:
            assert {CANVASES[place] for place in assigned[indices]} == {canvas}


def test_epochs_differ_and_what_is_left_over_changes():
    made = order()
    epochs = [epoch(made, number) for number in range(12)]
    canvases = [[canvas for canvas, _ in batches] for batches in epochs]
    # Canvases are mixed, and otherwise in each epoch.
    assert canvases[0] != sorted(canvases[0])
    assert canvases[0] != canvases[1] != canvases[2]
    seen = [{*np.concatenate([indices for _, indices in batches]).tolist()} for batches in epochs]
    assert len(set(map(frozenset, seen))) > 6
    assert set.union(*seen) == set(range(60))
    assert str(epoch(order(seed=1), 0)) != str(epochs[0])


def test_a_batch_depends_on_its_position_only():
    whole = [batch for number in range(4) for batch in epoch(order(), number)]
    again = order()
    for position in np.random.default_rng(1).permutation(len(whole)):
        canvas, indices = again.batch(int(position))
        assert canvas == whole[position][0]
        np.testing.assert_array_equal(indices, whole[position][1])
    copy = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(copy.batch(3)[1], whole[3][1])


def test_the_order_is_the_same_in_every_version():
    """Changing these numbers would break the resume of every run."""
    made = CanvasOrder(np.array([[64, 90]] * 5 + [[90, 64]] * 4), CANVASES[:2], batch_size=2, seed=3)
    found = [(canvas[0], indices.tolist()) for canvas, indices in epoch(made, 0) + epoch(made, 1)]
    assert found == EXPECTED


def test_substitutes_have_the_same_canvas_and_go_around_the_end():
    made = order()
    assigned = assign_canvases(sizes(), CANVASES)
    for index in (0, 31, 59):
        after = [place % 60 for place in range(index, index + 60) if assigned[place % 60] == assigned[index]]
        assert list(made.same_canvas(index)) == after


def test_images_of_a_canvas_with_less_than_a_batch_are_counted():
    made = order(sizes=np.array([[64, 90]] * 8 + [[90, 64]] * 3))
    assert made.left_out == {(96, 64): 3}
    assert made.steps_per_epoch == 2
    assert order().left_out == {}
    with pytest.raises(ConfigError, match=r"batch_size=9 fits no canvas: .* 64x96, has 8. Choose a batch of at most 8,"):
        order(sizes=np.array([[64, 90]] * 8 + [[90, 64]] * 3), batch_size=9)


@pytest.mark.parametrize("make", [order, lambda sizes, **_: EvalCanvasOrder(sizes, CANVASES, 4)])
def test_images_larger_than_every_canvas_are_counted_and_the_first_is_named(make):
    given = np.array([[64, 90]] * 8 + [[97, 64], [64, 97]])
    with pytest.raises(ConfigError) as error:
        make(sizes=given)
    assert str(error.value) == (
        "2 of 10 images are larger than every canvas (64x96, 96x64, 64x64) after the resize; the first is image 8 with "
        "97x64 pixels (height x width). Add 64x128, 128x64 to config.canvases, or lower config.data.min_side and "
        "config.data.max_side."
    )
    with pytest.raises(ConfigError, match="the first is no 8 with"):
        CanvasOrder(given, CANVASES, 4, 0, where=lambda index: f"no {index}")


@pytest.mark.parametrize("changes", [{"sizes": sizes()[::-1]}, {"canvases": CANVASES[:2]}, {"batch_size": 5}, {"seed": 1}])
def test_what_the_order_depends_on_identifies_it(changes):
    assert order(**changes).identity() != order().identity() == order().identity()


@pytest.mark.parametrize("count", [1, 7, 60])
def test_evaluation_has_every_image_once(count):
    made = EvalCanvasOrder(sizes(count), CANVASES, 4)
    batches = [made.batch(position) for position in range(made.num_batches)]
    seen = np.concatenate([indices for _, indices in batches])
    assert sorted(seen[seen >= 0].tolist()) == list(range(count))
    assert made.num_batches == sum(-(-n // 4) for n in np.bincount(assign_canvases(sizes(count), CANVASES)).tolist())
    assigned = assign_canvases(sizes(count), CANVASES)
    for canvas, indices in batches:
        assert {CANVASES[place] for place in assigned[indices[indices >= 0]]} == {canvas}


def test_canvases_that_fit_are_tight_and_more_of_them_save_padding():
    rng = np.random.default_rng(0)
    given = np.stack([rng.integers(240, 641, 500), np.full(500, 640)], 1)
    given[::3] = given[::3, ::-1]
    assert fitting_canvases(given) == ((800, 1344), (1344, 800))
    assert fitting_canvases(given[1::3]) == ((800, 1344),)
    assert fitting_canvases(np.array([[48, 64]] * 3), 48, 64) == ((64, 64),)
    areas = []
    for count in (2, 3, 6):
        canvases = fitting_canvases(given, count=count)
        assert len(canvases) == len(set(canvases)) == count
        assigned = assign_canvases(target_sizes(given), canvases)
        assert assigned.min() == 0
        areas.append(np.prod(np.array(canvases)[assigned], 1).sum())
    assert areas[0] > areas[1] > areas[2]
    assert fitting_canvases(np.array([[640, 640]] * 3), count=5) == ((800, 800),)
