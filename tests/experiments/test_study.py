"""Training of stacked runs, and the choice of the learning rate."""

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.command_line import parse
from experiments.digits import load_digits
from experiments.settings import BATCH_NORM, GRID_SEED, Length
from experiments.study import choose_rate, plan, run_case, schedule, train
from experiments.training import Runs, batches, cross_entropy

LENGTH = Length(steps=4, seeds=2, rates=(0.1, 1e4))


@pytest.fixture(scope="module")
def runs():
    return Runs(BATCH_NORM.mlp, load_digits())


def test_an_epoch_has_every_digit_once():
    members = np.arange(100, 140)
    order = batches(members, 8, 10, seed=3)
    assert order.shape == (10, 8)
    assert sorted(order[:5].ravel()) == sorted(order[5:].ravel()) == list(members)
    assert (order[:5] != order[5:]).any()


def test_the_schedule_is_the_references():
    np.testing.assert_allclose(
        schedule([1.0, 2.0], 50)[[0, 29, 30, 49]], [[1, 2], [1, 2], [0.2, 0.4], [0.2, 0.4]], rtol=1e-6
    )


@pytest.mark.slow
def test_stacked_runs_equal_a_plain_loop(runs):
    digits = load_digits()
    states, losses = train(runs, digits.train, 8, [0, 1], [0.1, 0.3], 3)
    indices, rates = plan(digits.train, 8, [0, 1], [0.1, 0.3], 3)
    model = runs.model(runs.initial([0, 1]), 1)
    model.train()

    @nnx.jit
    @nnx.value_and_grad
    def loss_and_gradients(model, images, labels):
        return cross_entropy(model(images), labels).mean()

    for step in range(3):
        members = indices[step, 1]
        value, gradients = loss_and_gradients(model, digits.images[members], digits.labels[members])
        np.testing.assert_allclose(losses[step, 1], value, rtol=1e-4)
        rate = rates[step, 1]
        nnx.update(model, jax.tree.map(lambda p, g, rate=rate: p - rate * g, nnx.state(model, nnx.Param), gradients))
    for stacked, plain in zip(jax.tree.leaves(states[0]), jax.tree.leaves(nnx.state(model, nnx.Param)), strict=True):
        np.testing.assert_allclose(stacked[1], plain, atol=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(runs):
    cases = [run_case(runs, load_digits(), 8, LENGTH) for _ in range(2)]
    for case in cases:
        del case["seconds"], case["cpu_seconds"]
    assert cases[0] == cases[1]
    assert cases[0]["rate"] == 0.1


@pytest.mark.slow
def test_diverged_runs_are_counted_and_scored(runs):
    case = run_case(runs, load_digits(), 8, LENGTH, rate=float("inf"))
    assert case["diverged"] == [True, True]
    assert all(0 <= accuracy <= 0.2 for accuracy in case["test_accuracy"])


@pytest.mark.slow
def test_the_learning_rate_is_chosen_on_digits_and_a_seed_of_its_own(runs, monkeypatch):
    digits, used = load_digits(), []
    monkeypatch.setattr(
        "experiments.study.batches", lambda members, *a: used.append((members, a[-1])) or batches(members, *a)
    )
    choose_rate(runs, digits, 8, LENGTH)
    assert {seed for _, seed in used} == {GRID_SEED}
    assert not any(np.intersect1d(members, np.concatenate([digits.validation, digits.test])).size for members, _ in used)


def test_the_seed_of_the_grid_is_not_reported(tmp_path, capsys):
    options = parse("name", "", [f"--seeds={GRID_SEED}", f"--out={tmp_path}"], steps=1)
    assert GRID_SEED not in options.length.reported_seeds
    for arguments in ([f"--seeds={GRID_SEED + 1}"], ["--seeds=0"], ["--quick"]):
        with pytest.raises(SystemExit):
            parse("name", "", arguments, steps=1)
    assert "--quick needs --out" in capsys.readouterr().err
