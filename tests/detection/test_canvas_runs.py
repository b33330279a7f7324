"""Runs on a prepared set over two canvases: killed and resumed, with workers, and on two hosts."""

import json
import multiprocessing
import os
import signal

import jax
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")

from gw_jax.train import Hooks, run
from gw_jax.versions import enable_x64
from tests.helpers.host import end, start
from tests.helpers.runs import KilledError, kill_at, results
from tests.helpers.scenes import make_config, prepare


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


def tiny(data_dir, **fields):
    config = make_config()
    config.data.data_dir = data_dir
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def detections(workdir, step=4):
    return json.loads((workdir / f"detections-{step}.json").read_text())


@pytest.mark.slow
@pytest.mark.long  # A run on one canvas is killed and resumes in test_evaluated_runs.py, a recipe in test_config_runs.py.
def test_a_run_over_two_canvases_is_killed_and_resumes(data_dir, tmp_path, quick):
    """Without workers first, and then with one."""
    devices = jax.devices()[:1]
    config = tiny(data_dir)
    config.checkpoint.every_steps = 2
    order = config.make_task().data._order
    # A batch of each canvas comes before the kill, and one after it.
    assert [order.batch(position)[0] for position in range(4)] == [(96, 64), (64, 96), (64, 96), (96, 64)]
    run(config, tmp_path / "whole", devices=devices)
    with pytest.raises(KilledError):
        run(config, tmp_path / "killed", hooks=kill_at(2), devices=devices)
    config.data.num_workers = 1
    run(config, tmp_path / "killed", devices=devices)
    whole = results(tmp_path / "whole")
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 4]
    assert whole[-1]["eval/count"] == 5
    assert results(tmp_path / "killed") == whole
    assert detections(tmp_path / "killed") == detections(tmp_path / "whole") != []


class KillAfter(Hooks):
    """Ends the run at the given call of a method, or, for "worker", a reading process, and the run a step later."""

    def __init__(self, moment, calls):
        self.calls, self.worker = calls, moment == "worker"
        setattr(self, "before_step" if self.worker else moment, self._count)

    def _count(self, trainer, *_):
        self.calls -= 1
        if self.calls == 0 and self.worker:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
        if self.calls == (-1 if self.worker else 0):
            trainer.checkpoints.wait()
            raise KilledError


MOMENTS = ("before_step", "after_step", "after_log", "before_save", "before_evaluation", "worker")


@pytest.mark.slow
@pytest.mark.long  # The kills one by one are those of tests/train/test_loop.py.
def test_killed_at_twenty_moments(data_dir, tmp_path, quick):
    """Steps, saves, evaluations and workers: metrics and detections are those of the undisturbed run."""
    devices, kills = jax.devices()[:1], 0
    fields = {"num_steps": 64, "eval_every_steps": 8}
    config = tiny(data_dir, **fields)
    config.checkpoint.every_steps = 3
    run(config, tmp_path / "whole", devices=devices)
    rng = np.random.default_rng(0)
    while kills < 20:
        moment = MOMENTS[rng.integers(len(MOMENTS))]
        config.data.num_workers = 1 if moment == "worker" else int(rng.integers(2))
        calls = int(rng.integers(1, 5 if moment in ("before_step", "after_step", "after_log", "worker") else 2))
        with pytest.raises(KilledError):
            run(config, tmp_path / "killed", hooks=KillAfter(moment, calls), devices=devices)
        kills += 1
    run(config, tmp_path / "killed", devices=devices)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert detections(tmp_path / "killed", 64) == detections(tmp_path / "whole", 64) != []


ENVIRONMENT = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.mark.slow
@pytest.mark.long  # Two hosts evaluate in test_evaluated_runs.py, and classifiers train on them.
def test_two_hosts_train_and_evaluate_as_one(data_dir, tmp_path, quick):
    with enable_x64():
        run(tiny(data_dir, dtype="float64"), tmp_path / "one", devices=jax.devices()[:4])
    changes = {"dtype": "float64", "data.data_dir": data_dir}
    codes, said = end(start("scenes", tmp_path / "two", [changes] * 2, **ENVIRONMENT))
    assert codes == [0, 0], said
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(one) == len(two) == 5
    for line, expected in zip(two, one, strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(line[name], value, rtol=1e-6, err_msg=name)
    found, expected = detections(tmp_path / "two"), detections(tmp_path / "one")
    assert len(found) == len(expected) > 5
    for a, b in zip(found, expected, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        np.testing.assert_allclose([*a["bbox"], a["score"]], [*b["bbox"], b["score"]], rtol=1e-5)
