"""Options beyond the plain step: microbatches, moving averages, soft targets, a new head."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gw_jax
from gw_jax import save_pretrained
from gw_jax.data import EvalBatches
from gw_jax.errors import ConfigError
from gw_jax.train import modes, run
from gw_jax.train.checkpoint import Checkpoints
from gw_jax.train.experiment import build_experiment
from gw_jax.train.mesh import merge_group_statistics
from gw_jax.train.warm_start import initial_state


def steps(config, count, num_devices=2):
    """The states and metrics of the first steps, on the host."""
    experiment = build_experiment(config, jax.devices()[:num_devices])
    batches = experiment.task.train_batches(config.num_epochs, 0, 1)
    state, found = experiment.state, []
    for _ in range(count):
        state, metrics = experiment.train_step(state, experiment.shard_batch(next(batches)))
        found.append((jax.device_get(state), {name: pair[0] / pair[1] for name, pair in jax.device_get(metrics).items()}))
    return found


@pytest.mark.slow
def test_parts_of_a_batch_give_the_gradient_of_the_whole(config, float64):
    """Without BatchNorm, whose statistics are those of a microbatch."""
    config.dtype, config.model.whiten, config.data.shift = "float64", "all", 0
    (whole, numbers), *_ = steps(config, 1)
    config.accumulate_steps = 4
    (parts, others), *_ = steps(config, 1)
    for name, value in numbers.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.long
def test_the_moving_average_is_evaluated_and_exported(config, tmp_path):
    config.ema_decay, config.num_epochs, config.schedule.warmup_epochs = 0.5, 1, 0.0
    history = [state for state, _ in steps(config, 3)]
    expected = build_experiment(config, jax.devices()[:2]).state.params["head"]["kernel"]
    for step, state in enumerate(history):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state.params["head"]["kernel"]
        np.testing.assert_allclose(state.ema["params"]["head"]["kernel"], expected, rtol=1e-5)
        assert not np.allclose(expected, state.params["head"]["kernel"], rtol=1e-4)
    assert history[-1].eval_weights[0] is history[-1].ema["params"]

    outcome = run(config, tmp_path / "run")
    config.mode = "evaluate"
    assert run(config, tmp_path / "run").metrics == outcome.metrics
    config.mode = "export"
    run(config, tmp_path / "run")
    exported = gw_jax.load_pretrained(tmp_path / "run" / "exported-10")
    checkpoints = Checkpoints(tmp_path / "run", config.checkpoint, "eval/top1")
    state, _ = checkpoints.restore(10, build_experiment(config).state)
    np.testing.assert_array_equal(exported.head.kernel[...], state.ema["params"]["head"]["kernel"])


@pytest.mark.slow
def test_a_smoothed_and_mixed_run_learns(config, tmp_path):
    config.label_smoothing, config.augment.mixup, config.augment.cutmix = 0.1, 0.2, 1.0
    config.augment.random_erasing = 0.2
    outcome = run(config, tmp_path / "run")
    assert outcome.metrics["eval/top1"] > 0.6
    config.augment.mixup = -1.0
    with pytest.raises(ConfigError, match=r"augment.mixup=-1.0 is out of range"):
        run(config, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.long
def test_the_loss_of_training_is_that_of_smoothed_targets(config):
    config.data.shift, config.label_smoothing = 0, 0.2
    (_, smoothed), *_ = steps(config, 1)
    experiment = build_experiment(config, jax.devices()[:2])
    batch = next(experiment.task.train_batches(1, 0, 1))
    model = nnx.merge(experiment.graphdef, experiment.state.params, experiment.state.batch_stats)
    model.train()
    logits = model((jnp.asarray(batch["image"], jnp.float32) / 255 - 0.4) / 0.3)
    targets = 0.8 * jax.nn.one_hot(batch["label"], 4) + 0.05
    np.testing.assert_allclose(smoothed["loss"], optax.softmax_cross_entropy(logits, targets).mean(), rtol=1e-5)


def test_a_model_with_other_classes_gets_a_new_head(config, tmp_path):
    experiment = build_experiment(config)
    arguments = {**experiment.task.plain_model_arguments, "num_classes": 7}
    model = gw_jax.create_model(**arguments, rngs=nnx.Rngs(3))
    save_pretrained(tmp_path / "model", model, arguments)
    config.init_from = str(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"num_classes is 7 there and 4 here.*config.init_new_head=True"):
        initial_state(build_experiment(config))
    config.init_new_head = True
    experiment = build_experiment(config)
    state = initial_state(experiment)
    np.testing.assert_array_equal(state.params["stem_conv"]["kernel"], model.stem_conv.kernel[...])
    np.testing.assert_array_equal(state.params["head"]["kernel"], experiment.state.params["head"]["kernel"])


@pytest.mark.slow
def test_statistics_of_groups_are_averaged_in_evaluation(config):
    config.model.batch_norm_group_size = 4
    (state, _), *_ = steps(config, 1)
    rows = state.batch_stats["stage1"][0]["norm2"]["mean"]
    assert rows.shape == (4, 4)
    assert not np.allclose(rows[0], rows[1])
    averaged = merge_group_statistics(state.batch_stats)
    assert all(leaf.ndim <= 1 for leaf in jax.tree.leaves(averaged))


@pytest.mark.slow
def test_a_stop_during_mode_evaluate_ends_it(finished, config, monkeypatch, capfd):
    workdir, _ = finished
    config.mode = "evaluate"
    original = EvalBatches.__iter__

    def interrupted(self):
        for batch in original(self):
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(EvalBatches, "__iter__", interrupted)
    outcome = run(config, workdir)
    assert (outcome.metrics, outcome.stopped_by) == (None, signal.SIGTERM)
    assert "The same command repeats it" in capfd.readouterr().err
    assert not (workdir / modes.EVALUATION_FILE).exists()


def test_a_disk_without_room_is_named_before_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match=r"0 MB free; two checkpoints of this run take"):
        run(config, tmp_path / "run")
