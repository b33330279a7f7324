"""Runs of a detector: scaled to another batch, begun from a detector of other classes, and stopped by a loss."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from gw_jax.detection import load_detector, save_detector
from gw_jax.detection.config import DetectorConfig
from gw_jax.errors import ConfigError, TrainingError
from gw_jax.models.config import NormConfig
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train import CheckpointConfig
from gw_jax.train.config import validate
from gw_jax.train.experiment import build_experiment
from gw_jax.train.metrics import read_metrics
from gw_jax.train.warm_start import initial_state
from gw_jax.train.workdir import config_from_stored, stored_config
from gw_jax.tree import by_path, variables
from tests.detection.detectors import small
from tests.detection.test_task import SMALL, make_config, run, save_classifier
from tests.helpers.runs import results

PREDICTORS = {
    f"{layer}.{kind}" for layer in ("box_head.logits", "box_head.deltas", "mask_head.logits") for kind in ("kernel", "bias")
}


def scaled(**fields):
    """A recipe for batches of 4, run with 2."""
    recipe = {"reference_batch_size": 4, "scale_to_batch": True, "num_steps": 1, "eval_every_steps": 1}
    recipe["model"] = DetectorConfig(**SMALL, norm_options=NormConfig(num_groups=8))
    return make_config(**{**recipe, **fields})


@pytest.mark.slow
@pytest.mark.long  # The scaling alone has tests without a run.
def test_a_scaled_run_is_stored_as_it_ran_and_resumes(tmp_path, quick, capsys):
    run(scaled(), tmp_path / "run")
    assert (
        "Scaled from batches of 4 to 2: optimizer.learning_rate 0.01 to 0.005, num_steps 1 to 2" in capsys.readouterr().out
    )
    written = stored_config(tmp_path / "run")
    assert (written["optimizer.learning_rate"], written["num_steps"], written["eval_every_steps"]) == (0.005, 2, 2)
    assert (written["reference_batch_size"], written["batch_size"], written["scale_to_batch"]) == (2, 2, True)
    lines = results(tmp_path / "run")
    assert lines[-1]["step"] == 2
    # The same command again: nothing is left to do, and nothing is scaled twice.
    run(scaled(), tmp_path / "run")
    assert results(tmp_path / "run") == lines
    assert stored_config(tmp_path / "run") == written
    # Evaluation reads the run's fields, whatever of them the command line repeats.
    given = frozenset({"mode", "batch_size", "scale_to_batch", "optimizer.learning_rate"})
    asked, _ = scaled(mode="evaluate").resolve()
    config = config_from_stored(tmp_path / "run", stored_config(tmp_path / "run"), asked, given)
    assert config.resolve()[0] == config == asked


def test_scaling_resolves_once_and_names_what_is_missing():
    once, summary = scaled().resolve()
    assert summary.startswith("Scaled from batches of 4 to 2")
    again, summary = once.resolve()
    assert again == once
    assert summary == "config.scale_to_batch=True changes nothing: the configuration is for batches of 2."
    config = make_config(reference_batch_size=4)
    assert config.resolve() == (config, "")
    with pytest.raises(
        ConfigError, match=r"needs to know for which batch the learning rate is meant; set .*reference_batch_size"
    ):
        validate(make_config(scale_to_batch=True))


@pytest.mark.slow
@pytest.mark.long  # The message alone is in tests/train/test_divergence.py.
def test_a_loss_that_is_not_finite_is_named(tmp_path, quick):
    config = make_config(
        num_steps=20, reference_batch_size=4, checkpoint=CheckpointConfig(every_steps=1), eval_every_steps=20
    )
    config.schedule = dataclasses.replace(config.schedule, warmup_steps=8, warmup_from=0.001)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=1e6)
    message = (
        r"At step (\d+) the loss is (nan|inf) \(.*loss_\w+ is (nan|inf).*\) and the norm of its gradient .* not saved. "
        r"The last good checkpoint is (\S+)\. Lower config.optimizer.learning_rate \((\S+) at that step\) or lengthen "
        r"config.schedule.warmup_steps, in another --workdir. The learning rate is meant for batches of 4, and "
        r"config.batch_size=2: config.scale_to_batch=True scales it"
    )
    with pytest.raises(TrainingError, match=message) as error:
        run(config, tmp_path / "run")
    step, _, _, checkpoint, rate = re.search(message, str(error.value)).groups()
    assert "\n" not in str(error.value)
    assert checkpoint.endswith(f"/checkpoints/{int(step) - 1}")
    assert float(rate) == pytest.approx(1e6 * (0.001 + 0.999 * min((int(step) - 1) / 8, 1)), rel=0.01)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, int(step)))
    assert all(np.isfinite(value) for line in lines for value in line.values())
    # The directory is that of a good run: its last checkpoint is read, and holds numbers.
    last = dataclasses.replace(config, mode="export", checkpoint=CheckpointConfig(every_steps=1, evaluate="last"))
    run(last, tmp_path / "run")
    arrays = variables(load_detector(tmp_path / "run" / f"exported-{int(step) - 1}"))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in arrays.values())


def small_model():
    return DetectorConfig(**SMALL, norm_options=NormConfig(num_groups=8), mask_head=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A detector of 5 classes."""
    directory = tmp_path_factory.mktemp("saved") / "detector"
    options = {**SMALL, "norm_options": {"num_groups": 8}, "mask_head": True}
    save_detector(directory, small(**options, num_classes=6))
    return directory


