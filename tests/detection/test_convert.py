"""The command line of the converter, on files that PyTorch writes."""

import json
import os
from collections import OrderedDict

import numpy as np
import pytest

import gw_jax
from gw_jax.convert.__main__ import main as convert_classifier
from gw_jax.detection.convert import main
from gw_jax.detection.pixels import BGR
from gw_jax.detection.saved import load_detector, save_detector
from gw_jax.detection.torch_state import to_torch_state
from tests.detection import golden, python2, small
from tests.detection.test_caffe2 import blobs


@pytest.fixture(scope="session")
def torch():
    """PyTorch, or a reason to skip."""
    return pytest.importorskip("torch", reason="PyTorch, an optional extra that brings gigabytes, is not installed")


def write(torch, path, state, *, wrapped=True, prefix="module.", container="zip"):
    """Writes a state dict as the reference does."""
    tensors = OrderedDict((prefix + name, torch.from_numpy(np.array(value))) for name, value in state.items())
    content = {"model": tensors, "optimizer": {"state": {}}, "scheduler": {}, "iteration": 90000} if wrapped else tensors
    torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    return path


def fails(capsys, *arguments):
    """The message with which the command line refuses ``arguments``."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("error: ")
    assert captured.err[:-1].isprintable()
    return captured.err


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_there_and_back(torch, tmp_path, capsys, container):
    state = small.state("gw, 4conv1fc, mask")
    source = write(torch, tmp_path / "model_final.pth", state, container=container)
    assert main([str(source), str(tmp_path / "detector"), "--norm_options=num_groups=4"]) == 0
    report = capsys.readouterr().out
    assert f"keys          {len(state)} used" in report
    assert "RGB, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375] (the file does not determine it;" in report
    assert "training was left out: optimizer, scheduler, iteration" in report
    assert "every key had the prefix 'module.'" in report
    detector = load_detector(tmp_path / "detector")
    small.assert_same_arrays(detector, small.detector("gw, 4conv1fc, mask"))
    assert json.loads((tmp_path / "detector" / "config.json").read_text())["source"]["kind"].startswith("training dict")
    assert main([str(tmp_path / "detector"), str(tmp_path / "out.pth"), f"--container={container}"]) == 0
    assert f"{len(state)} entries, {container} container" in capsys.readouterr().out
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(again) == list(state)
    for name, value in state.items():
        assert again[name].numpy().tobytes() == value.tobytes()


def test_options(torch, tmp_path, capsys):
    state = small.state("frozen, 4conv1fc, mask")
    state["backbone.body.stem.bn1.running_var"][3] = 0
    source = write(torch, tmp_path / "in.pth", state, wrapped=False, prefix="")
    assert "epsilon=1e-5 (--epsilon=1e-5)" in fails(capsys, source, tmp_path / "out")
    assert main([str(source), str(tmp_path / "out"), "--epsilon=1e-5", "--conv_relu=each", "--pixels=bgr"]) == 0
    assert "pixels        BGR, mean [102.9801, 115.9465, 122.7717], std [1.0, 1.0, 1.0]\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["source"]["pixels"] == BGR.to_json()
    detector = load_detector(tmp_path / "out")
    assert detector.box_head.conv_relu == "each"
    assert detector.backbone.stem_norm.epsilon == 1e-5
    capsys.readouterr()
    assert main([str(tmp_path / "out"), str(tmp_path / "out.pth")]) == 0
    report = capsys.readouterr().out
    assert "conv_relu='each' is not in the file" in report
    assert "frozen_bn_epsilon=1e-05 is not in the file" in report


def test_caffe2(tmp_path, capsys):
    (tmp_path / "X-101.pkl").write_bytes(python2.dumps(blobs()))
    assert main([str(tmp_path / "X-101.pkl"), str(tmp_path / "backbone")]) == 0
    report = capsys.readouterr().out
    assert "BGR, mean [102.9801, 115.9465, 122.7717]" in report
    assert "2, the classifier: pred_w, pred_b" in report
    assert gw_jax.load_pretrained(tmp_path / "backbone").head is None
    message = fails(capsys, tmp_path / "X-101.pkl", tmp_path / "other", "--epsilon=1e-5")
    assert "--epsilon is for a detector's .pth file" in message


class Code:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def test_wrong_input(torch, tmp_path, capsys, monkeypatch):
    """One line each, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    state = small.state("gn, 2fc")
    source = write(torch, tmp_path / "in.pth", state)
    few, many, shaped = dict(state), {**state, "fc.weight": np.ones((3, 3), np.float32)}, dict(state)
    few.pop("rpn.head.conv.bias")
    shaped["rpn.head.conv.bias"] = np.ones(9, np.float32)
    anchors = {**state, "rpn.anchor_generator.cell_anchors.0": np.ones((3, 4), np.float32)}
    classifier = {"layer1.0.conv1.weight": np.ones((8, 8, 1, 1), np.float32), "fc.weight": np.ones((3, 8), np.float32)}
    small.write_model(tmp_path / "classifier", "resnet18", norm="bn")
    (tmp_path / "code.pkl").write_bytes(python2.dumps({"a": np.ones(3)}).replace(b"numpy\ndtype", b"os\nsystem"))
    torch.save({"model": Code()}, tmp_path / "code.pth")
    before = sorted(tmp_path.iterdir())
    options = ["--norm_options=num_groups=4"]
    for given, message in (
        ([tmp_path / "nothing.pth", "out"], "There is no file"),
        ([tmp_path / "nothing.pkl", "out"], "There is no file"),
        (["n" * 300, "out"], "File name too long"),
        ([source, tmp_path / "classifier", *options], "exists already"),
        ([source, "out.pth", *options], "a file becomes a directory: give a name without .pth"),
        ([source, "out", "--container=zip"], "--container is for writing a .pth file"),
        ([source, "out"], "norm_options=None"),
        ([source, "out", "--norm_options=groups"], "'groups' in 'groups' is not key=value"),
        ([tmp_path / "classifier", "out.pth"], "no detector; gw_jax.load_pretrained loads it"),
        ([tmp_path / "classifier", "out.pth", "--epsilon=1"], "--epsilon is for reading a .pth file"),
        ([tmp_path / "code.pkl", "out"], "asks for the Python object os.system"),
        ([tmp_path / "code.pth", "out"], "holds the Python object posix.mkdir"),
    ):
        assert message in fails(capsys, *given)
        assert sorted(tmp_path.iterdir()) == before
    for content, message in (
        (few, "1 missing: rpn.head.conv.bias"),
        (many, "1 that the network does not have: fc.weight"),
        (shaped, "rpn.head.conv.bias is [9] and should be [8]"),
        (anchors, "'rpn.anchor_generator.cell_anchors.0' of"),
        (classifier, "These are the entries of a classifier"),
    ):
        write(torch, source, content)
        assert message in fails(capsys, source, "out", *options)
        assert sorted(tmp_path.iterdir()) == before


