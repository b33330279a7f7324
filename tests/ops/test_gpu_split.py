"""The small kernels for GPUs: where they are chosen, what they need of a card. Their values: test_implementations.py."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gw_jax import group_whiten
from gw_jax.ops import kernels
from gw_jax.ops.choice import choose_implementation
from gw_jax.ops.kernels import _log_once, choose_kernel, gpu_split, gpu_split_calls, gpu_triton
from gw_jax.ops.kernels.placement import DeviceKind
from tests.helpers.kernels import A100, GPU, NEEDS_KERNELS, NEEDS_TRITON, compiling_for


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(gpu_split, "is_installed", lambda: True)


def spec_for(shape, device=A100, num_groups=64, dtype="bfloat16"):
    return choose_kernel(shape, dtype, num_groups, 5, 0.0, device)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", 80),
        ("NVIDIA A10", 86),
        ("NVIDIA RTX A6000", 86),
        ("NVIDIA GeForce RTX 4090", 89),
        ("NVIDIA L4", 89),
        ("NVIDIA L40S", 89),
        ("NVIDIA RTX 6000 Ada Generation", 89),
        ("NVIDIA RTX 4000 SFF Ada Generation", 89),
        ("NVIDIA H100 80GB HBM3", 90),
        ("Tesla T4", None),
        ("Quadro RTX 3000", None),
        ("Quadro RTX 4000", None),
        ("Tesla V100-SXM2-16GB", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_cards_have_the_capability_that_their_maker_states(kind, expected):
    assert gpu_split.capability(kind) == expected


@NEEDS_KERNELS
def test_a_sample_is_divided_where_samples_are_few(installed):
    assert spec_for((128, 56, 56, 64)).parts == (2, 2)
    assert spec_for((128, 7, 7, 512)).parts == (1, 1)
    # Two images of a detector: each part of a sum has 1,024 rows at least, and there are 128 parts at most.
    assert spec_for((2, 200, 336, 64)).parts == (65, 128)
    assert spec_for((2, 200, 336, 64)).tile == 64
    assert spec_for((2, 25, 42, 256)).tile == 16


@NEEDS_KERNELS
def test_an_h100_keeps_the_kernel_that_ran_there_while_pallas_has_it(installed, monkeypatch):
    assert spec_for((128, 56, 56, 64), GPU).kernel == spec_for((2, 200, 336, 64), GPU).kernel == "gpu_triton"
    monkeypatch.setattr(gpu_triton, "_has_triton", lambda: False)
    assert spec_for((128, 56, 56, 64), GPU).kernel == "gpu_split"
    assert spec_for((128, 56, 56, 64), DeviceKind("gpu", "Tesla T4")) is None


@pytest.mark.parametrize(
    ("shape", "num_groups", "dtype"),
    [
        ((8, 4, 4, 24), 8, "bfloat16"),
        ((8, 4, 4, 128), 128, "bfloat16"),
        ((8, 4, 4, 48), 16, "bfloat16"),
        # A position would not fit into a tile of 16 rows.
        ((8, 4, 4, 2048), 64, "float32"),
        # More than 32 bits of offsets in a sample.
        ((1, 1 << 13, 1 << 12, 64), 64, "bfloat16"),
    ],
)
def test_other_sizes_have_no_kernel(installed, shape, num_groups, dtype):
    assert spec_for(shape, num_groups=num_groups, dtype=dtype) is None


@NEEDS_KERNELS
@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_results_have_the_types_that_a_mesh_asks_for(installed, monkeypatch, num_devices, axis_type):
    """jax_triton returns arrays without them."""

    def triton_call(*_, out_shape, **__):
        return [jnp.zeros(output.shape, output.dtype) for output in out_shape]

    monkeypatch.setitem(sys.modules, "jax_triton", SimpleNamespace(triton_call=triton_call))
    monkeypatch.setattr(kernels, "gpu_split_kernels", mock.MagicMock(), raising=False)
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:num_devices])
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 32))

    def gradients(x):
        return jax.value_and_grad(lambda x: (group_whiten(x, 16, relu=True, implementation="prefer_kernel") ** 2).sum())(x)

    run = gradients
    if axis_type == AxisType.Auto:
        data = PartitionSpec("data")
        run = jax.shard_map(lambda x: gradients(x)[1], mesh=mesh, in_specs=data, out_specs=data)
    with compiling_for(A100), jax.set_mesh(mesh):
        found = jax.tree.leaves(jax.jit(run)(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))))[-1]
    truth = jax.grad(lambda x: (group_whiten(x, 16, relu=True, implementation="plain") ** 2).sum())(x)
    assert jnp.allclose(np.asarray(found), truth, rtol=1e-4, atol=1e-4)


@NEEDS_KERNELS
def test_where_jax_triton_is_missing_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(gpu_split, "is_installed", lambda: False)
    _log_once.cache_clear()
    options = {"method": "newton", "num_iterations": 5, "epsilon": 0.0, "has_mask": False, "relu": False}
    x = jnp.zeros((8, 4, 4, 64))
    with compiling_for(A100), caplog.at_level(logging.WARNING):
        choices = [
            choose_implementation(x, groups, dtype=x.dtype, implementation="auto", **options) for groups in (64, 64, 8)
        ]
        few = choose_implementation(x, 64, dtype=x.dtype, implementation="auto", **options | {"num_iterations": 1})
    assert "pip install 'gw_jax[jax-triton]'" in choices[0].reason
    assert few.reason == "There is no kernel for float32 (8, 4, 4, 64) on NVIDIA A100-SXM4-40GB."
    assert choices[0].implementation == "matmul"
    assert choices[2].reason == "There is no kernel for float32 (8, 4, 4, 64) on NVIDIA A100-SXM4-40GB."
    assert caplog.text.count("pip install") == 1


def test_a_jax_triton_for_another_jax_is_named_and_not_used(monkeypatch, tmp_path, caplog):
    (tmp_path / "jax_triton.py").write_text("raise AttributeError('jax._src has no such thing')")
    (tmp_path / "triton.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("jax_triton", "triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    gpu_split_calls.is_installed.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not gpu_split_calls.is_installed()
    finally:
        gpu_split_calls.is_installed.cache_clear()
        for name in ("jax_triton", "triton"):
            sys.modules.pop(name, None)
    said = f"jax_triton does not work here, with JAX {jax.__version__} (AttributeError: jax._src has no such thing)"
    assert said in caplog.text


def test_triton_is_not_imported_after_tensorflow(monkeypatch, tmp_path, caplog):
    """It would abort the process."""
    for name in ("jax_triton", "triton"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace())
    gpu_split_calls.is_installed.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not gpu_split_calls.is_installed()
    finally:
        gpu_split_calls.is_installed.cache_clear()
    assert "Import triton before tensorflow" in caplog.text


@NEEDS_KERNELS
def test_lowered_for_a_cpu_the_definition_runs_in_their_place(installed, monkeypatch):
    def triton_call(*_, out_shape, **__):
        return [jnp.full(output.shape, jnp.nan, output.dtype) for output in out_shape]

    # What a machine without CUDA cannot import.
    monkeypatch.setitem(sys.modules, "jax_triton", SimpleNamespace(triton_call=triton_call))
    monkeypatch.setattr(kernels, "gpu_split_kernels", mock.MagicMock(), raising=False)
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 32))

    def gradients(x, implementation):
        return jax.value_and_grad(lambda x: (group_whiten(x, 16, relu=True, implementation=implementation) ** 2).sum())(x)

    with compiling_for(A100):
        assert "platform_index" in str(jax.make_jaxpr(lambda x: gradients(x, "prefer_kernel"))(x))
        found = jax.jit(gradients, static_argnums=1)(x, "prefer_kernel")
    for a, b in zip(found, gradients(x, "plain"), strict=True):
        assert jnp.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@NEEDS_TRITON
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("card", "dtype", "num_groups", "channels_per_group", "shared"),
    [
        # What a block may have on the smallest card of the capability.
        pytest.param("NVIDIA A100-SXM4-40GB", "bfloat16", 64, 2, 166912, marks=pytest.mark.long),
        ("NVIDIA L4", "bfloat16", 64, 1, 101376),
        ("NVIDIA L4", "float32", 16, 8, 101376),
        pytest.param("NVIDIA L4", "float32", 64, 16, 101376, marks=pytest.mark.long),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 32, 1, 232448),
    ],
)
def test_they_compile_for_cards_and_fit_their_shared_memory(card, dtype, num_groups, channels_per_group, shared):
    command = [sys.executable, "-m", "tests.helpers.compile_split", card, dtype, str(num_groups), str(channels_per_group)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"})
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) == 6
    assert all(0 < kernel["shared"] <= shared and kernel["size"] > 0 for kernel in found.values())


def test_without_triton_nothing_of_it_is_imported():
    assert importlib.util.find_spec("gw_jax.ops.kernels.gpu_split_kernels") is not None
    program = "import sys, gw_jax; sys.exit(any(name.split('.')[0] in ('triton', 'jax_triton') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
