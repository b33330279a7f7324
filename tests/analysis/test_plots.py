"""Plots have titles, units and legends, stay readable with many layers, and touch no state of pyplot."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax import analysis

pytest.importorskip("matplotlib", reason="the extra 'examples' is not installed")


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 7, 7, 64)) @ rng.standard_normal((64, 64)), jnp.float32)
    norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
    return analysis.analyze_norms(norm, x, keep_covariance=True)[""]


def layers(layer, count):
    return {f"stage1/{i}/norm1": dataclasses.replace(layer, path=f"stage1/{i}/norm1") for i in range(count)}


def texts(figure):
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize("count", [1, 3, 24])
@pytest.mark.parametrize("plot", [analysis.plot_spectra, analysis.plot_condition_numbers, analysis.plot_whitening_errors])
def test_layers_are_named_and_axes_have_units(layer, plot, count):
    figure = plot(layers(layer, count))
    assert figure._repr_png_().startswith(b"\x89PNG")
    found = texts(figure)
    assert any("4 samples" in text for text in found)
    assert "stage1/0/norm1" in found
    assert f"stage1/{count - 1}/norm1" in found
    for axes in figure.axes[:1]:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert high >= 9.9 * low


def test_drawn_numbers_are_the_medians(layer):
    figure = analysis.plot_condition_numbers(layer)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["before"], [np.median(layer.before.condition_number)])
    np.testing.assert_allclose(lines["after"], [np.median(layer.after.condition_number)])
    spectra = analysis.plot_spectra(layer)
    np.testing.assert_allclose(spectra.axes[0].lines[0].get_ydata(), np.median(layer.before.eigenvalues, axis=0))


def test_singular_covariances_are_marked_and_their_zeros_not_drawn(layer):
    x = jnp.ones((2, 2, 2, 16)).at[:, 0, 0].set(jnp.arange(16.0))
    norm = nnx.LayerNorm(16, rngs=nnx.Rngs(0))
    (found,) = analysis.analyze_norms(norm, x).values()
    assert any("singular" in text for text in texts(analysis.plot_condition_numbers(found)))
    assert not any("singular" in text for text in texts(analysis.plot_condition_numbers(layer)))
    drawn = analysis.plot_spectra(found).axes[0].lines[0].get_ydata()
    assert np.isfinite(drawn).sum() == found.before.rank[0] == 1


def test_covariances_share_a_colour_bar(layer):
    figure = analysis.plot_covariances(layer, sample=1)
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert first.get_clim() == second.get_clim()
    scaled = layer.before.covariance[1] / np.trace(layer.before.covariance[1]) * 16
    np.testing.assert_allclose(first.get_array(), scaled)
    assert "covariance / mean variance" in texts(figure)
    with pytest.raises(ValueError, match=r"sample=4.*0 to 3"):
        analysis.plot_covariances(layer, sample=4)
    bare = dataclasses.replace(layer, before=dataclasses.replace(layer.before, covariance=None))
    with pytest.raises(ValueError, match="keep_covariance=True"):
        analysis.plot_covariances(bare)


def test_history_of_analyses_and_of_values(layer):
    figure = analysis.plot_history({0: layers(layer, 2), 20: layers(layer, 2), 10: layers(layer, 2)}, "whitening_error")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == [f"{side} stage1/{i}/norm1" for i in range(2) for side in ("before", "after")]
    drawn = lines["after stage1/1/norm1"]
    assert drawn.get_xdata().tolist() == [0, 10, 20]
    np.testing.assert_allclose(drawn.get_ydata(), np.median(layer.after.whitening_error))
    runs = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    figure = analysis.plot_history({"GW": runs}, steps=[1, 2], unit="epoch")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [3, 4])
    assert figure.axes[0].get_xlabel() == "epoch"


@pytest.mark.parametrize(
    ("history", "options", "text"),
    [
        ({"GW": [1.0]}, {"quantity": "condition", "steps": [0]}, "choose one of condition_number"),
        ({}, {}, "history is empty"),
        ({"GW": [1.0, 2.0]}, {"steps": [0]}, "2 values for 1 steps"),
        ({"GW": [1.0, 2.0]}, {}, "steps="),
    ],
)
def test_a_history_that_cannot_be_drawn_is_an_error(history, options, text):
    with pytest.raises(ValueError, match=text):
        analysis.plot_history(history, **options)


def test_nothing_to_plot_is_an_error():
    with pytest.raises(ValueError, match="no analysis to plot"):
        analysis.plot_spectra({})


def test_pyplot_is_not_imported():
    script = (
        "import sys, gw_jax.analysis as a\n"
        "assert 'matplotlib' not in sys.modules\n"
        "a.plot_history({'GW': [1.0, 2.0]}, steps=[0, 1])._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
