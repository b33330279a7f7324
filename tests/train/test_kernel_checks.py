"""Kernels are checked before the first step of a run, and all hosts use the same ones."""

import json

import jax
import pytest

from gw_jax.errors import TrainingError
from gw_jax.ops.kernels import check_cache
from gw_jax.ops.kernels.check_cache import Answer
from gw_jax.train import kernel_checks, run
from gw_jax.train.checkpoint import saved_steps
from gw_jax.train.kernel_checks import KernelChecks, _agree
from gw_jax.train.mesh import make_mesh
from tests.helpers import pretend, whitened
from tests.helpers.host import end, start
from tests.helpers.pretend import LABEL, cache_file, images, keep, new_process, uses_kernel, whiten
from tests.helpers.runs import results

PASSED, FAILED = {"passed": True, "problem": ""}, {"passed": False, "problem": "it is wrong"}


@pytest.fixture(autouse=True)
def quick(quick_compilation, monkeypatch, tmp_path):
    monkeypatch.setenv(check_cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    with quick_compilation():
        yield


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return lambda **wrong: pretend.install(monkeypatch.setattr, **wrong)


def before_step(*, enabled=True, times=1):
    """What a run says before its first step."""
    checks, said = KernelChecks(make_mesh(jax.devices()[:1]), enabled=enabled), []
    checks.say = said.append
    step = jax.jit(lambda x: whiten(x))
    for _ in range(times):
        checks.before(step, images())
    return said


def test_a_right_kernel_is_checked_once_and_used(gpu, monkeypatch):
    gpu()
    (line,) = before_step(times=2)
    assert line.startswith("Kernels of Group Whitening on NVIDIA H200: 1 of 1 that fit the network were right")
    assert "(1 checked now, in " in line
    assert uses_kernel()
    new_process()
    monkeypatch.setattr("gw_jax.ops.kernel_check.check_kernel", lambda *arguments: pytest.fail("it was checked again"))
    (line,) = before_step()
    assert line.endswith("(checked before).")
    assert uses_kernel()


def test_a_wrong_kernel_is_named_and_not_used(gpu):
    gpu(flip=(4, 0, 0, 3))
    warning, line = before_step()
    assert warning.startswith(f"warning: The kernel {LABEL} is not used: its output is off by ")
    assert warning.endswith("Plain XLA runs instead.")
    assert "0 of 1 that fit" in line
    assert not uses_kernel()
    new_process()
    warning, _ = before_step()
    assert warning.endswith("(Checked less than an hour ago; python -m gw_jax.doctor checks again.)")


def test_without_the_check_only_earlier_answers_count(gpu):
    gpu()
    (line,) = before_step(enabled=False)
    assert line.endswith("1 were not checked (config.check_kernels=False) and are not used.")
    assert not uses_kernel()
    keep()
    (line,) = before_step(enabled=False)
    assert "1 of 1 that fit the network were right beside the definition (checked before)" in line
    assert uses_kernel()


def test_a_device_without_kernels_is_not_mentioned():
    assert before_step() == []


def test_a_kernel_that_takes_the_device_with_it_ends_the_run(gpu, monkeypatch):
    """The next start does not use it."""
    gpu(error=RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS"))

    def fail(device):
        raise RuntimeError("The device is lost")

    with monkeypatch.context() as lost:
        lost.setattr("gw_jax.ops.kernel_check._probe", fail)
        with pytest.raises(TrainingError, match=f"is not usable after the check of the kernel {LABEL}"):
            before_step()
    new_process()
    warning, _ = before_step()
    assert "it does not run (RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS)" in warning


@pytest.mark.parametrize(
    ("own", "others", "passed", "problem"),
    [
        (Answer(True), [PASSED, PASSED], True, ""),
        (Answer(True), [PASSED, FAILED], False, "on host1, it is wrong"),
        (Answer(False, "it is wrong"), [FAILED, PASSED], False, "on host0, it is wrong"),
        (Answer(False, "it is wrong"), [FAILED], False, "it is wrong"),
        (Answer(True), [PASSED, None], None, ""),
        (None, [None, FAILED], False, "on host1, it is wrong"),
    ],
)
def test_hosts_agree(own, others, passed, problem):
    agreed = _agree(own, [(f"host{index}", other) for index, other in enumerate(others)])
    assert (agreed is None and passed is None) or (agreed.passed, agreed.problem) == (passed, problem)


@pytest.mark.slow
def test_a_failure_of_another_process_of_this_machine_is_kept(gpu, monkeypatch):
    gpu()
    keep()
    machine = check_cache.machine()
    monkeypatch.setattr(kernel_checks, "gather", lambda name, value: [value, [machine, [FAILED]]])
    assert "it is wrong" in before_step()[0]
    assert not uses_kernel()
    assert not json.loads(cache_file().read_text())["answer"]["passed"]


@pytest.mark.slow
def test_a_run_continues_without_a_wrong_kernel(tmp_path, monkeypatch, capsys):
    config = whitened.make_config()
    config.num_steps = 2
    run(config, tmp_path / "cpu", devices=jax.devices()[:2])
    assert "ernel" not in capsys.readouterr().err
    pretend.install(monkeypatch.setattr, flip=(4, 0, 0, 3))
    run(config, tmp_path / "gpu", devices=jax.devices()[:2])
    said = capsys.readouterr().err
    assert said.count("warning: The kernel gpu_triton for 4 x 4 x 16") == 1
    # The evaluation has the same kernel.
    assert said.count("Kernels of Group Whitening") == 1
    assert not pretend.USED
    # The same numbers as without a kernel, but for the order of the sums, which differs between CPUs and GPUs.
    for found, expected in zip(results(tmp_path / "gpu"), results(tmp_path / "cpu"), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [1, pytest.param(-1, marks=pytest.mark.long)])
def test_two_hosts_use_the_same_kernels(tmp_path, wrong):
    """A kernel that is wrong on one of them is named, and used on none."""
    changes = [{"distributed.timeout_s": 30, "num_steps": 2}] * 2
    codes, said = end(start("whitened", tmp_path / "run", changes, PRETEND_WRONG=json.dumps(wrong)))
    assert codes == [0, 0], said
    assert saved_steps(tmp_path / "run") == [2]
    if wrong == 1:
        (line,) = [line for line in said[0].splitlines() if line.startswith("warning: The kernel")]
        assert f"is not used: on {check_cache.machine()}, its output is off by" in line
        assert "0 of 1 that fit the network were right" in said[0]
    else:
        assert "1 of 1 that fit the network were right" in said[0]