def test_the_converter_of_classifiers(torch, tmp_path, capsys):
    """It refuses detectors and Caffe2's files, and names the command for them."""
    source = write(torch, tmp_path / "in.pth", small.state("gn, 2fc"))
    (tmp_path / "in.pkl").write_bytes(python2.dumps({"a": np.ones(3)}))
    save_detector(tmp_path / "detector", small.detector("gn, 2fc"))
    for given, message in (
        ([source, tmp_path / "out"], "'python -m gw_jax.detection.convert IN.pth OUT_DIR' converts it"),
        ([tmp_path / "in.pkl", tmp_path / "out"], "'python -m gw_jax.detection.convert' converts backbones of Caffe2"),
        ([tmp_path / "detector", tmp_path / "out.pth"], "holds a detector; gw_jax.detection.load_detector loads it"),
    ):
        capsys.readouterr()
        assert convert_classifier([str(argument) for argument in given]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("config", "container"), [(6, "legacy"), (9, "zip")])
def test_full_size(torch, tmp_path, config, container):
    state = golden.state(config, seed=5)
    source = write(torch, tmp_path / "in.pth", state, container=container)
    assert main([str(source), str(tmp_path / "detector")]) == 0
    assert main([str(tmp_path / "detector"), str(tmp_path / "out.pth"), f"--container={container}"]) == 0
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(again) == list(state)
    for name, value in state.items():
        assert again[name].numpy().tobytes() == value.tobytes()
    assert list(to_torch_state(load_detector(tmp_path / "detector"))) == list(state)
