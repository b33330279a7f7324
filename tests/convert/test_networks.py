"""The golden networks, full size: their logits, their training, and their way through files and back."""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gw_jax.convert import load, load_torch, to_torch_state, write_torch_file
from gw_jax.convert.entries import entries
from gw_jax.models.pretrained import fill_model
from gw_jax.train import OptimizerConfig, TrainConfig
from gw_jax.train.mesh import batch_sharding, make_mesh, replicated
from gw_jax.train.optimizer import make_optimizer
from gw_jax.train.state import TrainState, model_to_dicts
from gw_jax.train.step import make_train_step
from gw_jax.tree import by_path

WITH_LOGITS = ["r50_gw", "x50_gw", "r50_bn", "r50_itnsigma_df", "x50_gn"]
ALL = ["r18_gw", *WITH_LOGITS, "r101_gw", "x101_gw"]


def images(seed, count):
    """Golden images, channels last, float64 with the values of float32."""
    array = np.random.default_rng([seed, 7]).standard_normal((count, 3, 224, 224)).astype(np.float32)
    return jnp.asarray(array.transpose(0, 2, 3, 1), jnp.float64)


def golden(reference, case):
    return np.load(reference.GOLDEN / "models" / f"{case}.npz")


def model_of(reference, case, param_dtype):
    file = reference.in_memory(reference.golden_state(case))
    loaded = load.load_state(file, case, load.LoadOptions(**reference.arguments(case), param_dtype=param_dtype))
    return fill_model(loaded.model, loaded.arrays)


def relative(result, expected):
    return np.abs(np.asarray(result, np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("case", WITH_LOGITS)
def test_logits(float64, reference, case):
    expected = golden(reference, case)["eval_logits"]
    for dtype, bound in ((jnp.float64, 1e-8), (jnp.float32, 2e-4)):
        graphdef, state = nnx.split(model_of(reference, case, dtype))
        forward = jax.jit(lambda state, x, graphdef=graphdef: nnx.merge(graphdef, state)(x))
        assert relative(forward(nnx.to_pure_dict(state), images(0, 2).astype(dtype)), expected) <= bound


class Classification:
    """The part of a task that a training step uses; the golden images are normalised already."""

    def loss(self, model, batch, key):
        logits = model(batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), {}


@pytest.mark.slow
def test_training(float64, reference):
    """Four steps of the project's own optimiser and training step on the golden ResNet-18."""
    outputs, model = golden(reference, "r18_gw"), model_of(reference, "r18_gw", jnp.float64)
    mesh = make_mesh(jax.devices()[:1])
    config = TrainConfig(
        num_epochs=4, dtype="float64", optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4)
    )
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.1))
    graphdef, params, batch_stats = model_to_dicts(model)
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
    # The step takes the memory of its state over.
    state = jax.device_put(jax.tree.map(jnp.copy, state), replicated(mesh))
    step = make_train_step(Classification(), graphdef, optimizer, config, mesh)
    labels = jnp.asarray([1, 23, 456, 789], jnp.int32)
    batch = jax.device_put({"image": images(1, 4), "label": labels}, batch_sharding(mesh))
    table = list(entries(model))
    trained = [entry for entry in table if entry.trained]
    start = {entry.path: np.asarray(leaf) for entry, leaf in zip(trained, in_order(params, trained), strict=True)}
    losses = []
    for number in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"][0]))
        if number == 0:
            # After one step the momentum is the gradient plus the decayed parameter.
            velocity = in_order(state.opt_state[1][0].trace, trained)
            gradients = [np.asarray(leaf) - 1e-4 * start[entry.path] for entry, leaf in zip(trained, velocity, strict=True)]
            norms = np.asarray([np.linalg.norm(gradient) for gradient in gradients])
            np.testing.assert_allclose(norms, outputs["grad_l2"], rtol=1e-7)
            assert relative(metrics["grad_norm"][0], np.linalg.norm(outputs["grad_l2"])) <= 1e-7
    np.testing.assert_allclose(losses, outputs["losses"], rtol=1e-7)
    after = nnx.merge(graphdef, state.params, state.batch_stats)
    theirs = to_torch_state(after)
    compared = [name for name in outputs.files if name.startswith("after/")]
    assert len(compared) == 6
    for name in compared:
        assert relative(theirs[name.removeprefix("after/")], outputs[name]) <= 1e-7
    after.eval()
    assert relative(nnx.jit(lambda model, x: model(x))(after, images(0, 2)), outputs["after_eval_logits"]) <= 1e-7


def in_order(tree, trained):
    """The leaves of ``tree`` in the order of the state dict."""
    leaves = by_path(tree)
    return [leaves[entry.path] for entry in trained]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * case.startswith(("r101", "x101"))) for case in ALL]
)
def test_files_there_and_back(reference, torch, tmp_path, case):
    """Both kinds in both containers, bit for bit: keys, order, shapes, types and values."""
    state = reference.golden_state(case)
    given = reference.arguments(case)
    stored = {"norm": given["norm"], "norm_cfg": given["norm_cfg"], "arch_cfg": given["arch_cfg"], "arch": given["arch"]}
    same = functools.partial(assert_same, state)
    for kind, container in (("best", "legacy"), ("checkpoint", "zip"), ("best", "zip"), ("checkpoint", "legacy")):
        path = reference.write_pth(tmp_path / "in.pth", state, kind=kind, container=container, **stored)
        model, report = load_torch(path, **given)
        assert report.container == container
        assert len(report.keys_used) == len(state)
        exported = to_torch_state(model)
        same(exported)
        write_torch_file(tmp_path / "out.pth", exported, container=container)
        again = torch.load(tmp_path / "out.pth", weights_only=True)
        same({key: value.numpy() for key, value in again.items()})
        for name in ("in.pth", "out.pth"):
            (tmp_path / name).unlink()


def assert_same(expected, state):
    assert list(state) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value, strict=True)


def test_the_namespace_of_a_training_dict_is_a_namespace(reference, torch, tmp_path):
    path = reference.write_pth(tmp_path / "in.pth", {"a": np.zeros(2, np.float32)}, kind="checkpoint", norm="BN")
    assert type(torch.load(path, weights_only=False)["cfg"]) is argparse.Namespace
