"""Two processes of two devices each: stopped, killed, failing and missing, in training and in evaluations."""

import pytest

from gw_jax.train import run
from gw_jax.train.checkpoint import saved_steps
from tests.helpers.host import end, start
from tests.helpers.runs import evaluations, results

# Nothing is timed: a process that waits for another one is only given up after this many seconds.
PATIENT = {"distributed.timeout_s": 20}


def assert_same_lines(workdir, other):
    """Up to rounding: the devices' sums are taken in another order."""
    lines, expected = results(workdir), results(other)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("step", [10, 30])
def test_a_stop_in_an_evaluation_of_one_host_stops_both(finished, tmp_path, step):
    """In the middle of the run, and in its last evaluation: saved at that step, and evaluated by the resume."""
    workdir = tmp_path / "run"
    codes, said = end(start("toy", workdir, [PATIENT] * 2, ("none", f"SIGTERM@before_evaluation@{step}")))
    assert codes == [0, 0], said
    assert f"Stopped by SIGTERM after step {step}; saved in" in said[0]
    assert saved_steps(workdir)[-1] == step
    assert [line["step"] for line in evaluations(workdir)] == list(range(10, step, 10))
    codes, said = end(start("toy", workdir, [PATIENT] * 2))
    assert codes == [0, 0], said
    assert f"Resuming from step {step} of 30" in said[0]
    assert "4 cpu device(s) of 2 hosts" in said[0]
    assert_same_lines(workdir, finished[0])


@pytest.mark.slow
def test_a_stop_in_training_of_one_host_stops_both(finished, config, tmp_path):
    workdir = tmp_path / "run"
    codes, said = end(start("toy", workdir, [PATIENT] * 2, ("none", "SIGTERM@after_step@3")))
    assert codes == [0, 0], said
    assert "Stopped by SIGTERM after step" in said[0]
    assert 3 < saved_steps(workdir)[-1] < 30
    # One host resumes what two began.
    run(config, workdir)
    assert_same_lines(workdir, finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("host", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_host_is_named_by_the_other(tmp_path, host):
    faults = ["none", "none"]
    faults[host] = "SIGKILL@after_step@12"
    codes, said = end(start("toy", tmp_path / "run", [PATIENT] * 2, faults))
    assert codes[host] == -9
    assert codes[1 - host] == 1
    assert f"Process {host}" in said[1 - host].splitlines()[-1]
    assert said[1 - host].splitlines()[-1].startswith("error: ")
    assert saved_steps(tmp_path / "run") == [10]


@pytest.mark.slow
def test_a_missing_host_is_named(tmp_path):
    codes, said = end(start("toy", tmp_path / "run", [{"distributed.timeout_s": 3}] * 2, present=(0,)))
    assert codes == [1]
    assert said[0].startswith("error: ")
    assert len(said[0].splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_data_that_fail_on_one_host_end_both(tmp_path):
    changes = {**PATIENT, "broken": 13, "checkpoint.every_steps": 1}
    codes, said = end(start("toy", tmp_path / "run", [changes] * 2))
    assert codes == [1, 1]
    assert said[1].splitlines()[-1] == "error: The toy data are broken."
    assert said[0].splitlines()[-1].startswith("error: ")
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [10]
    # Step 14 trained on a substitute.
    assert saved_steps(tmp_path / "run")[-1] == 13


@pytest.mark.slow
def test_hosts_with_different_configurations_are_refused(tmp_path):
    codes, said = end(start("toy", tmp_path / "run", ({"num_epochs": 2}, {"num_epochs": 3})))
    assert codes == [1, 1]
    for message in said:
        assert "error: The hosts were not started alike: num_epochs is 2 in process 0" in message
        assert "and 3 in process 1" in message
    assert not (tmp_path / "run").exists()
