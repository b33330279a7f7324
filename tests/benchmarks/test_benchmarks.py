"""The benchmarks run, and say what their documentation promises. Nothing here looks at a time."""

import json

import jax
import numpy as np
import pytest

from benchmarks import detection_step, group_whitening, roi_align, timing, train_step
from gw_jax.detection import create_detector
from gw_jax.nn.initializers import AbstractRngs

CASE_KEYS = {"shape", "dtype", "step", "ours_ms", "torch_eager_ms", "bn_ms", "copy_ms"}


def test_runs_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    medians, first = timing.interleaved_medians(runs, 2)
    assert "".join(order) == "ab" + "aabb" * 2
    assert set(medians) == set(first) == {"a", "b"}


def test_a_layer_is_measured_beside_its_peers():
    cases = group_whitening.measure((2, 4, 4, 64), "float32", 1, torch=False, compiled=False)
    assert [case["step"] for case in cases] == ["forward", "forward+backward"]
    for case in cases:
        assert set(case) >= CASE_KEYS
        assert case["ours_ms"] > 0
        assert case["torch_eager_ms"] is None


def test_the_peer_in_pytorch_is_the_same_function():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")
    from benchmarks.torch_peer import GroupWhitening
    from gw_jax import group_whiten

    x = np.random.default_rng(0).standard_normal((2, 7, 7, 128)).astype(np.float32)
    ours = np.asarray(group_whiten(x, 64))
    theirs = GroupWhitening(128, 64)(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.long  # test_gpu_report.py measures steps, too.
def test_the_training_step_is_measured(capsys, quick_compilation):
    with quick_compilation():
        train_step.main(["--small", "--model=resnet18", "--norms=gw", "--json"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["devices"] == jax.device_count()
    (case,) = result["cases"]
    assert case["norm"] == "gw"
    assert case["images_per_sec"] > 0
    assert case["peak_memory"] > 11e6 * 4
    assert case["ratio_bn"] is None
    assert case["ratio_torch"] is None


@pytest.mark.slow
@pytest.mark.long  # The same step is trained in test_config_runs.py.
def test_the_training_step_of_a_detector_is_measured(capsys, quick_compilation):
    with quick_compilation():
        detection_step.main(["--small", "--norms=bn", "--json", "--no_eval"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    (case,) = result["cases"]
    assert (case["norm"], case["step"], case["ratio_bn"]) == ("bn", "train", 1)
    assert case["images_per_sec"] == pytest.approx(result["images"] / case["ms"] * 1e3)
    assert result["images"] == result["devices"] == jax.device_count()
    # A ResNet-18 of half its width, and its momentum.
    assert case["peak_memory"] > 2 * 2.8e6 * 4


@pytest.mark.parametrize("network", detection_step.NETWORKS)
@pytest.mark.parametrize("norm", ["gw", "gn", "bn", "gw:plain"])
def test_small_detectors_have_the_norms_of_the_recipes(network, norm):
    small = detection_step.make_config(network, norm, 2, "64x96", "float32", small=True)
    recipe = detection_step.make_config(network, norm, 2, "800x1344", "float32", small=False)
    kept = ("norm", "fpn_norm", "box_head", "box_head_norm", "mask_head", "mask_head_norm")
    assert [getattr(small.model, name) for name in kept] == [getattr(recipe.model, name) for name in kept]
    assert small.model.norm_options.implementation == ("plain" if ":" in norm else None)
    create_detector(**small.model_arguments(), rngs=AbstractRngs())


def test_the_peer_network_in_pytorch_is_a_resnet_50():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")
    from benchmarks.torch_peer import GroupWhitening, resnet50

    network = resnet50("gw")
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert sum(isinstance(module, GroupWhitening) for module in network.modules()) == 17
    assert network.eval()(torch.zeros((1, 3, 64, 64))).shape == (1, 1000)


@pytest.mark.slow
def test_both_ways_of_roi_align_are_measured(capsys):
    assert roi_align.main(["--small", "--rounds=1", "--cases=map,masks", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(case["case"], case["step"]) for case in result["cases"]] == [
        (name, step) for name in ("map", "masks") for step in ("forward", "forward+backward")
    ]
    for case in result["cases"]:
        assert case["ratio_matmul"] == case["matmul_ms"] / case["gather_ms"]
        assert case["matmul_temp_bytes"] > 0


def test_results_of_roi_align_that_differ_are_an_error():
    array = np.ones((2, 3), np.float32)
    roi_align.require_equal({"gather": array, "matmul": array}, "float32")
    with pytest.raises(AssertionError):
        roi_align.require_equal({"gather": array, "matmul": array * 1.001}, "float32")
