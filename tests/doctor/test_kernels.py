"""The doctor checks the kernels that fit a network, and says what runs and why."""

import dataclasses

import jax
import pytest
from flax import nnx

from gw_jax.doctor import layers
from gw_jax.doctor.kernels import check_network_kernels
from gw_jax.doctor.report import Section
from gw_jax.nn import GroupWhitening
from gw_jax.ops.kernels import check_cache
from tests.helpers import pretend

TEXT = "gpu_triton for 4 x 4 x 16, float32, 16 groups, 5 iterations"


@dataclasses.dataclass(frozen=True)
class SmallNetwork(layers.Network):
    """A convolution and Group Whitening."""

    def make(self):
        def create():
            rngs = nnx.Rngs(0)
            return nnx.Sequential(nnx.Conv(3, 16, (1, 1), rngs=rngs), GroupWhitening(16, num_groups=16, rngs=rngs))

        return nnx.eval_shape(create)


def network():
    return SmallNetwork(name="resnet18", norm="gw", batch_size=8, image_size=4, dtype="float32")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv(check_cache.DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return lambda **wrong: pretend.install(monkeypatch.setattr, **wrong)


def check(**options):
    section = Section("Kernels")
    check_network_kernels(network(), section, **options)
    return section


def layer_notes():
    section = Section("Group Whitening")
    layers.check_layers(network(), section)
    return dict(section.lines)["4 x 4 x 16, 16 groups"], section.notes


@pytest.mark.slow
def test_a_right_kernel_is_checked_once_and_named_with_its_age(gpu):
    gpu()
    assert layer_notes()[0] != "1 x kernel (gpu_triton)"
    section = check()
    ((label, text),) = section.lines
    assert label == TEXT
    assert text.startswith("right: output ")
    assert "; checked now, " in text
    assert layer_notes() == ("1 x kernel (gpu_triton)", ["The kernel gpu_triton passed its check on this machine."])
    pretend.new_process()
    assert check().lines[0][1].endswith("; kept from less than an hour ago")
    assert "; checked now, " in check(repeat=True).lines[0][1]
    assert not section.problems


@pytest.mark.slow
def test_a_wrong_kernel_is_a_problem_until_it_is_right(gpu):
    gpu(flip=(0, 1, 2, 3))
    section = check()
    assert section.lines[0][1].startswith("WRONG: output ")
    (problem,) = section.problems
    assert problem.startswith(f"The kernel {TEXT} failed its check on this device: its output is off by ")
    what, (reason,) = layer_notes()
    assert "kernel" not in what
    assert reason.startswith(f"The kernel {TEXT} failed its check on this machine: its output is off by ")
    gpu()
    # The answer is kept, and the doctor does not believe it.
    assert not check().problems
    assert layer_notes()[0] == "1 x kernel (gpu_triton)"


def test_a_kernel_that_does_not_run_is_a_problem(gpu):
    gpu(error=RuntimeError("no such instruction"))
    section = check()
    assert section.lines[0][1].startswith("WRONG: did not run; ")
    assert "RuntimeError: no such instruction" in section.problems[0]


def test_a_device_without_kernels_is_named():
    assert check().notes == ["There are no kernels for cpu."]
