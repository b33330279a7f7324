import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax import group_whiten
from gw_jax.analysis import Spectrum, covariance, spectrum


def activations(shape=(3, 5, 4, 12), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal(shape) @ rng.standard_normal((shape[-1], shape[-1])) + 3
    return jnp.asarray(mixed, dtype)


def rows_in_float64(x, per, groups, mask=None):
    """The matrices X of the definition, one per sample or one of the batch."""
    x = np.asarray(x, np.float64)
    n, c = x.shape[0], x.shape[-1]
    keep = np.ones(x.shape[:-1], bool) if mask is None else np.asarray(mask, bool)
    per_sample = [x[i][keep[i]].reshape(-1, groups, c // groups).transpose(1, 0, 2).reshape(groups, -1) for i in range(n)]
    return per_sample if per == "sample" else [np.concatenate(per_sample, axis=1)]


@pytest.mark.parametrize(
    ("shape", "per", "groups"),
    [
        ((3, 5, 4, 12), "sample", 4), ((3, 5, 4, 12), "sample", None), ((3, 5, 4, 12), "batch", 4),
        ((3, 5, 4, 12), "batch", None), ((3, 24, 12), "sample", 4), ((6, 12), "sample", 4), ((6, 12), "batch", None),
    ],
)  # fmt: skip
def test_covariances_and_spectra_are_those_of_the_definition(per, groups, shape):
    x = activations(shape)
    rows = rows_in_float64(x, per, groups or 12)
    truth = np.stack([np.cov(r, bias=True) for r in rows])
    found = covariance(x, per=per, num_groups=groups)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, truth, atol=1e-5 * np.abs(truth).max())
    spectra = spectrum(x, per=per, num_groups=groups)
    eigenvalues = np.linalg.eigvalsh(truth)[:, ::-1]
    np.testing.assert_allclose(spectra.eigenvalues, eigenvalues, atol=1e-5 * eigenvalues.max())
    assert (spectra.observations == rows[0].shape[1]).all()
    errors = [np.linalg.norm(c - np.eye(len(c))) / len(c) ** 0.5 for c in truth]
    np.testing.assert_allclose(spectra.whitening_error, errors, rtol=1e-5)
    np.testing.assert_array_equal(spectra.rank, [np.linalg.matrix_rank(c, tol=1e-6 * np.abs(c).max()) for c in truth])
    p = eigenvalues.clip(1e-300) / eigenvalues.sum(1, keepdims=True)
    np.testing.assert_allclose(spectra.effective_rank, np.exp(-(p * np.log(p)).sum(1)), rtol=1e-4)
    full = spectra.rank == len(truth[0])
    np.testing.assert_allclose(spectra.condition_number[full], np.linalg.cond(truth)[full], rtol=1e-3)


def test_small_eigenvalues_of_float32_survive():
    """A covariance that is squared in float32 has no eigenvalue below 1e-7 of the largest."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    x = jnp.asarray((rng.standard_normal((1, 4000, 8)) * np.geomspace(1, 1e-5, 8)) @ directions, jnp.float32)
    truth = np.linalg.svd(np.asarray(x[0], np.float64) - np.asarray(x[0], np.float64).mean(0), compute_uv=False) ** 2 / 4000
    found = spectrum(x)
    assert found.rank == 8
    np.testing.assert_allclose(found.eigenvalues[0], truth, rtol=2e-2)
    assert found.condition_number[0] == pytest.approx(truth[0] / truth[-1], rel=2e-2)
    assert found.condition_number[0] > 1e9


@pytest.mark.parametrize("magnitude", [1e-25, 1, 1e25])
def test_magnitudes_do_not_matter_but_for_the_scale(magnitude):
    x = activations()
    found, usual = spectrum(x * np.float32(magnitude), num_groups=4), spectrum(x, num_groups=4)
    np.testing.assert_allclose(found.eigenvalues / magnitude**2, usual.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(found.condition_number, usual.condition_number, rtol=1e-4)


def test_singular_covariances_say_so_and_are_never_infinite():
    x = activations((3, 40, 6))
    x = x.at[0, :, 5].set(x[0, :, 0]).at[1].set(0.1)
    found = spectrum(x)
    assert found.rank.tolist() == [5, 0, 6]
    regular = np.linalg.eigvalsh(np.cov(np.asarray(x[0], np.float64).T, bias=True))
    assert found.condition_number[0] == pytest.approx(regular[-1] / regular[1], rel=1e-3)
    assert np.isnan(found.condition_number[1])
    assert (found.eigenvalues[1] == 0).all()
    assert found.whitening_error[1] == 1
    assert found.effective_rank[1] == 0
    few = spectrum(activations((2, 4, 9)))
    assert few.rank.tolist() == [3, 3]
    assert few.eigenvalues.shape == (2, 9)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_masked_positions_do_not_count_whatever_they_hold(per):
    x = activations()
    mask = np.random.default_rng(1).random(x.shape[:-1]) < 0.7
    poisoned = jnp.where(mask[..., None], x, jnp.nan)
    rows = rows_in_float64(x, per, 4, mask)
    truth = np.stack([np.cov(r, bias=True) for r in rows])
    np.testing.assert_allclose(covariance(poisoned, per=per, num_groups=4, mask=mask), truth, rtol=1e-3, atol=1e-4)
    assert spectrum(poisoned, per=per, num_groups=4, mask=mask).observations.tolist() == [r.shape[1] for r in rows]


def test_float64_is_used_where_it_is_given(float64):
    x = activations(dtype=np.float64)
    truth = np.cov(rows_in_float64(x, "batch", 12)[0], bias=True)
    np.testing.assert_allclose(covariance(x, per="batch")[0], truth, rtol=1e-12)


def test_bfloat16_is_computed_in_float32():
    x = activations().astype(jnp.bfloat16)
    np.testing.assert_allclose(covariance(x), covariance(x.astype(jnp.float32)), rtol=1e-6)


def test_whitened_samples_are_white():
    white = spectrum(group_whiten(activations((4, 9, 8, 12)), 4, method="zca", epsilon=1e-9), num_groups=4)
    assert white.whitening_error.max() < 1e-3
    assert white.condition_number.max() < 1.001
    assert np.abs(white.effective_rank - 4).max() < 1e-3


def test_a_covariance_is_kept_on_request_only():
    x = activations()
    assert spectrum(x).covariance is None
    kept = spectrum(x, num_groups=4, keep_covariance=True)
    assert isinstance(kept, Spectrum)
    np.testing.assert_array_equal(kept.covariance, covariance(x, num_groups=4))


@pytest.mark.parametrize(
    ("x", "options", "error", "text"),
    [
        (np.ones((2, 3, 3, 12), np.uint8), {}, TypeError, "uint8"),
        (np.ones((2, 3, 12), np.float32), {"num_groups": 5}, ValueError, r"\[1, 2, 3, 4, 6, 12\]"),
        (np.ones((2, 3, 12), np.float32), {"num_groups": 24}, ValueError, "exceeds the 12 channels"),
        (np.ones((2, 3, 12), np.float32), {"per": "image"}, ValueError, "choose one of sample, batch"),
        (np.ones((0, 3, 12), np.float32), {}, ValueError, r"\(0, 3, 12\)"),
        (np.ones(12, np.float32), {}, ValueError, r"\(12,\)"),
        (np.ones((4, 12), np.float32), {}, ValueError, 'per="batch"'),
        (np.ones((1, 12), np.float32), {"per": "batch"}, ValueError, "one observation"),
        (np.array([[1, 2], [np.nan, 1], [0, 1]], np.float32)[..., None, None], {"num_groups": 1}, ValueError, "sample 1"),
        (np.ones((2, 3, 12), np.float32), {"mask": np.ones((2, 4))}, ValueError, "mask has shape"),
    ],
)
def test_what_has_no_covariance_is_an_error(x, options, error, text):
    with pytest.raises(error, match=text):
        spectrum(x, **options)


def test_spectra_can_be_taken_of_sharded_activations():
    mesh = jax.make_mesh((8,), ("data",))
    x = activations((8, 5, 4, 12))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    np.testing.assert_allclose(covariance(sharded, num_groups=4), covariance(x, num_groups=4), rtol=1e-5, atol=1e-5)
