"""The kernels that "auto" uses for a device that is not there: those that were checked on such a device."""

import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from gw_jax import group_whiten
from gw_jax.ops.kernels import placement, verified
from tests.helpers.kernels import NEEDS_KERNELS

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
H100 = "NVIDIA H100 80GB HBM3"


def compiled_for(platform, kind, dtype="bfloat16", **options):
    """The program for an input that has a kernel on every device of these tests."""
    x = jax.ShapeDtypeStruct((128, 4, 4, 128), dtype)
    with placement.compiling_for(SimpleNamespace(platform=platform, device_kind=kind)):
        return str(jax.make_jaxpr(lambda x: group_whiten(x, 64, **options))(x))


@pytest.fixture
def tested_version(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", verified.VERIFIED_ON[H100, "gpu_triton"].jax)


@pytest.mark.usefixtures("tested_version")
@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({}, True),
        ({"num_iterations": 2}, True),
        ({"num_iterations": 6}, False),  # Beyond what was checked.
        ({"dtype": "float32"}, False),  # Right, but slower than plain XLA.
    ],
)
@NEEDS_KERNELS
def test_auto_uses_a_kernel_where_it_was_checked(options, kernel):
    assert ("pallas_call" in compiled_for("gpu", H100, **options)) == kernel
    assert "pallas_call" in compiled_for("gpu", H100, **options, implementation="prefer_kernel")


@pytest.mark.parametrize(
    ("platform", "kind"), [("tpu", "TPU v5 lite"), ("tpu", "TPU v4"), ("gpu", "NVIDIA H200"), ("gpu", "NVIDIA B200")]
)
@NEEDS_KERNELS
def test_auto_uses_no_kernel_that_never_ran_on_such_a_device(platform, kind):
    assert "pallas_call" not in compiled_for(platform, kind)
    assert "pallas_call" in compiled_for(platform, kind, implementation="prefer_kernel")


def test_an_older_jax_than_the_tested_one_does_not_count(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "pallas_call" not in compiled_for("gpu", H100)


@pytest.mark.parametrize("key", verified.VERIFIED_ON)
def test_every_entry_is_backed_by_results_of_that_device(key):
    entry = verified.VERIFIED_ON[key]
    parity, times = (json.loads((RESULTS / name).read_text()) for name in entry.results)
    assert parity["device"] == times["device"] == key[0]
    assert parity["versions"]["jax"] == ".".join(map(str, entry.jax))
    checks = [check for run in parity["runs"] for check in run["checks"] if check["kind"] == "whitening"]
    for dtype in entry.dtypes:
        for num_iterations in entry.num_iterations:
            assert any(check["dtype"] == dtype and check["num_iterations"] == num_iterations for check in checks)
    for check in checks:
        assert check["ok"]["kernel"]
    for case in times["runs"][0]["cases"]:
        assert case["kernel_ms"] < min(case["matmul_ms"], case["plain_ms"])


def test_a_preference_for_kernels_runs_where_there_is_none():
    x = jnp.ones((2, 3, 3, 8), jnp.float32)
    assert group_whiten(x, 4, implementation="prefer_kernel").shape == x.shape
