"""Two processes of two devices each do what one process does, stop together, and refuse to start unlike."""

import subprocess

import jax
import numpy as np
import pytest

from gw_jax.train import run
from gw_jax.versions import enable_x64
from tests.helpers.host import end, start
from tests.helpers.runs import results, set_field

CHANGES = {
    "dtype": "float64",
    "data.flip": True,
    "data.crop": True,
    "data.image_size": 14,
    "data.eval_resize": 16,
    "model.batch_norm_group_size": 2,
    # Stages of more than one pixel, and small steps: what is compared is the arithmetic, not how a run amplifies rounding.
    "model.stem": "small",
    "optimizer.learning_rate": 0.0005,
    "log.every_steps": 1,
    "log.plot": False,
    "log.tensorboard": False,
    "num_epochs": 2,
}


ENVIRONMENT = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def run_here(config, workdir, num_devices):
    """The same run in this process on ``num_devices`` devices."""
    with enable_x64():
        run(config, workdir, devices=jax.devices()[:num_devices])
    return results(workdir)


def assert_same_run(lines, expected):
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            if name in ("step", "epoch", "eval/top1", "eval/top5", "eval/count", "train/top1"):
                assert line[name] == value
            else:
                np.testing.assert_allclose(line[name], value, rtol=1e-9)


@pytest.mark.slow
def test_two_hosts_train_stop_and_resume_like_one(config, tmp_path):
    for path, value in CHANGES.items():
        set_field(config, path, value)
    expected = run_here(config, tmp_path / "one", 1)
    assert [line["eval/count"] for line in expected if "eval/count" in line] == [50, 50]
    assert len([line for line in expected if "train/loss" in line]) == 20
    assert_same_run(run_here(config, tmp_path / "on4", 4), expected)

    # Only the second host receives the signal; both save the same step.
    workdir = tmp_path / "two_hosts"
    codes, said = end(start("shapes", workdir, [CHANGES] * 2, ("none", "SIGTERM@after_step@3"), **ENVIRONMENT))
    assert codes == [0, 0], said
    assert "Stopped by SIGTERM after step" in said[0]
    stopped_at = int(said[0].split("after step ")[1].split(";")[0])
    assert 3 <= stopped_at < 20
    assert_same_run(results(workdir), expected[: len(results(workdir))])
    codes, said = end(start("shapes", workdir, [CHANGES] * 2, **ENVIRONMENT))
    assert codes == [0, 0], said
    assert f"Resuming from step {stopped_at} of 20" in said[0]
    assert "4 cpu device(s) of 2 hosts" in said[0]
    assert_same_run(results(workdir), expected)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_of_four_devices_resumes_on_one_and_on_two_hosts(config, tmp_path):
    for path, value in CHANGES.items():
        set_field(config, path, value)
    # As many epochs as above: the same programs.
    config.checkpoint.every_steps = 15
    expected = run_here(config, tmp_path / "four", 4)
    for name in ("one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text((tmp_path / "four" / "config.json").read_text())
        subprocess.run(
            ["cp", "-r", str(tmp_path / "four" / "checkpoints" / "15"), str(tmp_path / name / "checkpoints" / "15")],
            check=True,
        )
    after = [line for line in expected if line["step"] > 15]
    assert len(after) == 6
    assert_same_run(run_here(config, tmp_path / "one", 1), after)
    codes, said = end(start("shapes", tmp_path / "two", [{**CHANGES, "checkpoint.every_steps": 15}] * 2, **ENVIRONMENT))
    assert codes == [0, 0], said
    assert "Resuming from step 15 of 20" in said[0]
    assert_same_run(results(tmp_path / "two"), after)
