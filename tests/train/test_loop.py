"""Whole runs of the toy task: to the end, stopped and resumed, diverging, of any length."""

import dataclasses
import json
import math
import os
import signal
import sys

import jax
import numpy as np
import pytest

from gw_jax.errors import ConfigError, DataError, TrainingError
from gw_jax.train import TrainConfig, run
from gw_jax.train.evaluation import evaluate
from gw_jax.train.experiment import build_experiment
from gw_jax.train.metrics import read_metrics
from gw_jax.train.stop import StopConsensus
from tests.helpers import toy
from tests.helpers.runs import At, KilledError, evaluations, kill_at, results, stop_at


def test_a_run_to_its_end(finished, config):
    workdir, result = finished
    lines = read_metrics(workdir)
    assert [line["step"] for line in evaluations(workdir)] == [10, 20, 30]
    assert [line["epoch"] for line in evaluations(workdir)] == [1, 2, 3]
    assert all(line["eval/count"] == 100 for line in evaluations(workdir))
    assert result.metrics == {k: v for k, v in evaluations(workdir)[-1].items() if k.startswith("eval/")}
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert all(line["train/examples_per_sec"] > 0 and line["train/step_ms"] > 0 for line in training)
    assert all(0 <= line["train/data_wait"] <= 1 for line in training)
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["config"]["optimizer.learning_rate"] == config.optimizer.learning_rate
    assert "jax" in stored["versions"]
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    best = max(evaluations(workdir), key=lambda line: (line["eval/score"], line["step"]))["step"]
    assert kept == {20, 30, best}


def test_the_line_at_the_end_of_an_epoch_is_the_mean_of_the_epoch(config, tmp_path):
    config.log.every_steps = 1
    run(config, tmp_path / "every")
    steps = {line["step"]: line for line in results(tmp_path / "every") if "train/loss" in line}
    config.log.every_steps = 4
    run(config, tmp_path / "run")
    lines = {line["step"]: line for line in results(tmp_path / "run") if "train/loss" in line}
    # Step 10 itself is hidden in `every`: its line is that of the epoch, too.
    assert lines[10]["train/loss"] == pytest.approx(steps[10]["train/loss"], rel=1e-12)
    tenth = 10 * steps[10]["train/loss"] - sum(steps[step]["train/loss"] for step in range(1, 10))
    assert 0 < tenth < 10
    assert lines[16]["train/loss"] == pytest.approx(np.mean([steps[step]["train/loss"] for step in range(13, 17)]))
    assert lines[16]["train/close"] == pytest.approx(np.mean([steps[step]["train/close"] for step in range(13, 17)]))


def test_curves_and_tensorboard(config, tmp_path):
    config.log.plot = config.log.tensorboard = True
    config.num_epochs = 1
    run(config, tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_curves_that_cannot_be_drawn_are_a_warning(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    config.log.plot, config.num_epochs = True, 1
    assert run(config, tmp_path / "run").metrics
    assert "warning: config.log.plot needs the package" in capsys.readouterr().err


def test_a_task_without_curves_plots_none(config, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.ToyTask, "curves", ())
    config.log.plot, config.num_epochs = True, 1
    assert run(config, tmp_path / "run").metrics
    assert not (tmp_path / "run" / "curves.png").exists()


class NoStep:
    """Hooks that refuse to train."""

    def __getattr__(self, name):
        return lambda *_: pytest.fail("a step was taken") if name == "before_step" else None


def test_a_finished_run_is_not_repeated(finished, config):
    workdir, result = finished
    before = results(workdir)
    assert run(config, workdir, hooks=NoStep()).metrics == result.metrics
    assert results(workdir) == before


def test_a_finished_run_without_its_metrics_answers_from_the_checkpoint(finished, config, capsys):
    workdir, result = finished
    (workdir / "metrics.jsonl").unlink()
    assert run(config, workdir, hooks=NoStep()).metrics == result.metrics
    assert f"eval/mse {result.metrics['eval/mse']:.4f}" in capsys.readouterr().out
    assert evaluations(workdir)[-1]["eval/mse"] == result.metrics["eval/mse"]


@pytest.mark.usefixtures("hangup_stops")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP))]
)
@pytest.mark.parametrize("step", [7, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.long])])
def test_stopped_and_resumed_ends_with_the_same_numbers(finished, config, tmp_path, capfd, step, number):
    workdir, handler = tmp_path / "stopped", signal.getsignal(number)
    assert run(config, workdir, hooks=stop_at(step, number)).stopped_by == number
    message = capfd.readouterr().err
    assert f"Stopped by {number.name} after step {step}; saved in {workdir}/checkpoints/{step}" in message
    assert signal.getsignal(number) == handler
    assert run(config, workdir).stopped_by is None
    assert results(workdir) == results(finished[0])


