"""ImageNet models in the backbone of a detector: which arrays are used, and models that do not fit."""

import json

import numpy as np
import pytest

from gw_jax.convert import load
from gw_jax.detection.backbone import load_backbone, read_backbone
from gw_jax.detection.detector import create_detector
from gw_jax.detection.pixels import BGR, RGB, pixels_of
from gw_jax.detection.saved import save_detector
from gw_jax.errors import CheckpointError
from gw_jax.models.pretrained import write_directory
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.tree import variables
from tests.detection import small
from tests.helpers import reference

GW = {"norm": "gw", "norm_options": {"num_groups": 4, "num_iterations": 5}}


def abstract(backbone="resnet18", norm="gw", width=8, **arguments):
    arguments = {"norm_options": small.GROUPS} | arguments if norm != "frozen_bn" else arguments
    return create_detector(backbone, norm=norm, width=width, fpn_features=8, rngs=AbstractRngs(), **arguments)


@pytest.mark.parametrize(("name", "width", "used", "total"), [("resnet50", 8, 231, 269), ("resnext101_32x8d", 8, 452, 524)])
def test_counts(tmp_path, name, width, used, total):
    """The counts that the spec gives for the published models, whose names do not depend on the width."""
    arrays = small.write_model(tmp_path / "model", name, **GW, width=width)
    weights = read_backbone(tmp_path / "model", abstract(name, width=width))
    left_out = {rule: len(names) for rule, names in weights.left_out.items()}
    assert len(weights.used) == used
    assert sum(left_out.values()) == total - used
    assert left_out == {"the classifier": 2, "counters of batch norms": total - used - 2}
    assert weights.left_out["the classifier"] == ["fc.weight", "fc.bias"]
    assert "bn1.weight" in weights.used
    assert f"{used} of {total} used" in str(weights)
    assert weights.pixels == RGB
    for path, value in weights.arrays.items():
        np.testing.assert_array_equal(value, arrays[path.removeprefix("backbone.")])


def test_batch_norm_becomes_frozen(tmp_path):
    """Torchvision's ResNet-50: 265 keys, every norm frozen."""
    small.write_model(tmp_path / "model", "resnet50", norm="bn", whiten="none")
    weights = read_backbone(tmp_path / "model", abstract("resnet50", "frozen_bn"))
    assert len(weights.used) == 265
    assert weights.arrays["backbone.stage1.0.norm1.var"].shape == (8,)


def test_arrays_in_place(tmp_path):
    arrays = small.write_model(tmp_path / "model", "resnet18", **GW)
    detector = small.detector("gw, 2fc", "resnet18")
    fpn = np.array(detector.fpn.inner[0].conv.kernel[...])
    weights = load_backbone(detector, tmp_path / "model")
    assert len(weights.used) == len(variables(detector.backbone))
    for path, value in variables(detector.backbone).items():
        np.testing.assert_array_equal(value, arrays[path], err_msg=path)
    np.testing.assert_array_equal(detector.fpn.inner[0].conv.kernel[...], fpn)


def test_a_norm_before_the_classifier(tmp_path):
    small.write_model(tmp_path / "model", "resnet18", norm="bn", last_norm=True)
    weights = read_backbone(tmp_path / "model", abstract("resnet18", "frozen_bn"))
    rules = {"the norm before the classifier", "the classifier", "counters of batch norms"}
    assert set(weights.left_out) == rules
    assert "last_bn.weight" in weights.left_out["the norm before the classifier"]


def test_a_backbone_without_classifier(tmp_path):
    arguments = {"norm": "frozen_bn", "whiten": "all", "other_norm": "frozen_bn", "num_classes": None}
    small.write_model(tmp_path / "model", "resnet18", **arguments)
    weights = read_backbone(tmp_path / "model", abstract("resnet18", "frozen_bn"))
    assert not weights.left_out
    with pytest.raises(
        CheckpointError, match=r"FrozenBatchNorm\(epsilon=0\.0\) there and FrozenBatchNorm\(epsilon=1e-05\) here"
    ):
        read_backbone(tmp_path / "model", abstract("resnet18", "frozen_bn", frozen_bn_epsilon=1e-5))