@pytest.mark.slow
def test_a_run_on_other_classes_starts_from_a_detector(saved):
    config = make_config(init_from=str(saved), init_new_predictors=True, model=small_model())
    experiment = build_experiment(config, jax.devices()[:1])
    initial = by_path(experiment.state.params)
    state = initial_state(experiment)
    weights = experiment.task.read_weights(saved).arrays
    there = by_path(state.params)
    assert set(initial) - set(weights) == PREDICTORS
    for path, leaf in there.items():
        expected = initial[path] if path in PREDICTORS else weights[path]
        np.testing.assert_array_equal(leaf, expected, err_msg=path)
    assert there["box_head.logits.kernel"].shape[-1] == 3


@pytest.mark.slow
def test_other_classes_need_the_flag_and_nothing_else_may_differ(saved, tmp_path):
    with pytest.raises(
        ConfigError, match=r"num_classes is 6 there and 3 here.*\(For other classes, set config.init_new_predictors=True.\)"
    ):
        make_config(init_from=str(saved)).make_task().read_weights(saved)
    flag = {"init_from": str(saved), "init_new_predictors": True}
    other = dataclasses.replace(small_model(), fpn_norm="gn")
    with pytest.raises(ConfigError, match=r"fpn_norm is 'none' there and 'gn' here. Set the fields to what is there.$"):
        make_config(**flag, model=other).make_task().read_weights(saved)
    with pytest.raises(ConfigError, match=r"set config\.pixels='rgb'"):
        make_config(**flag, pixels="bgr").make_task().read_weights(saved)
    with pytest.raises(ConfigError, match="would evaluate random predictors"):
        make_config(**flag, mode="evaluate").make_task().read_weights(saved)
    save_classifier(tmp_path / "classifier")
    with pytest.raises(ConfigError, match=r"holds a classifier, and config\.init_new_predictors=True has no effect"):
        make_config(**flag).make_task().read_weights(tmp_path / "classifier")


def test_the_flag_needs_a_detector():
    with pytest.raises(ConfigError, match=r"config\.init_from is not set. Set it, or leave init_new_predictors out"):
        validate(make_config(init_new_predictors=True))


@pytest.mark.slow
def test_the_same_classes_with_new_predictors(saved):
    """The flag says that they are new, whatever the number of classes."""
    config = make_config(init_from=str(saved), init_new_predictors=True, num_classes=6)
    weights = config.make_task().read_weights(saved).arrays
    assert not PREDICTORS & set(weights)
    assert set(variables(config.make_task().make_model(AbstractRngs()))) - set(weights) == PREDICTORS