def test_stopped_before_the_first_step(finished, config, tmp_path, capfd):
    """The checkpoint that the message names exists."""
    workdir = tmp_path / "stopped"

    class Batches(toy.ToyBatches):
        def skip_to(self, step):
            super().skip_to(step)
            if step == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "ToyBatches", Batches)
        assert run(config, workdir).stopped_by == signal.SIGTERM
    assert "after step 0; saved in" in capfd.readouterr().err
    assert (workdir / "checkpoints" / "0" / "state").is_dir()
    run(config, workdir)
    assert results(workdir) == results(finished[0])


@pytest.mark.parametrize("step", [10, 30])
@pytest.mark.slow
def test_stopped_in_an_evaluation(finished, config, tmp_path, step):
    """In the middle of the run, and in its last evaluation: nothing is lost, and nothing is done twice."""
    workdir = tmp_path / "stopped"
    assert run(config, workdir, hooks=stop_at(step, method="before_evaluation")).stopped_by == signal.SIGTERM
    assert [line["step"] for line in evaluations(workdir)] == list(range(10, step, 10))
    assert run(config, workdir).metrics == finished[1].metrics
    assert results(workdir) == results(finished[0])


@pytest.mark.parametrize("method", ["before_step", "before_evaluation", "before_save", "after_log"])
@pytest.mark.slow
def test_killed_between_saves(finished, config, tmp_path, method):
    """Lines that were written after the last checkpoint are not there twice."""
    workdir = tmp_path / "killed"
    config.checkpoint.every_steps = 3
    step = {"before_step": 17, "before_evaluation": 20, "before_save": 18, "after_log": 16}[method]
    with pytest.raises(KilledError):
        run(config, workdir, hooks=kill_at(step, method))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "epoch": 1.9, "train/loss": 123}\n{"step": 2')
    run(config, workdir)
    assert results(workdir) == results(finished[0])


def test_evaluate_alone_gives_the_numbers_of_training(finished, config, capfd):
    workdir, _ = finished
    lines = {line["step"]: line for line in evaluations(workdir)}
    config.mode = "evaluate"
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    for which, step in (("last", 30), ("best", max(lines, key=lambda s: (lines[s]["eval/score"], s)))):
        config.checkpoint.evaluate = which
        run(config, workdir)
        printed = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
        assert printed == {"checkpoint": which, **{k: v for k, v in lines[step].items() if k != "epoch"}}
        assert json.loads((workdir / "evaluation.json").read_text()) == printed
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_evaluate_needs_neither_training_data_nor_a_batch_that_divides(finished, config, monkeypatch):
    """The run's own batch of 16 does not fit 3 devices, and its training data cannot be opened."""
    workdir, result = finished
    config.mode, config.checkpoint.evaluate = "evaluate", "last"
    monkeypatch.setattr(toy.ToyTask, "train_batches", lambda *_: pytest.fail("training data were opened"))
    monkeypatch.setattr(
        toy.ToyEvalBatches, "__iter__", lambda self: iter([toy.examples(range(48), 1) | {"mask": np.ones(48, bool)}])
    )
    assert run(config, workdir, devices=jax.devices()[:3]).metrics["eval/count"] == 48
    assert result.metrics["eval/count"] == 100


def test_resumes_on_another_number_of_devices(finished, config, tmp_path):
    workdir = tmp_path / "moved"
    run(config, workdir, hooks=stop_at(15), devices=jax.devices()[:1])
    run(config, workdir)
    for line, expected in zip(results(workdir), results(finished[0]), strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(line[name], value, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    def poison(trainer):
        trainer.state = type(trainer.state)(
            trainer.state.step,
            jax.tree.map(lambda a: a * math.nan, trainer.state.params),
            trainer.state.batch_stats,
            trainer.state.opt_state,
        )

    message = r"At step 14 the loss is nan .*last good checkpoint is .*checkpoints/10.*Lower"
    with pytest.raises(TrainingError, match=message):
        run(config, tmp_path / "run", hooks=At("before_step", 13, poison))
    assert results(tmp_path / "run")[-1]["step"] == 12
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10"]


def test_a_loss_that_is_not_finite_is_found_before_an_evaluation(config, tmp_path):
    """Also where no line is written in between: an evaluation of such weights says less, and takes its time."""

    def poison(trainer):
        trainer.state = dataclasses.replace(
            trainer.state, params=jax.tree.map(lambda a: a * math.nan, trainer.state.params)
        )

    config.log.every_steps, config.eval_every_steps = 1000, 3
    with pytest.raises(TrainingError, match="At step 2 the loss is nan"):
        run(config, tmp_path / "run", hooks=At("before_step", 1, poison))


def test_a_diverging_run_stops(config, tmp_path):
    config.optimizer.learning_rate, config.schedule.warmup_epochs = 1e30, 0.0
    with pytest.raises(TrainingError, match=r"At step [1-9] the loss is .*Nothing was saved before"):
        run(config, tmp_path / "run")


def test_data_that_fail_end_the_run(config, tmp_path):
    config.broken = 13
    with pytest.raises(DataError, match="toy data are broken"):
        run(config, tmp_path / "run")
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [10]


def test_length_evaluation_and_saving_in_steps(config, tmp_path):
    config.num_steps, config.eval_every_steps, config.checkpoint.every_epochs = 27, 9, 2
    config.checkpoint.keep_last = 10
    run(config, tmp_path / "run")
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [9, 18, 27]
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == [9, 18, 20, 27]
    assert results(tmp_path / "run")[-2]["step"] == 27
    assert "train/loss" in results(tmp_path / "run")[-2]


def test_one_compiled_step_per_batch_shape(config, tmp_path):
    """Batches of two shapes take turns, and each shape is compiled once."""
    compiled = []

    class Batches(toy.ToyBatches):
        def __next__(self):
            batch = super().__next__()
            return batch if self.position % 3 else {name: array[:8] for name, array in batch.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "ToyBatches", Batches)
        patch.setattr(toy.ToyTask, "loss", counted(toy.ToyTask.loss, compiled))
        run(config, tmp_path / "run")
    assert sorted(set(compiled)) == [8, 16]
    # Once for the gradient's value and shape in each program.
    assert len(compiled) <= 4


def counted(loss, compiled):
    def wrapper(self, model, batch, key):
        compiled.append(len(batch["y"]))
        return loss(self, model, batch, key)

    return wrapper


def test_a_directory_that_is_no_checkpoint_is_moved_away(config, tmp_path, capfd):
    """An empty directory and a file among the checkpoints do not keep a run from its warm start."""
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "30").touch()
    run(config, tmp_path / "other")
    config.mode = "export"
    run(config, tmp_path / "other")
    (exported,) = (tmp_path / "other").glob("exported-*")
    config.mode, config.init_from, config.optimizer.learning_rate = "train", str(exported), 0.0
    config.schedule.warmup_epochs, config.noise = 0.0, 0.0
    run(config, tmp_path / "run")
    first = results(tmp_path / "run")[0]["train/loss"]
    assert first < results(tmp_path / "other")[0]["train/loss"] / 2
    assert "checkpoints/7 is no checkpoint; it was moved to" in capfd.readouterr().err


def test_a_configuration_without_a_task_is_named(tmp_path):
    with pytest.raises(ConfigError, match="A TrainConfig has no task"):
        run(TrainConfig(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_invalid_combinations_are_named_before_anything_is_written(config, tmp_path):
    config.batch_size = 12
    with pytest.raises(ConfigError, match="batch_size=12 does not fit 8 devices"):
        run(config, tmp_path / "run")
    config.batch_size, config.accumulate_steps = 16, 3
    with pytest.raises(ConfigError, match="accumulate_steps=3 does not divide the batch of 16 examples; choose a divisor"):
        run(config, tmp_path / "run")
    config.accumulate_steps, config.dtype = 1, "float64"
    with pytest.raises(ConfigError, match="needs 64-bit types; set the environment variable JAX_ENABLE_X64=1"):
        run(config, tmp_path / "run")
    config.dtype, config.optimizer.frozen = "auto", ("haed",)
    with pytest.raises(ConfigError, match=r"frozen names 'haed', which no parameter's path matches"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_fail_in_an_evaluation_are_named_by_their_own_host(config, monkeypatch, tmp_path):
    """Of several hosts; the others only learn that one failed."""
    experiment = build_experiment(config)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        consensus = StopConsensus(None)
    batches = toy.ToyEvalBatches(0, 1)
    batches.on_batch = lambda number: setattr(batches, "failure", DataError("Unreadable.") if number else None)
    with pytest.raises(DataError, match="Unreadable"):
        evaluate(experiment, experiment.state, batches, consensus, tmp_path)
