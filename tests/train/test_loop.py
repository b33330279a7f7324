"""Whole runs, shrunk: to the end, stopped and resumed, diverging, in a directory that is not theirs."""

import copy
import json
import math
import os
import re
import signal

import jax
import pytest

from gw_jax.errors import CheckpointError, ConfigError, TrainingError
from gw_jax.train import loop, run, state
from gw_jax.train.metrics import read_metrics
from gw_jax.train.throughput import is_timing


def results(workdir):
    """All lines of metrics.jsonl, without the figures that depend on the clock."""
    return [{name: value for name, value in line.items() if not is_timing(name)} for line in read_metrics(workdir)]


def stop_after(monkeypatch, step, number=signal.SIGTERM):
    """Sends ``number`` to this process when a run has taken ``step`` steps."""
    original = loop._Trainer._take_step

    def take_step(self):
        original(self)
        if self.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop._Trainer, "_take_step", take_step)


def test_a_run_to_its_end(finished, config):
    workdir, outcome = finished
    lines = read_metrics(workdir)
    evaluations = [line for line in lines if "eval/count" in line]
    assert [line["step"] for line in evaluations] == [10, 20, 30]
    assert [line["epoch"] for line in evaluations] == [1, 2, 3]
    assert all(line["eval/count"] == 50 for line in evaluations)
    assert evaluations[-1]["eval/top1"] > 0.8
    assert outcome.metrics == {k: v for k, v in evaluations[-1].items() if k.startswith("eval/")}
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert all(line["train/images_per_sec"] > 0 and line["train/step_ms"] > 0 for line in training[1:])
    assert all(0 <= line["train/data_wait"] <= 1 for line in training[1:])
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").glob("events*"))
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["config"]["optimizer.learning_rate"] == config.optimizer.learning_rate
    assert "jax" in stored["versions"]
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    best = max(evaluations, key=lambda line: (line["eval/top1"], line["step"]))["step"]
    assert kept == {20, 30, best}


def test_a_finished_run_is_not_run_again(finished, config, monkeypatch):
    workdir, outcome = finished
    before = results(workdir)
    monkeypatch.setattr(loop._Trainer, "_take_step", lambda self: pytest.fail("a step was taken"))
    assert run(config, workdir).metrics == outcome.metrics
    assert results(workdir) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [7, 10])
def test_stopped_and_resumed_ends_with_the_same_numbers(finished, config, tmp_path, monkeypatch, capfd, step, number):
    workdir, handler = tmp_path / "stopped", signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_after(patch, step, number)
        assert run(config, workdir).stopped_by == number
    message = capfd.readouterr().err
    assert f"Stopped by {number.name} after step {step}; saved in {workdir}/checkpoints/{step}" in message
    assert signal.getsignal(number) == handler
    assert run(config, workdir).stopped_by is None
    assert results(workdir) == results(finished[0])


