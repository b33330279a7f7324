"""Kernels are checked before the first step of a run, and all hosts use the same ones."""

import json
import re

import jax
import pytest

from gw_jax.ops.kernels import check_cache
from gw_jax.ops.kernels.check_cache import Answer
from gw_jax.errors import TrainingError
from gw_jax.train import run
from gw_jax.train.checkpoint import saved_steps
from gw_jax.train.kernel_checks import KernelChecks, _agree
from gw_jax.train.mesh import make_mesh
from tests.helpers import pretend, whitened
from tests.helpers.host import end, start
from tests.helpers.runs import results

PASSED, FAILED = {"passed": True, "problem": ""}, {"passed": False, "problem": "it is wrong"}
LABEL = "gpu_triton for 4 x 4 x 16, float32, 16 groups, 5 iterations, ReLU"


@pytest.fixture(autouse=True)
def quick(quick_compilation, monkeypatch, tmp_path):
    monkeypatch.setenv(check_cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    with quick_compilation():
        yield


@pytest.fixture
def config():
    config = whitened.make_config()
    config.num_steps = 2
    return config


def train(config, workdir, capsys):
    pretend.USED.clear()
    run(config, workdir, devices=jax.devices()[:2])
    return capsys.readouterr().err


def test_a_right_kernel_is_checked_once_and_used(config, tmp_path, monkeypatch, capsys):
    pretend.install(monkeypatch.setattr)
    said = train(config, tmp_path / "a", capsys)
    assert re.search(r"on NVIDIA H200: 1 of 1 that fit the network were right .*1 checked now", said)
    # The evaluation has the same kernel.
    assert said.count("Kernels of Group Whitening") == 1
    assert pretend.USED
    pretend.new_process()
    monkeypatch.setattr("gw_jax.ops.kernel_check.check_kernel", lambda *arguments: pytest.fail("it was checked again"))
    assert "(checked before)" in train(config, tmp_path / "b", capsys)
    assert pretend.USED


def test_a_wrong_kernel_is_named_and_not_used(config, tmp_path, monkeypatch, capsys):
    whole = tmp_path / "cpu"
    said = train(config, whole, capsys)
    assert "ernel" not in said  # Nothing about kernels on a CPU.
    pretend.install(monkeypatch.setattr, flip=(4, 0, 0, 3))
    said = train(config, tmp_path / "gpu", capsys)
    (line,) = [line for line in said.splitlines() if line.startswith("warning:")]
    assert line.startswith(f"warning: The kernel {LABEL} is not used: its output is off by ")
    assert not pretend.USED
    # The same numbers as without a kernel.
    assert results(tmp_path / "gpu") == results(whole)


def test_without_the_check_only_earlier_answers_count(config, tmp_path, monkeypatch, capsys):
    pretend.install(monkeypatch.setattr)
    config.check_kernels = False
    assert "1 were not checked (config.check_kernels=False)" in train(config, tmp_path / "a", capsys)
    assert not pretend.USED
    config.check_kernels = True
    train(config, tmp_path / "b", capsys)
    pretend.new_process()
    config.check_kernels = False
    assert "1 of 1 that fit the network were right beside the definition (checked before)" in train(
        config, tmp_path / "c", capsys
    )
    assert pretend.USED


def test_a_kernel_that_takes_the_device_with_it_ends_the_run(config, tmp_path, monkeypatch, capsys):
    """The next start does not use it."""
    pretend.install(monkeypatch.setattr, error=RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS"))

    def fail(device):
        raise RuntimeError("The device is lost")

    with monkeypatch.context() as lost:
        lost.setattr("gw_jax.ops.kernel_check._probe", fail)
        with pytest.raises(TrainingError, match="is not usable after the check of the kernel gpu"):
            train(config, tmp_path / "a", capsys)
    pretend.new_process()
    said = train(config, tmp_path / "a", capsys)
    assert "it does not run (RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS)" in said
    assert saved_steps(tmp_path / "a") == [2]


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


def test_a_failure_of_another_process_of_this_machine_is_kept(monkeypatch):
    pretend.install(monkeypatch.setattr)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    machine = check_cache.machine()
    monkeypatch.setattr("gw_jax.train.kernel_checks.gather", lambda name, value: [value, [machine, [FAILED]]])
    said = []
    checks = KernelChecks(make_mesh(jax.devices()[:1]), enabled=True)
    checks.say = said.append
    from gw_jax import group_whiten

    x = jax.ShapeDtypeStruct((8, 4, 4, 16), "float32")
    checks.before(jax.jit(lambda x: group_whiten(x, 16)), x)
    assert "it is wrong" in said[0]
    (file,) = (check_cache.directory() / "kernel_checks").iterdir()
    assert not json.loads(file.read_text())["answer"]["passed"]


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
        assert line.startswith(f"warning: The kernel {LABEL} is not used: on {check_cache.machine()}, its output is off by")
        assert "0 of 1 that fit the network were right" in said[0]
    else:
        assert "1 of 1 that fit the network were right" in said[0]
