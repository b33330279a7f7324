"""Norms of Linen models are measured like those of NNX models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import gw_jax
from gw_jax.analysis import analyze_linen_norms, spectrum

IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(linen.Conv(16, (3, 3))(x))
        return gw_jax.linen.GroupWhitening(num_groups=4)(x, relu=True)


class Net(linen.Module):
    remat: bool = False

    @linen.compact
    def __call__(self, x, train=True):
        block = linen.remat(Block, static_argnums=(2,)) if self.remat else Block
        x = Block()(x, train)
        return linen.LayerNorm()(block()(x, train))


@pytest.fixture(scope="module")
def made():
    variables = Net().init(jax.random.key(0), IMAGES)
    scale = {"params": {"Block_0": {"GroupWhitening_0": {"scale": jnp.linspace(0.5, 2, 16)}}}}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _at(scale, path, leaf), variables
    )  # A scale that is not one shows whether it is left out.


def _at(tree, path, default):
    for entry in path:
        if entry.key not in tree:
            return default
        tree = tree[entry.key]
    return tree


@pytest.mark.slow
def test_every_norm_is_found_and_the_variables_stay(made):
    before = jax.tree.map(np.asarray, made)
    found = analyze_linen_norms(Net(), made, IMAGES)
    assert [(path, f.kind) for path, f in found.items()] == [
        ("Block_0/BatchNorm_0", "BatchNorm"),
        ("Block_0/GroupWhitening_0", "GroupWhitening"),
        ("Block_1/BatchNorm_0", "BatchNorm"),
        ("Block_1/GroupWhitening_0", "GroupWhitening"),
        ("LayerNorm_0", "LayerNorm"),
    ]
    jax.tree.map(np.testing.assert_array_equal, made, before)
    assert found["Block_0/GroupWhitening_0"].before.num_variables == 4


def test_numbers_are_those_of_the_layer(made):
    conv = linen.Conv(16, (3, 3)).apply({"params": made["params"]["Block_0"]["Conv_0"]}, IMAGES)
    found = analyze_linen_norms(Net(), made, IMAGES, "Block_0", call=lambda model, x: model(x, train=False))
    truth = spectrum(conv)
    np.testing.assert_allclose(found["Block_0/BatchNorm_0"].before.eigenvalues, truth.eigenvalues, rtol=1e-3, atol=1e-5)
    x = linen.BatchNorm(use_running_average=True).apply({c: made[c]["Block_0"]["BatchNorm_0"] for c in made}, conv)
    scale = made["params"]["Block_0"]["GroupWhitening_0"]["scale"]
    for affine, factor in ((True, scale), (False, 1)):
        y = gw_jax.group_whiten(x, 4, scale=jnp.ones(16) * factor)
        (after,) = (
            f.after
            for f in analyze_linen_norms(
                Net(), made, IMAGES, "Block_0/Gr", affine=affine, call=lambda model, x: model(x, train=False)
            ).values()
        )
        np.testing.assert_allclose(after.eigenvalues, spectrum(y, num_groups=4).eigenvalues, rtol=1e-3)


@pytest.mark.slow
def test_swapped_norms_are_analysed(made):
    model = gw_jax.linen.swap_norms(Net(), "BatchNorm", lambda c: gw_jax.linen.GroupWhitening(num_groups=8))
    variables = model.init(jax.random.key(0), IMAGES)
    found = analyze_linen_norms(model, variables, IMAGES, "Block_0/BatchNorm_0", num_groups=8, affine=False)
    assert [f.kind for f in found.values()] == ["GroupWhitening"]
    assert found["Block_0/BatchNorm_0"].after.whitening_error.max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"pattern": "stem"}, ValueError, "'stem' matches none.*Block_0/BatchNorm_0"),
        ({"kinds": linen.RMSNorm}, ValueError, "no layer of the kinds RMSNorm"),
        ({"num_groups": 5}, ValueError, r"Block_0/BatchNorm_0 \(BatchNorm\): 16 channels"),
        ({"images": IMAGES[:0]}, ValueError, "at least one"),
        ({"images": IMAGES[0]}, ValueError, r"\(8, 8, 3\)"),
        ({"images": IMAGES * np.nan}, ValueError, "input of Block_0/BatchNorm_0.*not finite"),
        ({"model": Net(remat=True)}, ValueError, "remat"),
        ({"model": object()}, TypeError, r"analyze_norms\(model, images\)"),
    ],
)
def test_what_cannot_be_analysed_is_named(made, change, error, text):
    arguments = {"model": Net(), "variables": made, "images": IMAGES} | change
    if isinstance(change.get("model"), Net):
        arguments["variables"] = change["model"].init(jax.random.key(0), IMAGES)
    with pytest.raises(error, match=text):
        analyze_linen_norms(**arguments)
