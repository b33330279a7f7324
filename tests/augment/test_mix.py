import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.augment.mix import mix, one_hot, random_erasing
from gw_jax.versions import enable_x64
from tests.helpers.sharding import batch_sharding

NUM_KEYS = 2400
HEIGHT, WIDTH = 12, 16


@pytest.fixture(scope="module")
def mixed(quick_compilation):
    """A white and a black image mixed with each of 2400 keys: mixup of alpha 1, CutMix of alpha 0.2.

    The white one's shares of itself ``[keys, h, w]``, its target's ``[keys]``, and the gradient of the sum of the first
    result's pixels ``[keys, 2, h, w]``.
    """

    def first_image(images, key):
        targets = jnp.eye(2, dtype=jnp.float32)
        images, targets = mix(images, targets, key, mixup_alpha=1.0, cutmix_alpha=0.2)
        return images[0].sum(), (images, targets)

    pair = np.broadcast_to(np.float32([[[[1]]], [[[0]]]]), (2, HEIGHT, WIDTH, 1))
    with quick_compilation(), enable_x64(), jax.numpy_dtype_promotion("strict"):
        keys = jax.random.split(jax.random.key(0), NUM_KEYS)
        results = jax.jit(jax.vmap(jax.grad(first_image, has_aux=True), (None, 0)))(pair, keys)
    gradients, (images, targets) = jax.tree.map(np.asarray, results)
    assert {array.dtype for array in (gradients, images, targets)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(images.sum(1), 1, atol=1e-6)  # the second got what the first lost
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(targets[:, 0], targets[:, 1, ::-1], atol=1e-6)
    np.testing.assert_allclose(targets[:, 0, 0], images[:, 0].mean((1, 2, 3)), atol=1e-6)
    return images[:, 0, :, :, 0], targets[:, 0, 0], gradients[..., 0]


def is_blended(shares):
    """Where an image was mixed by mixup: CutMix does not change values of pixels."""
    return ((shares > 0) & (shares < 1)).any((1, 2))


@pytest.fixture(scope="module")
def erased(quick_compilation):
    """A function of the probability: bool ``[n, h, w]`` of what was erased from 2400 images of 40 x 60."""

    @functools.cache
    def erase(probability, height=40, width=60):
        images = jnp.ones((NUM_KEYS, height, width, 1), jnp.bfloat16)
        with quick_compilation():
            result = jax.jit(random_erasing, static_argnums=2)(images, jax.random.key(5), probability)
        assert result.dtype == jnp.bfloat16
        result = np.asarray(result, np.float32)[..., 0]
        assert set(np.unique(result)) <= {0, 1}
        return result == 0

    return erase


def assert_mean(values, mean, standard_deviation):
    assert abs(np.mean(values) - mean) < 4 * standard_deviation / np.sqrt(len(values))


def test_one_hot_smooths_as_torch():
    result = one_hot(jnp.asarray([2, 0], jnp.uint8), 4, 0.1)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)
    np.testing.assert_array_equal(one_hot(jnp.asarray([299, 43], jnp.int32), 300, 0.0), np.eye(300)[[299, 43]])


def test_one_hot_refuses_targets_and_smoothing_above_one():
    with pytest.raises(TypeError, match=r"float32 and shape \(2, 3\); integers \[n\] are needed"):
        one_hot(jnp.zeros((2, 3)), 3, 0.1)
    with pytest.raises(ValueError, match=r"smoothing=1.5; 0 to 1"):
        one_hot(jnp.zeros(2, jnp.int32), 3, 1.5)


def test_each_method_has_probability_one_half(mixed):
    assert_mean(is_blended(mixed[0]), 0.5, 0.5)


def test_mixup_blends_all_pixels_with_a_share_from_the_beta_distribution(mixed):
    shares, target, _ = (values[is_blended(mixed[0])] for values in mixed)
    np.testing.assert_allclose(shares, np.broadcast_to(target[:, None, None], shares.shape), atol=1e-6)
    for power in (1, 2, 3):
        assert_mean(target**power, 1 / (power + 1), np.std(target**power))  # Beta(1, 1) is uniform


