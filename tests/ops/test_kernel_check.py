"""Kernels are used after a check on the machine: what it finds, and what it decides."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import pytest

from gw_jax.ops import check_kernels, kernel_check
from gw_jax.ops.choice import choose_implementation
from gw_jax.ops.kernels import answers, check_cache, placement, tpu_image_layouts
from gw_jax.ops.kernels.answers import Question
from gw_jax.ops.kernels.check_cache import Answer
from tests.helpers import pretend
from tests.helpers.kernels import KERNELS, NEEDS_KERNELS, TPU, changes, device_of, skip_without_triton, spec_for
from tests.helpers.pretend import LABEL, SHAPE, cache_file, images, keep, new_process, question, uses_kernel, whiten


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("samples, 2 channels per group", "float32"),
        ("sublane tiles, 1 channel per group", "bfloat16"),
        ("column tiles, 1 channel per group", "bfloat16"),
        ("GPU, 2 channels per group", "bfloat16"),
        *(pytest.param(name, dtype, marks=pytest.mark.long) for name in KERNELS for dtype in ("float32", "bfloat16")),
    ],
)
@NEEDS_KERNELS
def test_the_kernels_pass(name, dtype):
    """Interpreted: the bounds leave room for the rounding of right kernels, with hard samples, too."""
    shape, num_groups, _ = KERNELS[name]
    skip_without_triton(name)
    spec = spec_for(shape, dtype, num_groups, device_of(name), relu=True)
    spec = dataclasses.replace(spec, interpret=True, **changes(name))
    answer = kernel_check.check_kernel(Question(spec, shape[1:3], dtype), jax.local_devices()[0])
    assert answer.passed, answer.problem
    assert 0 < answer.errors["gradient of the input"] < kernel_check.BOUNDS[dtype][1]


@pytest.mark.slow
@NEEDS_KERNELS
def test_a_kernel_that_counts_a_masked_position_is_found(monkeypatch):
    shape, num_groups, _ = KERNELS["column tiles, 2 channels per group"]
    spec = dataclasses.replace(spec_for(shape, "float32", num_groups, TPU, has_mask=True), interpret=True)
    right = tpu_image_layouts.ColumnsInLanes.mask

    def wrong(self, mask, tile):
        return right(self, mask, tile).at[1, 0, shape[2] - 1].set(1)

    monkeypatch.setattr(tpu_image_layouts.ColumnsInLanes, "mask", wrong)
    answer = kernel_check.check_kernel(Question(spec, shape[1:3], "float32"), jax.local_devices()[0])
    assert "its output is off by" in answer.problem


@pytest.mark.parametrize("relu", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"flip": (slice(None), 2, 1, 5)}, "its output is off by"),
        ({"flip": (5, 2, 1, 5)}, "its output is off by"),  # In one sample only.
        ({"backward_flip": (5, 0, 0, 0)}, "its gradient of the input is off by"),
        ({"error": ValueError("no such\ninstruction")}, "it does not run (ValueError: no such instruction)"),
    ],
)
def test_one_wrong_element_is_found_and_the_kernel_not_used(gpu, wrong, text, relu):
    gpu(**wrong)
    (label,) = found = check_kernels(lambda x: whiten(x, relu=relu), images())
    assert not found[label]
    answer = answers.answer_to(question(relu=relu))
    assert text in answer.problem
    assert "\n" not in answer.problem
    assert not uses_kernel(relu=relu)
    assert not uses_kernel(relu=relu, implementation="prefer_kernel")
    choice = choose(relu=relu)
    assert choice.implementation != "kernel"
    assert label.startswith("gpu_triton for 4 x 4 x 32, float32, 16 groups, 5 iterations")
    assert f"{label} failed its check on this machine: {answer.problem}" in choice.reason
    new_process()
    assert not uses_kernel(relu=relu)


def choose(relu=False):
    options = {"method": "newton", "num_iterations": 5, "epsilon": 0.0, "has_mask": False, "dtype": jnp.float32}
    return choose_implementation(jnp.zeros(SHAPE), 16, **options, relu=relu, implementation="auto")


@pytest.mark.parametrize(
    ("samples", "value", "text"),
    [(1, 1.0, "constant sample"), (2, 0.0, "hides a NaN"), (2, jnp.inf, "hides a NaN"), (4, jnp.nan, "off by inf")],
)
def test_hard_samples_are_seen(gpu, monkeypatch, samples, value, text):
    gpu()
    right = kernel_check._values_and_gradients

    def wrong(*arguments):
        return jax.tree.map(lambda array: array.at[samples].set(value), right(*arguments))

    monkeypatch.setattr(kernel_check, "_values_and_gradients", wrong)
    assert text in kernel_check.check_kernel(question(), jax.local_devices()[0]).problem


def test_a_right_kernel_is_used_after_its_check_here_and_in_later_processes(gpu, caplog):
    gpu()
    with caplog.at_level(logging.WARNING):
        assert not uses_kernel()
        assert not uses_kernel()
    (record,) = caplog.records
    assert "python -m gw_jax.doctor" in record.getMessage()
    assert "not checked on this machine" in choose().reason
    assert check_kernels(whiten, images()) == {LABEL: True}
    assert uses_kernel()
    new_process()
    assert uses_kernel()
    assert "passed its check on this machine" in choose().reason


def test_a_function_that_was_traced_for_its_questions_is_traced_again(gpu):
    gpu()
    function = jax.jit(lambda x: whiten(x))
    keep()
    assert check_kernels(function, images()) == {LABEL: True}
    pretend.USED.clear()
    function.lower(images())
    assert pretend.USED


def test_a_kernel_that_fails_later_leaves_compiled_functions(gpu, monkeypatch):
    gpu()
    keep()
    function = jax.jit(lambda x: whiten(x))
    function.lower(images())
    assert pretend.USED
    gpu(flip=(0, 0, 0, 0))
    answers.decide(question(), Answer(True))
    assert check_kernels(whiten, images(), repeat=True) == {LABEL: False}
    pretend.USED.clear()
    function.lower(images())
    assert not pretend.USED


def test_nothing_is_checked_by_import_trace_or_call(gpu, monkeypatch):
    gpu()
    monkeypatch.setattr(kernel_check, "check_kernel", lambda *arguments: pytest.fail("a check was made"))
    whiten(jnp.ones(SHAPE)).block_until_ready()
    jax.jit(lambda x: whiten(x)).lower(images())
    assert not check_cache.directory().exists()


def test_a_kernel_that_is_known_to_be_slower_is_not_used(gpu):
    gpu(device=placement.DeviceKind("gpu", "NVIDIA H100 80GB HBM3"))
    assert check_kernels(whiten, images()) == {}
    assert "slower than plain XLA for float32" in choose().reason
    assert question("bfloat16").dtype == "bfloat16"


def test_the_context_of_the_caller_does_not_reach_the_check(gpu):
    gpu()
    with jax.debug_nans(True), jax.default_matmul_precision("bfloat16"):
        assert check_kernels(whiten, images()) == {LABEL: True}


def test_a_device_without_kernels_has_nothing_to_check():
    assert check_kernels(lambda: pytest.fail("it was traced")) == {}


def test_memory_that_ran_out_is_not_remembered(gpu):
    gpu(error=RuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert check_kernels(whiten, images()) == {LABEL: False}
    assert not uses_kernel()
    assert not cache_file().exists()
