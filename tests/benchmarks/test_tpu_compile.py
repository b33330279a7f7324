"""The real steps, compiled for a TPU slice of four chips on a machine without one."""

import dataclasses
import json
import math

import jax
import pytest

from gw_jax.classification import ClassificationConfig, DataConfig, ModelConfig, NormConfig
from gw_jax.train.mesh import make_mesh

pytest.importorskip("libtpu", reason="the compiler for TPUs is not installed (extra: plan)")

from benchmarks import tpu, tpu_compile

BATCH = 64


def make_config(group_size):
    """Hidden layers with BatchNorm: what devices exchange is as in a deep network, and it compiles in seconds."""
    return ClassificationConfig(
        dtype="bfloat16",
        data=DataConfig(name="mnist", batch_size=BATCH, eval_batch_size=BATCH),
        model=ModelConfig(name="mlp", norm="bn", norm_options=NormConfig(group_size=group_size)),
    )


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    """The compilation cache of the tests cannot hold programs of devices that are not there."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="module")
def devices():
    return tpu.devices("v5e:2x2")


@pytest.mark.parametrize(("topology", "chips"), [("v4:2x2x1", 4), ("v5e:2x2", 4), ("v6e:2x2", 4)])
def test_a_chip_is_one_device_from_which_a_mesh_can_be_made(topology, chips):
    found = tpu.devices(topology)
    assert len(found) == chips
    assert make_mesh(found).size == chips


def test_groups_of_examples_leave_one_exchange_of_gradients(devices):
    config = make_config(BATCH // len(devices))
    program = tpu_compile.measure(config, devices, ("train",))["train"]
    state, _ = tpu.lower_steps(config, devices)["train"]().args_info[0]
    params = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert set(program.collectives) == {"all-reduce"}
    # Gradients of kernels travel as bfloat16, in which they are computed. Beside them only a few numbers: loss, top-1.
    assert params / 2 <= program.collectives["all-reduce"]["bytes"] <= params + 1024
    # The new state takes the place of the old one: parameters and momentum, and more where the chip pads.
    assert program.donated >= 2 * params
    assert 2 * params < program.peak < 1e9
    assert program.flops > 6 * params / 4 * BATCH / len(devices) * 0.5


def test_statistics_of_the_whole_batch_need_exchanges_of_their_own(devices):
    programs = [tpu_compile.measure(make_config(size), devices, ("train",))["train"] for size in (None, 16)]
    counts = [program.collectives["all-reduce"]["count"] for program in programs]
    assert counts[0] > counts[1]


def test_the_collectives_of_a_program_are_read_from_its_text():
    text = """
  %all-reduce.1 = f32[64,3]{1,0} all-reduce(f32[64,3] %a), replica_groups={}
  %all-reduce-start = (bf16[8]{0}, f32[2,2]{1,0}) all-reduce-start(bf16[8] %b, f32[2,2] %c)
  %ag = (f32[4]{0}, f32[16]{0}) all-gather-start(f32[4] %d), dimensions={0}
  %agd = f32[16]{0} all-gather-done((f32[4]{0}, f32[16]{0}) %ag)
  %copy.3 = f32[1] copy(f32[1] %e)
"""
    assert tpu.collectives(text) == {
        "all-reduce": {"count": 2, "bytes": 64 * 3 * 4 + 8 * 2 + 4 * 4},
        "all-gather": {"count": 1, "bytes": 64},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9z:1x1"], "The TPU slice 'v9z:1x1' cannot be described"),
        (["--topology=v5e:2x2", "--batch=66"], "config.data.batch_size=66 cannot be split evenly over 4 devices"),
        (["--topology=v5e:2x2", "--imagenet"], "does not determine the shape of a batch"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys, monkeypatch):
    config = make_config(16)
    monkeypatch.setattr(tpu_compile, "read_config", lambda rest: dataclasses.replace(config))
    if "--imagenet" in arguments:
        config.data.name = "imagenet2012"
    assert tpu_compile.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_the_command_prints_what_it_found(capsys, monkeypatch):
    monkeypatch.setattr(tpu_compile, "read_config", lambda rest: make_config(16))
    assert tpu_compile.main(["--topology=v5e:2x2", "--steps=eval", "--json"]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "v5e:2x2: 4 chips (TPU v5 lite), batch 64"
    (case,) = json.loads(last)["cases"]
    assert case["eval"]["fits"] is True
    assert case["eval"]["images_per_sec_bound_per_chip"] > 0
