"""Everything that computes Group Whitening, with an input for it: the subjects of tests/ops/test_contract.py."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace

import jax
import pytest

from gw_jax import group_whiten
from gw_jax.ops.kernels import placement
from tests.helpers.kernels import A100, KERNELS, NEEDS_KERNELS, RELU, case, device_of

KERNEL_DTYPES = ("bfloat16",)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A formulation or a kernel.

    Attributes:
        shape: of an input that it accepts.
        num_groups: for that input.
        function: ``(x, scale, bias, mask, relu) -> y``.
        dtypes: of inputs, apart from float32.
        platform: "cpu", "gpu" or "tpu": for which it is traced.
        masks: whether it accepts a mask.
        exact: whether one program computes the same numbers on every call.
    """

    shape: tuple[int, ...]
    num_groups: int
    function: Callable[..., jax.Array]
    dtypes: tuple[str, ...]
    platform: str
    masks: bool = False
    exact: bool = True

    def __call__(self, x, scale, bias, mask=None, relu=False):
        with self.traced():
            return self.function(x, scale, bias, mask, relu)

    def traced(self):
        if self.platform == "cpu":
            return contextlib.nullcontext()
        return placement.compiling_for(SimpleNamespace(platform=self.platform, device_kind="any"))


def _formulation(implementation, num_groups, x, scale, bias, mask, relu):
    return group_whiten(x, num_groups, scale=scale, bias=bias, mask=mask, relu=relu, implementation=implementation)


def _products(channels_per_group, platform, shape=(4, 7, 6), implementation="matmul"):
    function = functools.partial(_formulation, implementation, 8)
    dtypes = ("bfloat16", "float16") if platform != "cpu" else ("bfloat16",)
    return Subject((*shape, 8 * channels_per_group), 8, function, dtypes, platform, masks=True)


FORMULATIONS = {
    "definition": _products(3, "cpu", implementation="plain"),
    "products, CPU, 1 channel per group": _products(1, "cpu"),
    "products, CPU, 3 channels per group": _products(3, "cpu"),
    "products, GPU, 1 channel per group": _products(1, "gpu"),
    "products, GPU, 3 channels per group": _products(3, "gpu"),
    "products, TPU, large samples": _products(3, "tpu", (4, 24, 20)),
}


def subject(name):
    """The subject of a name; skips the test where Triton is missing."""
    if name in FORMULATIONS:
        return FORMULATIONS[name]
    shape, run = case(name)
    device = device_of(name)

    def function(x, scale, bias, mask, relu):
        # Kernels for TPUs leave the ReLU to XLA.
        if relu and device.platform == "gpu":
            return run(x, scale, bias, mask, change=run.keywords["change"] | RELU)
        y = run(x, scale, bias, mask)
        return jax.nn.relu(y) if relu else y

    # Triton's interpreter multiplies by NumPy, whose sums depend on where an array lies.
    masks = name in MASKED_KERNELS
    return Subject(shape, KERNELS[name][1], function, KERNEL_DTYPES, "cpu", masks, exact=device != A100)


# The others of a kind differ in sizes only.
_QUICK = {"products, GPU, 3 channels per group"}
_SELDOM = {*FORMULATIONS, "samples, 2 channels per group", "GPU, 2 channels per group", "split, 2 channels per group"}
_OFTEN = _SELDOM | {"lane tiles, 1 channel per group", "column tiles, 1 channel per group", "v4, 8 channels per group"}
NAMES = (*FORMULATIONS, *KERNELS)
MASKED_KERNELS = tuple(name for name in KERNELS if name.startswith(("column", "position")))


def _parameter(name, checked, *more):
    marks = [] if name in FORMULATIONS else [NEEDS_KERNELS]
    marks += [pytest.mark.slow] * (name not in _QUICK) + [pytest.mark.long] * (name not in checked)
    return pytest.param(name, *more, marks=marks)


def _parametrize(checked):
    """Tests of all; those that are not in ``checked`` are long."""
    return pytest.mark.parametrize("name", [_parameter(name, checked) for name in NAMES])


ALL, OFTEN, SELDOM = _parametrize(NAMES), _parametrize(_OFTEN), _parametrize(_SELDOM)
# One of each layout; the others are long.
_MASKED = ("column tiles, 1 channel per group", "position tiles, 4 channels per group")
MASKED = pytest.mark.parametrize("name", [_parameter(name, _MASKED) for name in MASKED_KERNELS])
LOW_PRECISION = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        _parameter(name, _OFTEN, dtype)
        for name in NAMES
        for dtype in (FORMULATIONS[name].dtypes if name in FORMULATIONS else KERNEL_DTYPES)
    ],
)
