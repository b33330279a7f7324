"""Backbones of Caffe2: names, folded norms, what is left out, and files that are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.caffe2 import read_caffe2, write_backbone
from gw_jax.detection.pixels import BGR
from gw_jax.errors import CheckpointError
from gw_jax.models import load_pretrained
from gw_jax.nn import FrozenBatchNorm, GroupNorm
from tests.detection import python2

RESNEXT = (3, 4, 23, 3)
SMALL = (3, 4, 6, 3)


def blobs(sizes=RESNEXT, groups=32, norm="bn", width=8):
    """The arrays of a residual network under Caffe2's names, with a classifier and momentum."""
    generator = np.random.default_rng(0)
    found = {}

    def conv(name, outputs, inputs, size):
        found[f"{name}_w"] = generator.normal(size=(outputs, inputs, size, size), scale=0.1).astype(np.float32)

    def scale(name, channels):
        found[f"{name}_{norm}_s"] = generator.uniform(0.2, 0.6, channels).astype(np.float32)
        found[f"{name}_{norm}_b"] = generator.normal(size=channels, scale=0.1).astype(np.float32)

    conv("conv1", width, 3, 7)
    scale("res_conv1" if norm == "bn" else "conv1", width)
    inputs, inner = width, width if groups == 1 else groups
    for stage, size in enumerate(sizes):
        features, channels = 4 * width * 2**stage, inner * 2**stage
        for index in range(size):
            block = f"res{stage + 2}_{index}_branch"
            for branch, outputs, before, edge in (
                ("2a", channels, inputs, 1),
                ("2b", channels, channels // groups, 3),
                ("2c", features, channels, 1),
                *([("1", features, inputs, 1)] if index == 0 else []),
            ):
                conv(block + branch, outputs, before, edge)
                scale(block + branch, outputs)
            inputs = features
    found["pred_w"], found["pred_b"] = np.ones((10, inputs), np.float32), np.ones(10, np.float32)
    found["conv1_w_momentum"] = np.zeros_like(found["conv1_w"])
    return found


@pytest.fixture(scope="module")
def resnext():
    return blobs()


def read(tmp_path, content, protocol=2):
    path = tmp_path / "X-101.pkl"
    path.write_bytes(python2.dumps(content, protocol))
    return read_caffe2(path)


@pytest.mark.parametrize("protocol", python2.PROTOCOLS)
def test_resnext(tmp_path, resnext, protocol):
    backbone = read(tmp_path, {"blobs": resnext, "cfg": "NUM_GPUS: 8"} if protocol == 2 else resnext, protocol)
    assert backbone.model_config == {
        "name": "resnext101_32x8d", "num_classes": None, "norm": "frozen_bn", "whiten": "all", "other_norm": "frozen_bn",
        "width": 8,
    }  # fmt: skip
    assert backbone.left_out == {"the classifier": ["pred_w", "pred_b"], "momentum of the optimiser": ["conv1_w_momentum"]}
    assert len(backbone.used) == len(resnext) - 3 == 3 * (1 + 3 * 33 + 4)
    arrays = backbone.arrays
    np.testing.assert_array_equal(arrays["stem_conv.kernel"], resnext["conv1_w"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(arrays["stem_norm.scale"], resnext["res_conv1_bn_s"])
    np.testing.assert_array_equal(arrays["stage3.22.conv2.kernel"], resnext["res4_22_branch2b_w"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(arrays["stage3.22.norm3.bias"], resnext["res4_22_branch2c_bn_b"])
    np.testing.assert_array_equal(arrays["stage4.0.shortcut.norm.scale"], resnext["res5_0_branch1_bn_s"])
    assert {float(value) for path in arrays if path.endswith(".mean") for value in arrays[path]} == {0}
    assert {float(value) for path in arrays if path.endswith(".var") for value in arrays[path]} == {1}


def test_written(tmp_path, resnext):
    """The directory is a network whose frozen norms are scale and bias alone, with the pixels in its description."""
    backbone = read(tmp_path, resnext)
    write_backbone(tmp_path / "backbone", backbone, "X-101.pkl")
    model = load_pretrained(tmp_path / "backbone")
    norm = model.stage2[0].shortcut.norm
    assert isinstance(norm, FrozenBatchNorm)
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 64)).astype(np.float32)
    expected = x * resnext["res3_0_branch1_bn_s"] + resnext["res3_0_branch1_bn_b"]
    np.testing.assert_allclose(jax.jit(norm)(jnp.asarray(x)), expected, rtol=1e-6, atol=1e-6)
    source = json.loads((tmp_path / "backbone" / "config.json").read_text())["source"]
    assert source["pixels"] == BGR.to_json()
    assert source["sha256"] == backbone.sha256
    with pytest.raises(CheckpointError, match="exists already"):
        write_backbone(tmp_path / "backbone", backbone, "X-101.pkl")


def test_group_norms(tmp_path):
    backbone = read(tmp_path, blobs(SMALL, groups=1, norm="gn", width=32))
    assert backbone.model_config["norm"] == "gn"
    write_backbone(tmp_path / "backbone", backbone, "R-50-GN.pkl")
    norm = load_pretrained(tmp_path / "backbone").stage1[0].shortcut.norm
    assert isinstance(norm, GroupNorm)
    assert norm.num_groups == 32


def test_biases_before_norms(tmp_path, resnext):
    """The reference leaves them out; ours names them."""
    zero, one = np.zeros(32, np.float32), np.ones(32, np.float32)
    left_out = read(tmp_path, {**resnext, "res2_0_branch2a_b": zero, "res2_0_branch1_b": one}).left_out
    assert left_out["biases of convolutions before a norm, zero"] == ["res2_0_branch2a_b"]
    kind = "biases of convolutions before a norm, not zero, and the reference leaves them out, too"
    assert left_out[kind] == ["res2_0_branch1_b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"res2_0_branch2a_w": None}, r"'layer1\.0\.conv1\.weight'|1 missing: layer1\.0\.conv1\.weight"),
        ({"res3_1_branch2b_bn_s": None}, r"1 missing: layer2\.1\.bn2\.weight"),
        ({"res5_2_branch2c_w": np.ones((8, 8, 1, 1), np.float32)}, r"layer4\.2\.conv3\.weight is \[8, 8, 1, 1\]"),
        ({"res5_3_branch2a_w": np.ones((8, 8, 1, 1), np.float32)}, "resnext101_32x8d, of which 'layer4.3' is left over"),
        ({"fpn_inner_res2_w": np.ones(3, np.float32)}, "1 entries that are no arrays of a residual network"),
        ({"res2_0_branch2a_bn_rm": np.ones(3, np.float32)}, "1 entries that are no arrays of a residual network"),
        ({"lr": 0.1}, "1 entries that are no arrays of a residual network of Caffe2: lr"),
        ({"conv1_gn_s": np.ones(8, np.float32)}, "holds conv1_gn_s and res_conv1_bn_s, and the network has only one"),
        ({"conv1_w": np.full((8, 3, 7, 7), np.nan, np.float32)}, "NaN or infinite"),
        ({"res_conv1_bn_s": np.ones(8, np.int64)}, "of type int64"),
    ],
)
def test_arrays_that_are_refused(tmp_path, resnext, change, message):
    content = {name: value for name, value in {**resnext, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, content)


def test_other_networks(tmp_path):
    with pytest.raises(CheckpointError, match="have the stride in the first 1x1 convolution"):
        read(tmp_path, blobs(SMALL, groups=1))
    with pytest.raises(CheckpointError, match="there is no 'res2_0_branch2a_w'"):
        read(tmp_path, {"conv1_w": np.ones((8, 3, 7, 7), np.float32)})
    with pytest.raises(CheckpointError, match=r"No network has bottleneck blocks \(1, 1, 1, 1\)"):
        read(tmp_path, blobs((1, 1, 1, 1)))