def test_stopped_in_an_evaluation(finished, config, tmp_path, monkeypatch):
    workdir = tmp_path / "stopped"

    def evaluate(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    original = loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        assert run(config, workdir).stopped_by == signal.SIGTERM
    assert not [line for line in results(workdir) if "eval/count" in line]
    run(config, workdir)
    assert results(workdir) == results(finished[0])


def test_killed_between_saves(finished, config, tmp_path, monkeypatch):
    """What was written after the last checkpoint is taken again, not twice."""
    workdir = tmp_path / "killed"
    config.checkpoint.every_steps = 3

    class Killed(BaseException):
        pass

    original = loop._Trainer._take_step

    def take_step(self):
        if self.step == 18:
            self.checkpoints.wait()
            raise Killed
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "_take_step", take_step)
        with pytest.raises(Killed):
            run(config, workdir)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "epoch": 1.9, "train/loss": 123}\n{"step": 2')
    run(config, workdir)
    assert results(workdir) == results(finished[0])


def test_evaluate_alone_gives_the_numbers_of_training(finished, config, capfd):
    workdir, _ = finished
    lines = {line["step"]: line for line in results(workdir) if "eval/count" in line}
    config.mode = "evaluate"
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*") if path.is_file()}
    for which, step in (("last", 30), ("best", max(lines, key=lambda s: (lines[s]["eval/top1"], s)))):
        config.checkpoint.evaluate = which
        run(config, workdir)
        printed = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
        assert printed == {"checkpoint": which, **{k: v for k, v in lines[step].items() if k != "epoch"}}
        assert json.loads((workdir / "evaluation.json").read_text()) == printed
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_resumes_on_another_number_of_devices(finished, config, tmp_path, monkeypatch):
    workdir = tmp_path / "moved"
    with monkeypatch.context() as patch:
        stop_after(patch, 15)
        patch.setattr("gw_jax.train.setup.make_mesh", lambda devices: state.make_mesh(jax.devices()[:1]))
        run(config, workdir)
    run(config, workdir)
    # The order of the data, the schedule and the counts are the same; test_step.py compares the losses.
    for line, expected in zip(results(workdir), results(finished[0]), strict=True):
        assert line.keys() == expected.keys()
        for name in ("step", "epoch", "train/learning_rate", "eval/count"):
            assert line.get(name) == expected.get(name)


def test_another_config_in_the_work_directory_is_refused(finished, config):
    workdir, _ = finished
    before = results(workdir)
    other = copy.deepcopy(config)
    other.optimizer.learning_rate, other.log.every_steps = 0.2, 7
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate is 0.05 there and 0.2 now. Give another --workdir"):
        run(other, workdir)
    assert results(workdir) == before
    other.optimizer.learning_rate = 0.05
    run(other, workdir)  # How often lines are written may change.


def damage_checkpoint(directory, how):
    for path in directory.glob("state/**/d/*"):
        content = path.read_bytes()
        middle = len(content) // 2
        if how == "truncated":
            path.write_bytes(content[:middle])
        elif how == "scrambled":
            path.write_bytes(
                content[:middle] + bytes(255 - b for b in content[middle : middle + 16]) + content[middle + 16 :]
            )
        else:
            path.unlink()


@pytest.mark.parametrize("how", ["truncated", "missing", "scrambled"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(finished, config, how, tmp_path, capfd):
    workdir, _ = finished
    before = results(workdir)
    damage_checkpoint(workdir / "checkpoints" / "30", how)
    run(config, workdir)
    message = capfd.readouterr().err
    assert re.search(r"warning: The checkpoint \S*checkpoints/30 cannot be read", message)
    assert f"moved to {workdir}/checkpoints/damaged-30; the run goes on from step 20" in message
    assert results(workdir) == before
    assert (workdir / "checkpoints" / "30").is_dir()


def test_checkpoints_that_are_all_damaged_stay_and_are_named(finished, config):
    workdir, _ = finished
    before = results(workdir)
    there = sorted((workdir / "checkpoints").iterdir())
    for directory in there:
        damage_checkpoint(directory, "truncated")
    with pytest.raises(CheckpointError, match=r"checkpoints/30 cannot be read"):
        run(config, workdir)
    assert results(workdir) == before
    assert sorted((workdir / "checkpoints").iterdir()) == there


def test_a_loss_that_is_not_finite_stops_the_run(shapes, config, tmp_path, monkeypatch):
    original = loop._Trainer._take_step

    def take_step(self):
        if self.step == 13:
            poisoned = jax.tree.map(lambda a: a * math.nan, self.state.params)
            self.state = type(self.state)(self.state.step, poisoned, self.state.batch_stats, self.state.opt_state)
        original(self)

    monkeypatch.setattr(loop._Trainer, "_take_step", take_step)
    with pytest.raises(
        TrainingError, match=r"At step 14 the loss is nan .*last good checkpoint is .*checkpoints/10.*Lower"
    ):
        run(config, tmp_path / "run")
    assert results(tmp_path / "run")[-1]["step"] == 12
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10"]


def test_a_diverging_run_stops(shapes, config, tmp_path):
    config.optimizer.learning_rate, config.schedule.warmup_epochs = 1e30, 0.0
    with pytest.raises(TrainingError, match=r"At step [1-9] the loss is .*Nothing was saved before"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 12}, r"data.batch_size=12 cannot be split evenly over 8 devices.* such as 8 or 16"),
        ({"data.eval_batch_size": 25}, r"data.eval_batch_size=25 cannot be split evenly over 8 devices"),
        ({"data.batch_size": 168}, r"data.batch_size=168 exceeds the 160 training examples"),
        (
            {"model.norm_options.num_groups": 3},
            r"network of config.model cannot be made: 4 channels cannot be cut into num_gr",
        ),
        ({"model.batch_norm_group_size": 5}, r"model.batch_norm_group_size=5 does not divide config.data.batch_size=16"),
        ({"model.norm": "bn", "model.norm_options.group_size": 5}, r"model.norm_options.group_size=5 does not divide"),
        ({"dtype": "float64"}, r"dtype=float64 needs 64-bit types; set the environment variable JAX_ENABLE_X64=1"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(shapes, config, set_field, tmp_path, changes, message):
    for path, value in changes.items():
        set_field(config, path, value)
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_evaluate_is_named(shapes, config, tmp_path):
    config.mode = "evaluate"
    with pytest.raises(CheckpointError, match="holds no run to evaluate"):
        run(config, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_file_as_work_directory_is_named(shapes, config, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file is a file"):
        run(config, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
