"""Runs that start from an imported model or from a run that PyTorch began; and the way back to PyTorch."""

import argparse
import json
import re
from collections import OrderedDict

import jax
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax import save_pretrained
from gw_jax.convert import to_torch_state
from gw_jax.convert.__main__ import main as convert
from gw_jax.convert.entries import entries
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.train import run
from gw_jax.train.checkpoint import Checkpoints
from gw_jax.train.experiment import build_experiment
from gw_jax.train.metrics import read_metrics
from gw_jax.train.warm_start import initial_state
from tests.helpers.runs import results
from tests.helpers.shapes import make_shapes


def export(config, finished):
    """The best checkpoint of a finished run, exported."""
    config.mode = "export"
    run(config, finished[0])
    config.mode = "train"
    (directory,) = finished[0].glob("exported-*")
    return directory


def test_export_and_load(finished, config, capsys):
    directory = export(config, finished)
    assert str(directory) in capsys.readouterr().out
    model = gw_jax.load_pretrained(directory)
    images = np.stack([make_shapes().evaluation[i]["image"] for i in range(50)]).astype(np.float32) / 255
    labels = np.asarray([make_shapes().evaluation[i]["label"] for i in range(50)])
    top1 = (np.argmax(model((images - 0.4) / 0.3), -1) == labels).mean()
    best = max(line["eval/top1"] for line in read_metrics(finished[0]) if "eval/top1" in line)
    assert top1 == pytest.approx(best)
    with pytest.raises(CheckpointError, match="exists already"):
        export(config, finished)


def test_an_imported_model_is_evaluated(finished, config, tmp_path):
    config.init_from = str(export(config, finished))
    config.mode = "evaluate"
    metrics = run(config, tmp_path / "new").metrics
    best = max(line["eval/top1"] for line in read_metrics(finished[0]) if "eval/top1" in line)
    assert metrics["eval/top1"] == best
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["eval/count"] == 50


@pytest.mark.slow
def test_a_run_with_a_new_head_is_evaluated(finished, config, tmp_path):
    """Its own configuration has ``init_new_head``, which means nothing once there is a checkpoint."""
    config.init_from, config.init_new_head, config.num_epochs = str(export(config, finished)), True, 1
    trained = run(config, tmp_path / "new").metrics
    config.mode = "evaluate"
    assert run(config, tmp_path / "new").metrics == trained
    with pytest.raises(ConfigError, match="would evaluate a random last layer"):
        run(config, tmp_path / "empty")


@pytest.mark.slow
def test_an_imported_model_is_trained_on(finished, config, tmp_path):
    config.init_from = str(export(config, finished))
    config.num_epochs, config.optimizer.learning_rate = 1, 0.0
    metrics = run(config, tmp_path / "new").metrics
    # Nothing is learned at a learning rate of zero, so only the start can explain it. (Its BatchNorm statistics move.)
    assert metrics["eval/top1"] > 0.8
    assert read_metrics(tmp_path / "new")[-1]["step"] == 10
    # The same command resumes the run and does not read the imported model.
    assert run(config, tmp_path / "new").metrics == metrics


def training_dict(torch, config, workdir, step):
    """The checkpoint of ``step`` as the reference would have written it."""
    experiment = build_experiment(config)
    checkpoints = Checkpoints(workdir, config.checkpoint, "eval/top1")
    state, _ = checkpoints.restore(step, experiment.state)
    checkpoints.close()
    model = nnx.merge(experiment.graphdef, state.params, state.batch_stats)
    tensors = OrderedDict((key, torch.from_numpy(value)) for key, value in to_torch_state(model).items())
    momentum = to_torch_state(nnx.merge(experiment.graphdef, state.opt_state[1][0].trace, state.batch_stats))
    order = [entry.key for entry in entries(model) if entry.trained]
    buffers = {index: {"momentum_buffer": torch.from_numpy(momentum[key])} for index, key in enumerate(order)}
    return {
        "model": tensors,
        "cfg": argparse.Namespace(norm="IGWItN", norm_cfg={"T": 5, "num_groups": 4}, arch_cfg={}),
        "optimizer": {"state": buffers, "param_groups": [{"params": list(range(len(order))), "lr": 0.05}, {"params": []}]},
        "epoch": step // experiment.task.steps_per_epoch - 1,
        "best_prec1": torch.tensor(88.0),
    }


