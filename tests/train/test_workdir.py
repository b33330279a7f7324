"""A work directory has one owner, and only one process trains in it."""

import copy
import json

import pytest

from gw_jax.classification import ClassificationConfig
from gw_jax.errors import ConfigError
from gw_jax.train import run
from gw_jax.train.config_fields import flatten, set_field
from gw_jax.train.workdir import (
    check_local_path,
    check_same_run,
    claim_workdir,
    config_from_stored,
    may_differ,
    stored_config,
    write_or_warn,
)
from gw_jax.train.workdir_lock import LOCK_FILE, WorkdirLock
from tests.helpers import toy

FIELDS = sorted(flatten(ClassificationConfig()))


# Written out: a field that is added to the configuration is in neither, so it must not change.
MAY_CHANGE_FIELDS = {
    "mode",
    "check_kernels",
    "data.data_dir",
    "data.num_threads",
    "data.num_workers",
    "data.max_broken",
    *(name for name in FIELDS if name.split(".")[0] in ("checkpoint", "distributed", "log")),
}


EVALUATION_FIELDS = {
    "data.name",
    "data.allow_partial",
    "data.eval_name",
    "data.eval_batch_size",
    "data.eval_resize",
    "dtype",
}


def another(value):
    """A value that differs from ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, "x"]
    return "another" if value != "another" else "x"


@pytest.fixture
def default():
    return ClassificationConfig()


@pytest.fixture
def workdir(tmp_path, default):
    claim_workdir(tmp_path / "run", default)
    return tmp_path / "run"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_run_is_compared(workdir, default, name):
    set_field(default, name, another(flatten(default)[name]))
    before = (workdir / "config.json").read_bytes()
    if name in MAY_CHANGE_FIELDS:
        default.mode = "train"
        assert check_same_run(workdir, default)
        claim_workdir(workdir, default)
    else:
        with pytest.raises(ConfigError, match=rf"config\.{name} is .* there and .* now"):
            claim_workdir(workdir, default)
        assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("mode", ["evaluate", "export"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_is_given_to_evaluate_or_export_is_compared(workdir, default, name, mode):
    stored = stored_config(workdir)
    other = flatten(default)[name] if name == "mode" else another(flatten(default)[name])
    set_field(default, name, other)
    default.mode = mode
    free = MAY_CHANGE_FIELDS | (EVALUATION_FIELDS if mode == "evaluate" else set())
    if name in free:
        assert flatten(config_from_stored(workdir, stored, default, {name})) == flatten(default)
    else:
        with pytest.raises(ConfigError, match=rf"config\.{name} is .* there and .* now"):
            config_from_stored(workdir, stored, default, {name})


def test_names_that_may_differ_are_whole_names_or_groups():
    known = set(FIELDS) | {"distributed.timeout_s"}
    config = ClassificationConfig(mode="evaluate")
    for name in (*config.MAY_CHANGE, *config.MAY_DIFFER_IN_EVALUATION):
        assert any(field.startswith(name) for field in known) if name.endswith(".") else name in known
    assert not may_differ("model.name", config)
    assert not may_differ("models", ClassificationConfig())


def test_evaluation_starts_from_the_configuration_of_the_run(workdir, default):
    trained = copy.deepcopy(default)
    trained.optimizer.learning_rate, trained.model.norm, trained.optimizer.no_decay = 0.5, "gn", ("bias$",)
    trained.data.image_size = 32
    claim_workdir(workdir.parent / "other", trained)
    default.mode, default.data.eval_name = "evaluate", "imagenet_v2"
    found = config_from_stored(
        workdir, stored_config(workdir.parent / "other"), default, frozenset({"mode", "data.eval_name"})
    )
    expected = copy.deepcopy(trained)
    expected.mode, expected.data.eval_name = "evaluate", "imagenet_v2"
    assert found == expected
    assert default.model.norm == "gw"  # Not changed.


def test_from_python_every_field_counts_as_given(workdir, default):
    default.mode, default.model.norm = "evaluate", "gn"
    with pytest.raises(ConfigError, match=r"config\.model\.norm is 'gw' there and 'gn' now"):
        config_from_stored(workdir, stored_config(workdir), default)


def test_fields_newer_than_the_run_had_their_defaults(workdir, default):
    stored = stored_config(workdir)
    del stored["model.dropout"]
    (workdir / "config.json").write_text(json.dumps({"config": stored}))
    assert check_same_run(workdir, default)
    default.mode = "export"
    assert config_from_stored(workdir, stored, default, {"model.dropout"}).model.dropout == 0.0
    default.mode, default.model.dropout = "train", 0.5
    with pytest.raises(ConfigError, match=r"model\.dropout is 0\.0 there"):
        check_same_run(workdir, default)


def test_a_run_of_another_task_is_named(workdir, default):
    stored = stored_config(workdir) | {"detector.anchors": 9}
    with pytest.raises(ConfigError, match=r"a field config.detector.anchors, which a ClassificationConfig does not have"):
        config_from_stored(workdir, stored, default, frozenset())


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '{"config": null}', '{"config": []}', "{}", "[" * 100_000])
def test_a_damaged_config_is_named(workdir, default, content):
    (workdir / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as the configuration of a run"):
        check_same_run(workdir, default)


def test_checkpoints_without_a_config_are_refused(workdir, default):
    (workdir / "config.json").unlink()
    assert not check_same_run(workdir, default)
    for item in ("state", "progress"):
        (workdir / "checkpoints" / "7" / item).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints but no config\.json"):
        check_same_run(workdir, default)


def test_a_directory_without_complete_checkpoints_is_unclaimed(tmp_path, default):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "7").touch()
    (tmp_path / "checkpoints" / "8").mkdir()
    assert not check_same_run(tmp_path, default)


@pytest.mark.parametrize("name", ["", "checkpoints", "tensorboard", "profile"])
def test_a_file_in_the_place_of_a_directory_is_named(tmp_path, default, name):
    path = tmp_path / "run" / name if name else tmp_path / "run"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        check_same_run(tmp_path / "run", default)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluation.json"])
def test_a_directory_in_the_place_of_a_file_is_named(tmp_path, default, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="is a directory; a run needs a file"):
        check_same_run(tmp_path, default)


@pytest.mark.parametrize("path", ["gs://bucket/x", "s3://bucket/x", "hdfs://a/b", "file:///tmp/x", "gs:/bucket/x"])
def test_urls_are_no_local_paths(path):
    with pytest.raises(ConfigError, match=r"--workdir=.* is a URL, and only local paths are supported"):
        check_local_path(path, "--workdir")


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_local_path("~/x", "--workdir") == tmp_path / "x"
    for path in ("runs/a:b", "c:", "/a/b", "runs/x:y/z"):
        assert str(check_local_path(path, "--workdir")) == path
    with pytest.raises(ConfigError, match="--workdir is empty"):
        check_local_path("", "--workdir")


def test_a_result_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    write_or_warn(tmp_path / "new" / "evaluation.json", "{}")
    assert (tmp_path / "new" / "evaluation.json").read_text() == "{}"
    (tmp_path / "file").touch()
    write_or_warn(tmp_path / "file" / "evaluation.json", "{}")
    assert "evaluation.json cannot be written: " in capsys.readouterr().err


def test_evaluation_needs_no_flags_of_the_training_command(finished, config):
    workdir, result = finished
    command_line = toy.ToyConfig(mode="evaluate")
    command_line.checkpoint.evaluate = "last"
    assert command_line.optimizer != config.optimizer
    given = frozenset({"mode", "checkpoint.evaluate"})
    assert run(command_line, workdir, given=given).metrics == result.metrics
    with pytest.raises(ConfigError, match=r"config\.optimizer\.learning_rate is .* there and .* now"):
        run(command_line, workdir, given=given | {"optimizer.learning_rate"})


def test_runs_in_a_bucket_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is a URL"):
        run(toy.make_config(), "gs://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_one_directory_is_refused(config, tmp_path):
    with WorkdirLock(tmp_path / "run"), pytest.raises(ConfigError, match="is in use by another run"):
        run(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