def test_cutmix_pastes_a_box_of_the_shape_of_the_image(mixed):
    boxes = 1 - mixed[0][~is_blended(mixed[0])]
    rows, columns = boxes.max(2), boxes.max(1)
    np.testing.assert_array_equal(boxes, rows[:, :, None] * columns[:, None, :])
    for sides in (rows, columns):
        assert (np.abs(np.diff(sides, axis=1)).sum(1) <= 2).all()  # one run of pixels
        assert_mean(sides[:, 0] - sides[:, -1], 0, np.std(sides[:, 0] - sides[:, -1]))
    whole = (rows[:, 0] + rows[:, -1] + columns[:, 0] + columns[:, -1] == 0) & boxes.any((1, 2))
    assert whole.sum() > 100
    assert abs(rows[whole].mean(1) - columns[whole].mean(1)).max() <= 1 / HEIGHT + 1 / WIDTH


def test_cutmix_boxes_have_their_share_of_the_area(mixed):
    areas = 1 - mixed[1][~is_blended(mixed[0])]
    # Along an axis, a side r with a uniform centre, cut off at the edges, is r - r^2 / 4 long on average. Given r the two
    # axes are independent, and r^2 has the beta distribution.
    side = np.sqrt(np.random.default_rng(0).beta(0.2, 0.2, 10**5))
    assert_mean(areas, np.mean((side - side**2 / 4) ** 2), areas.std())


def test_gradients_go_to_both_images_by_their_shares(mixed):
    shares, _, gradients = mixed
    np.testing.assert_allclose(gradients, np.stack([shares, 1 - shares], 1), atol=1e-6)


def test_mixup_alone_blends_neighbours(quick_compilation):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 4, 4, 3)).astype(np.float32)
    targets = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    with quick_compilation():
        mixup = jax.jit(functools.partial(mix, mixup_alpha=1.0, cutmix_alpha=0.0))
        result, labels = map(np.asarray, mixup(images, targets, jax.random.key(0)))
    partners = [1, 0, 3, 2, 5, 4]
    lam = (labels[0, 0] - targets[1, 0]) / (targets[0, 0] - targets[1, 0])
    assert 0.1 < lam < 0.9  # or the rest says little
    np.testing.assert_allclose(result, lam * images + (1 - lam) * images[partners], atol=1e-5)
    np.testing.assert_allclose(labels, lam * targets + (1 - lam) * targets[partners], atol=1e-5)


def test_devices_exchange_nothing_and_bfloat16_is_kept(quick_compilation):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(32, 8, 8, 3)).astype(jnp.bfloat16)
    labels = rng.integers(0, 5, 32).astype(np.int32)

    def all_three(images, labels, key):
        mixed = mix(images, one_hot(labels, 5, 0.1), key, mixup_alpha=0.0, cutmix_alpha=1.0)
        return *mixed, random_erasing(images, key, 0.5)

    split = batch_sharding()
    on_devices = jax.device_put((images, labels), split)
    with quick_compilation():
        compiled = jax.jit(all_three, out_shardings=split).lower(*on_devices, jax.random.key(0)).compile()
    program = compiled.as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in program]
    cut, targets, erased = compiled(*on_devices, jax.random.key(1))
    assert (cut.dtype, targets.dtype, erased.dtype) == (jnp.bfloat16, jnp.float32, jnp.bfloat16)
    partners = np.arange(32) ^ 1
    boxes = (np.asarray(cut) != images).any(-1)
    assert (boxes == boxes[0]).all()
    assert 0.1 < boxes.mean() < 0.9
    np.testing.assert_array_equal(cut, np.where(boxes[..., None], images[partners], images))
    smooth, lam = np.eye(5)[labels] * 0.9 + 0.02, 1 - boxes.mean()
    np.testing.assert_allclose(targets, lam * smooth + (1 - lam) * smooth[partners], atol=1e-6)
    changed = (np.asarray(erased) != images).any((1, 2, 3))
    assert 4 < changed.sum() < 28
    np.testing.assert_array_equal(np.asarray(erased)[~changed], images[~changed])


