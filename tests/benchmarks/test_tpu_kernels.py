"""The kernels, compiled for a TPU on a machine without one."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("libtpu", reason="the compiler for TPUs is not installed (extra: plan)")

from benchmarks import tpu, tpu_cost
from gw_jax import group_whiten
from gw_jax.ops.kernels.placement import batch_sharded_over, compiling_for
from gw_jax.train.mesh import DATA_AXIS, make_mesh

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    """The compilation cache of the tests cannot hold programs of devices that are not there."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        # Whole samples: one forward, one backward. Positions that fill no block, two parts of 128 channels.
        ((8, 7, 7, 256), 2),
        # Tiles: statistics and application, derivatives of statistics and of the input. Samples in lanes and in sublanes.
        ((128, 8, 8, 64), 4),
        ((8, 12, 12, 64), 4),
        ((4, 4, 4, 128), 0),  # No whole block on a device.
    ],
)
def test_two_chips_run_kernels_without_exchanging_anything(shape, kernels):
    devices = tpu.devices("v5e:2x2")[:2]
    mesh = make_mesh(devices)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x = jax.ShapeDtypeStruct((2 * shape[0], *shape[1:]), jnp.bfloat16, sharding=split)
    scale = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=whole)

    def step(x, scale, cotangent):
        y, pullback = jax.vjp(functools.partial(whiten, scale=scale), x)
        return y, pullback(cotangent)[0]

    def whiten(x, scale):
        return group_whiten(x, 64, scale=scale, implementation="prefer_kernel")

    with compiling_for(devices[0]), batch_sharded_over(mesh, DATA_AXIS):
        lowered = jax.jit(step).lower(x, scale, x)
    text = lowered.compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == kernels
    assert not [kind for kind in COLLECTIVES if f" {kind}" in text]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [64, 256])
def test_large_masked_images_are_read_five_times_and_written_three_times(channels):
    """Columns in the lanes, and channels. Forward two reads and one write, backward twice x and dy and one write."""
    (device, *_), shape = tpu.devices("v5e:2x2"), (2, 200, 336, channels)
    options = {"num_groups": 64, "implementation": "prefer_kernel"}
    program = tpu_cost.compile_layer("gw", shape, device, True, options)
    assert 8 <= program.bytes / (2 * math.prod(shape)) < 8.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models=resnet50,resnext50,resnet5"], "resnet5 is not known; choose of resnet18, resnet34"),
        (["--shapes=56x56x64,7x7"], "--shapes=56x56x64,7x7: give HxWxC, such as 56x56x64"),
    ],
)
def test_what_is_to_be_compiled_is_checked_first(capsys, arguments, said):
    with pytest.raises(SystemExit):
        tpu_cost.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_relu_after_a_kernel_is_fused_into_the_next_convolution():
    device = tpu.devices("v5e:2x2")[0]
    everywhere = NamedSharding(make_mesh([device]), PartitionSpec())
    x, small = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=everywhere) for shape in ((64, 14, 14, 128), (1, 1, 128, 128))
    )

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    whiten = functools.partial(group_whiten, num_groups=64, implementation="kernel")

    def step(x, first, second, cotangent):
        y, pullback = jax.vjp(lambda *values: conv(jax.nn.relu(whiten(conv(*values[:2]))), values[2]), x, first, second)
        return y, pullback(cotangent)

    with compiling_for(device):
        text = jax.jit(step).lower(x, small, small, x).compile().as_text()
    # Convolutions with what precedes and follows them are "kOutput"; "kLoop" would be a pass of its own.
    kinds = re.findall(r" fusion\(.*?kind=(\w+)", text[text.index("ENTRY") :])
    assert set(kinds) == {"kOutput"}