@pytest.mark.parametrize(
    ("description", "pixels"),
    [
        ({}, RGB),
        ({"source": {"path": "best.pth"}}, RGB),
        ({"source": {"pixels": RGB.to_json()}}, RGB),
        ({"source": {"pixels": BGR.to_json()}}, BGR),
        ({"source": {"pixels": {**BGR.to_json(), "std": [1, 1, 2]}}}, None),
        ({"source": {"pixels": {"channels": []}}}, None),
        ({"source": {"pixels": "BGR"}}, None),
    ],
)
def test_pixels(description, pixels):
    if pixels is not None:
        assert pixels_of(description, "model") == pixels
        return
    with pytest.raises(CheckpointError, match=r"The pixels in the config\.json of model are"):
        pixels_of(description, "model")


@pytest.mark.parametrize(
    ("model", "detector", "message"),
    [
        (("resnet18", GW), {}, None),
        (("resnet34", GW), {}, "another network than the detector's backbone"),
        (("resnet18", {**GW, "width": 16}), {}, "another network than the detector's backbone"),
        (("resnet18", {"norm": "bn"}), {}, "another network than the detector's backbone: "),
        (("resnet18", GW), {"norm": "frozen_bn"}, "another network than the detector's backbone"),
        (("resnet18", {"norm": "gn", "norm_options": small.GROUPS}), {}, "GroupNorm.* there and GroupWhitening.* here"),
        (("resnet18", {"norm": "gw", "norm_options": {"num_groups": 2}}), {}, r"num_groups=2.* there and .*num_groups=4"),
        (("resnet50", {**GW, "output_stride": 16}), {"backbone": "resnet50"}, "other strides or dilations .*: stage4.0"),
        (("resnet18", {**GW, "stem": "small"}), {}, "another network"),
        (("mlp", {"norm": "bn"}), {}, "holds a MLP"),
    ],
)
def test_models_that_do_not_fit(tmp_path, model, detector, message):
    name, arguments = model
    small.write_model(tmp_path / "model", name, **arguments)
    if message is None:
        read_backbone(tmp_path / "model", abstract(**detector))
        return
    with pytest.raises(CheckpointError, match=message):
        read_backbone(tmp_path / "model", abstract(**detector))


def test_dead_channels(tmp_path):
    arrays = small.write_model(tmp_path / "model", "resnet18", norm="bn")
    arrays["stage2.1.norm2.var"][[0, 7]] = 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    write_directory(tmp_path / "dead", arrays, config, source=None, training=None)
    with pytest.raises(CheckpointError, match=r"layer2\.1\.bn2\.running_var \(2 of 16: 0, 7\)"):
        read_backbone(tmp_path / "dead", abstract("resnet18", "frozen_bn"))
    read_backbone(tmp_path / "dead", abstract("resnet18", "frozen_bn", frozen_bn_epsilon=1e-5))


def test_detectors_and_missing_directories(tmp_path):
    save_detector(tmp_path / "detector", small.detector("gw, 2fc"))
    with pytest.raises(CheckpointError, match=r"holds a detector; gw_jax\.detection\.load_detector loads it"):
        read_backbone(tmp_path / "detector", abstract())
    with pytest.raises(CheckpointError, match="holds no model"):
        read_backbone(tmp_path / "nothing", abstract())


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "used"), [("r50_gw", "resnet50", 231), ("x101_gw", "resnext101_32x8d", 452)])
def test_published_models(tmp_path, case, name, used):
    """Files of the published models' structure, through the converter."""
    state = reference.golden_state(case)
    loaded = load.load_state(reference.in_memory(dict(state)), "best.pth", load.LoadOptions(norm_cfg={"num_groups": 64}))
    write_directory(tmp_path / "model", loaded.arrays, loaded.model_config, source=None, training=None)
    detector = create_detector(name, norm="gw", rngs=AbstractRngs())
    weights = read_backbone(tmp_path / "model", detector)
    assert len(weights.used) == used
    assert len(weights.used) + sum(map(len, weights.left_out.values())) == len(state)
    kernel = weights.arrays["backbone.stage4.2.conv2.kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["layer4.2.conv2.weight"])