def test_alphas_of_zero_return_the_inputs():
    images, targets = np.zeros((3, 4, 4, 3)), np.eye(3)
    result = mix(images, targets, jax.random.key(0), mixup_alpha=0.0, cutmix_alpha=0.0)
    assert result[0] is images
    assert result[1] is targets


@pytest.mark.parametrize(
    ("shapes", "alpha", "message"),
    [
        (((3, 4, 4, 3), (3, 5)), 1.0, "batch of 3; it mixes pairs, so give an even number"),
        (((4, 4, 4, 3), (2, 5)), 1.0, r"targets of shape \(2, 5\); \[n, h, w, c\] and \[n, k\] are needed"),
        (((4, 4, 4, 3), (4,)), 1.0, "Turn integer labels into targets with one_hot"),
        (((4, 4, 4, 3), (4, 5)), -0.1, "mixup_alpha=-0.1"),
    ],
)
def test_mix_refuses_what_it_cannot_mix(shapes, alpha, message):
    with pytest.raises(ValueError, match=message):
        mix(*map(np.zeros, shapes), jax.random.key(0), mixup_alpha=alpha, cutmix_alpha=0.0)


def test_images_that_are_not_normalised_are_refused():
    with pytest.raises(TypeError, match="mix got an array of type uint8"):
        mix(jnp.zeros((2, 4, 4, 3), jnp.uint8), jnp.zeros((2, 5)), jax.random.key(0), mixup_alpha=1.0, cutmix_alpha=0.0)
    with pytest.raises(TypeError, match="random_erasing got an array of type uint8"):
        random_erasing(jnp.zeros((2, 4, 4, 3), jnp.uint8), jax.random.key(0), 0.5)


def test_erased_rectangles_have_the_published_areas_and_shapes(erased):
    gone = erased(1.0)
    rows, columns = gone.any(2), gone.any(1)
    np.testing.assert_array_equal(gone, rows[:, :, None] & columns[:, None, :])
    heights, widths = rows.sum(1), columns.sum(1)
    np.testing.assert_array_equal([np.ptp(np.flatnonzero(row)) + 1 for row in rows], heights)
    assert heights.min() >= 1  # with ten attempts all fit
    assert heights.max() < 40
    assert widths.max() < 60
    # The same distribution, drawn with numpy.
    rng = np.random.default_rng(0)
    area, aspect = 2400 * rng.uniform(0.02, 1 / 3, 10**5), np.exp(rng.uniform(np.log(0.3), -np.log(0.3), 10**5))
    expected = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)]).round()
    expected = expected[:, (expected[0] < 40) & (expected[1] < 60)]
    for statistic in (lambda h, w: h * w, lambda h, w: np.log(h / w)):
        drawn, truth = statistic(heights, widths), statistic(*expected)
        for power in (1, 2):
            assert_mean(drawn**power, (truth**power).mean(), (truth**power).std())
    # Uniform places: the free pixels before and after are as many on average.
    for sides, size in ((rows, 40), (columns, 60)):
        before, after = sides.argmax(1), sides[:, ::-1].argmax(1)
        np.testing.assert_array_equal(before + after + sides.sum(1), size)
        assert before.min() == after.min() == 0
        assert_mean(before - after, 0, np.std(before - after))
        # Half the free pixels, squared, over 3: the variance of a uniform place.
        spread = (before - after) ** 2 / ((before + after) * (before + after + 2))
        assert_mean(spread, 1 / 3, spread.std())


def test_erasing_happens_with_its_probability(erased):
    assert_mean(erased(0.25).any((1, 2)), 0.25, np.sqrt(0.25 * 0.75))
    images = np.ones((2, 4, 4, 3))
    assert random_erasing(images, jax.random.key(0), 0.0) is images
    with pytest.raises(ValueError, match=r"probability=1.5; 0 to 1"):
        random_erasing(images, jax.random.key(0), 1.5)


def test_images_without_room_for_a_rectangle_are_unchanged(erased):
    # A rectangle of at least one row is not below the height of a row of pixels.
    assert not erased(1.0, 1, 400).any()
