"""Checkpoints: damage is distinguished from a failed read, nothing is deleted before it is replaced, copies are refused."""

import json
import pathlib
import re
import shutil

import pytest

from gw_jax.errors import CheckpointError, ConfigError, UserError
from gw_jax.train import checksums, run
from gw_jax.train.checkpoint import Checkpoints, saved_steps
from gw_jax.train.experiment import build_experiment
from tests.helpers.runs import At, KilledError, evaluations, results, stop_at


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def damage(directory, how):
    data = max(directory.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
    if how == "truncated":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif how == "missing":
        data.unlink()
    elif how == "one bit":
        flip_bit(data)
    elif how == "progress":
        flip_bit(directory / "progress" / "metadata")
    elif how == "metric":
        flip_bit(directory / "metrics" / "metrics")
    elif how == "checksums":
        flip_bit(directory / "checksums.json")
    elif how == "metadata":
        (directory / "_CHECKPOINT_METADATA").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "missing", "one bit", "progress", "metric", "checksums", "metadata"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_resumes(finished, config, how, capfd):
    workdir, _ = finished
    before = results(workdir)
    damage(workdir / "checkpoints" / "30", how)
    run(config, workdir)
    message = capfd.readouterr().err
    assert re.search(r"warning: The checkpoint \S*checkpoints/30 is damaged: .* is (not what was saved|damaged)", message)
    assert f"moved to {workdir}/checkpoints/damaged-30; the run resumes from step 20" in message
    assert results(workdir) == before
    assert saved_steps(workdir)[-1] == 30


@pytest.mark.parametrize("how", ["another number", "no JSON", "missing"])
def test_a_damaged_metric_of_an_older_checkpoint_does_not_stay(finished, config, tmp_path, how, capfd):
    """It would decide which checkpoints are kept, and Orbax reads all of them before it saves."""
    workdir = tmp_path / "run"
    run(config, workdir, hooks=stop_at(25))
    path = workdir / "checkpoints" / "20" / "metrics" / "metrics"
    if how == "missing":
        path.unlink()
    else:
        path.write_text(json.dumps({"eval/score": 1e9}) if how == "another number" else "{")
    run(config, workdir)
    assert "checkpoints/20 is damaged" in capfd.readouterr().err
    assert results(workdir) == results(finished[0])
    assert (workdir / "checkpoints" / "damaged-20").is_dir()


def test_a_damaged_checksum_is_damage(finished, config, capfd):
    """The file holds checksums only. A step in it, with one digit flipped, once looked like another checkpoint's."""
    workdir, result = finished
    path = workdir / "checkpoints" / "30" / "checksums.json"
    content = json.loads(path.read_text())
    assert content.keys() == {"sha256"}
    name = next(iter(content["sha256"]))
    content["sha256"][name] = content["sha256"][name].translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    path.write_text(json.dumps(content))
    assert run(config, workdir).metrics == result.metrics
    assert "the run resumes from step 20" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_damage_before_the_late_checksums(finished, config, name, capfd):
    """The run was killed after the rename, before the checksums of what is written then were added."""
    workdir, result = finished
    directory = workdir / "checkpoints" / "30"
    content = json.loads((directory / "checksums.json").read_text())
    for late in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        content["sha256"].pop(late, None)
    (directory / "checksums.json").write_text(json.dumps(content))
    if not (directory / name).exists():
        pytest.skip(f"Orbax of this version writes no {name}")
    flip_bit(directory / name)
    assert run(config, workdir).metrics == result.metrics


def test_the_best_checkpoint_is_not_chosen_by_damaged_metrics(finished, config):
    workdir, _ = finished
    config.mode = "evaluate"
    (workdir / "checkpoints" / "20" / "metrics" / "metrics").write_text(json.dumps({"eval/score": -1e9}))
    with pytest.raises(CheckpointError, match=r"metrics is not what was saved .*the best checkpoint is not known"):
        run(config, workdir)


def test_checkpoints_that_are_all_damaged_stay_and_are_named(finished, config):
    workdir, _ = finished
    before = results(workdir)
    there = sorted((workdir / "checkpoints").iterdir())
    for directory in there:
        damage(directory, "truncated")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used.*checkpoints/30, is damaged"):
        run(config, workdir)
    assert results(workdir) == before
    assert sorted((workdir / "checkpoints").iterdir()) == there


@pytest.mark.parametrize("failures", [2, 100])
def test_a_failed_read_is_retried_and_is_not_damage(finished, config, monkeypatch, failures):
    """A network file system that answers late costs a pause; one that never answers ends the start, and nothing moves."""
    workdir, result = finished
    there = sorted(workdir.rglob("*"))
    monkeypatch.setattr(checksums, "RETRY_PAUSES", (0.0, 0.0, 0.0))
    original, left = checksums._digest, [failures]

    def digest(path):
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(checksums, "_digest", digest)
    if failures == 2:
        assert run(config, workdir).metrics == result.metrics
    else:
        with pytest.raises(
            CheckpointError, match=r"cannot be read: .*Input/output error.* tried 4 times. Nothing was changed"
        ):
            run(config, workdir)
        assert sorted(workdir.rglob("*")) == there


def test_running_out_of_memory_is_not_damage(finished, config, monkeypatch):
    workdir, _ = finished

    def restore(*arguments, **options):
        raise MemoryError("out of memory")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.restore", restore)
    with pytest.raises(CheckpointError, match=r"checkpoints/30 cannot be restored \(MemoryError.*Nothing was changed"):
        run(config, workdir)
    assert (workdir / "checkpoints" / "30").is_dir()


def test_a_killed_save_without_checksums_is_used(finished, config):
    """As an older version saved it."""
    workdir, result = finished
    (workdir / "checkpoints" / "30" / "checksums.json").unlink()
    assert run(config, workdir).metrics == result.metrics


def test_damage_without_checksums_is_found_by_reading(finished, config, capfd):
    workdir, _ = finished
    before = results(workdir)
    (workdir / "checkpoints" / "30" / "checksums.json").unlink()
    # All of them: Orbax also leaves files that no restore reads.
    for data in (workdir / "checkpoints" / "30").glob("state/**/d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    run(config, workdir)
    assert "the run resumes from step 20" in capfd.readouterr().err
    assert results(workdir) == before


def test_a_checkpoint_that_was_copied_to_another_number_is_refused(finished, config):
    workdir, _ = finished
    (workdir / "checkpoints" / "30").rename(workdir / "checkpoints" / "1024")
    with pytest.raises(CheckpointError, match=r"checkpoints/1024 holds a checkpoint of step 30.*Rename it to 30"):
        run(config, workdir)
    (workdir / "checkpoints" / "1024" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints/1024 holds a checkpoint of step 30.*Rename it to 30"):
        run(config, workdir)


def test_checkpoints_without_their_configuration_are_refused(finished, config):
    workdir, _ = finished
    (workdir / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoints but no config\.json"):
        run(config, workdir)


def test_a_checkpoint_of_an_older_version_is_named(finished, config):
    workdir, _ = finished
    path = workdir / "checkpoints" / "30" / "progress" / "metadata"
    path.write_text(json.dumps({"data": {"next_index": 30}, "pending": [], "evaluated": True}))
    (workdir / "checkpoints" / "30" / "checksums.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "20")
    with pytest.raises(CheckpointError, match="was saved by an older version of gw_jax"):
        run(config, workdir)


@pytest.mark.parametrize("killed", ["before the new one is saved", "when it is complete"])
def test_a_checkpoint_exists_while_it_is_replaced(config, finished, tmp_path, killed, monkeypatch):
    """A stop in an evaluation saves a step, which the evaluation's own save replaces; the run is killed in between."""
    workdir = tmp_path / "run"
    config.checkpoint.keep_last, config.checkpoint.keep_best = 1, 0
    run(config, workdir, hooks=stop_at(20, method="before_evaluation"))
    assert saved_steps(workdir) == [20]
    if killed == "when it is complete":
        monkeypatch.setattr(shutil, "rmtree", kill)
    else:
        monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", kill)
    with pytest.raises(KilledError):
        run(config, workdir)
    monkeypatch.undo()
    kept = {path.name for path in (workdir / "checkpoints").iterdir() if (path / "state").is_dir()}
    assert kept == {"replaced-20"} if killed == "before the new one is saved" else {"replaced-20", "20"}
    run(config, workdir)
    assert results(workdir) == results(finished[0])
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"30"}


def kill(*arguments, **options):
    raise KilledError


def test_a_full_disk_is_named(config, tmp_path, monkeypatch):
    """The disk fills up after the first epoch: anything new is refused."""

    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    def fill(trainer):
        trainer.checkpoints.wait()
        for name in ("os.rename", "os.mkdir", "pathlib.Path.rename", "pathlib.Path.mkdir"):
            monkeypatch.setattr(name, refuse)

    with pytest.raises(CheckpointError, match=r"Is the disk full\? The checkpoint of step 10 is complete"):
        run(config, tmp_path / "run", hooks=At("before_save", 20, fill))
    monkeypatch.undo()
    assert saved_steps(tmp_path / "run") == [10]


def test_a_work_directory_that_is_removed_is_named(config, tmp_path):
    def remove(trainer):
        trainer.checkpoints.wait()
        shutil.rmtree(tmp_path / "run")

    with pytest.raises(UserError, match="was removed while the run"):
        run(config, tmp_path / "run", hooks=At("before_save", 20, remove))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checkpoints_are_verified_when_they_are_evaluated(finished, config):
    workdir, _ = finished
    for directory in (workdir / "checkpoints").iterdir():
        damage(directory, "one bit")
    config.mode = "evaluate"
    with pytest.raises(CheckpointError, match=r"is damaged: .*Nothing was changed. Move that directory away"):
        run(config, workdir)


def test_restore_gives_what_was_saved(finished, config):
    workdir, _ = finished
    experiment = build_experiment(config)
    checkpoints = Checkpoints(workdir, config.checkpoint, "eval/score")
    step, state, progress = checkpoints.restore_newest(experiment.state)
    checkpoints.close()
    assert (step, int(state.step)) == (30, 30)
    assert progress.evaluation["metrics"] == {k: v for k, v in evaluations(workdir)[-1].items() if k.startswith("eval/")}
    assert progress.data == {"next_index": 30}
    assert (progress.pending, progress.epoch_totals, progress.evaluated) == ([], {}, True)
    assert pathlib.Path(checkpoints.path(30)).is_dir()


def test_leftovers_of_a_killed_save_are_removed(finished, config):
    """They take the room of the next save."""
    workdir, result = finished
    (workdir / "checkpoints" / "30.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert run(config, workdir).metrics == result.metrics
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def test_a_checkpoint_that_cannot_be_renamed_is_named(finished, config, monkeypatch):
    workdir, _ = finished
    damage(workdir / "checkpoints" / "30", "one bit")

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoints/30 cannot be renamed to damaged-30: Permission denied"):
        run(config, workdir)