@pytest.mark.slow
def test_a_run_that_pytorch_began_ends_like_one_of_our_own(finished, config, tmp_path):
    """Weights, statistics, momentum and epoch go through a .pth file; the rest of the run is then the same."""
    torch = pytest.importorskip("torch", reason="PyTorch, an optional extra that brings gigabytes, is not installed")
    torch.save(training_dict(torch, config, finished[0], 20), tmp_path / "checkpoint.pth")
    assert convert([str(tmp_path / "checkpoint.pth"), str(tmp_path / "model")]) == 0
    config.resume_from = str(tmp_path / "model")
    run(config, tmp_path / "resumed")
    resumed, whole = results(tmp_path / "resumed", after=20), results(finished[0], after=20)
    assert resumed == whole
    assert [line["step"] for line in resumed] == [24, 28, 30, 30]
    config.mode, config.checkpoint.evaluate = "evaluate", "last"
    evaluated = run(config, tmp_path / "resumed").metrics
    assert evaluated == {name: value for name, value in resumed[-1].items() if name.startswith("eval/")}
    # LARS has velocities of another scale.
    config.mode, config.optimizer.name = "train", "lars"
    with pytest.raises(ConfigError, match=r"momentum in .* is that of SGD, which config.optimizer.name='lars' cannot use"):
        run(config, tmp_path / "lars")


@pytest.fixture
def model_directory(config, tmp_path):
    """A directory with the network of ``config``, untrained."""
    experiment = build_experiment(config)
    model = nnx.merge(experiment.graphdef, experiment.state.params, experiment.state.batch_stats)
    save_pretrained(tmp_path / "model", model, experiment.task.model_arguments)
    return tmp_path / "model"


def set_placement(config):
    config.model.whiten = "S1"


def set_iterations(config):
    config.model.norm_options.num_iterations = 7


def set_norm(config):
    config.model.norm = "gn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_placement, "whiten is 'S1-B2' there and 'S1' here"),
        (set_iterations, "norm_options is {'num_groups': 4} there and {'num_groups': 4, 'num_iterations': 7} here"),
        (set_norm, "norm is 'gw' there and 'gn' here"),
    ],
)
def test_another_network_is_refused(config, model_directory, tmp_path, change, message):
    config.init_from = str(model_directory)
    change(config)
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(config, tmp_path / "new")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()


def test_groups_of_examples_and_dropout_may_differ(config, model_directory):
    config.init_from = str(model_directory)
    config.model.batch_norm_group_size, config.model.dropout, config.seed = 4, 0.2, 5
    experiment = build_experiment(config)
    start = initial_state(experiment)
    expected = gw_jax.load_pretrained(model_directory)
    np.testing.assert_array_equal(start.params["head"]["kernel"], expected.head.kernel[...])
    assert not np.array_equal(start.params["head"]["kernel"], experiment.state.params["head"]["kernel"])


def test_models_that_cannot_be_resumed_are_refused(config, model_directory, tmp_path):
    config.resume_from = str(model_directory)
    with pytest.raises(CheckpointError, match="a model without a training state"):
        run(config, tmp_path / "new")
    description = json.loads((model_directory / "config.json").read_text())
    (model_directory / "config.json").write_text(json.dumps({**description, "training": {"epochs": 3}}))
    with pytest.raises(ConfigError, match=r"has done 3 epochs \(30 steps\), and config.num_epochs=3 leaves nothing"):
        run(config, tmp_path / "new")
    config.resume_from = str(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no model"):
        run(config, tmp_path / "new")
    config.init_from = str(model_directory)
    with pytest.raises(ConfigError, match="both set"):
        run(config, tmp_path / "new")


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_only(config):
    config.model.dropout = 0.5
    experiment = build_experiment(config)
    batch = {
        "image": np.stack([make_shapes().train[i]["image"] for i in range(16)]),
        "label": np.arange(16, dtype=np.int32) % 4,
    }
    losses = []
    for _ in range(2):
        state = jax.tree.map(lambda a: a.copy(), experiment.state)
        for _ in range(2):
            state, metrics = experiment.train_step(state, experiment.shard_batch(batch))
            losses.append(float(metrics["loss"][0]))
    assert losses[:2] == losses[2:]


@pytest.mark.slow
def test_the_choice_of_a_kernel_is_not_exported(config, tmp_path):
    """It belongs to the machine of training: a model exported with it would not load elsewhere."""
    config.model.norm_options.implementation, config.num_steps = "plain", 1
    run(config, tmp_path / "run")
    config.mode = "export"
    run(config, tmp_path / "run")
    (directory,) = (tmp_path / "run").glob("exported-*")
    assert json.loads((directory / "config.json").read_text())["model"]["norm_options"] == {"num_groups": 4}
