"""Detectors in directories: what is written, what is read, and directories that are refused."""

import json
from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

import gw_jax
from gw_jax.detection.backbone import load_backbone
from gw_jax.detection.saved import load_detector, save_detector
from gw_jax.detection.torch_state import to_torch_state
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.nn.initializers import AbstractRngs
from tests.detection import small


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a detector."""
    directory = tmp_path_factory.mktemp("saved") / "detector"
    save_detector(directory, small.detector("gn, 2fc"))
    return directory


@pytest.mark.parametrize("kind", ["gw, 4conv1fc, mask", "frozen, 2fc"])
def test_round_trip(tmp_path, kind):
    detector = small.detector(kind)
    save_detector(tmp_path / "saved", detector, source={"run": "test"})
    loaded = load_detector(tmp_path / "saved")
    small.assert_same_arrays(loaded, detector)
    assert json.loads(json.dumps(loaded.arguments)) == json.loads(json.dumps(detector.arguments))
    assert nnx.graphdef(loaded) == nnx.graphdef(detector)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["source"] == {"run": "test"}
    assert config["detector"]["backbone"] == {
        "bottleneck": True, "stage_sizes": [1, 1, 1, 1], "groups": 1, "width_per_group": 64,
    }  # fmt: skip
    half = load_detector(tmp_path / "saved", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert half.fpn.inner[0].conv.kernel.dtype == jnp.bfloat16


def test_backbone_by_name(tmp_path):
    detector = small.detector("gw, 2fc", "resnet18")
    save_detector(tmp_path / "saved", detector)
    loaded = load_detector(str(tmp_path / "saved"))
    assert loaded.arguments["backbone"] == "resnet18"
    small.assert_same_arrays(loaded, detector)
    save_detector(tmp_path / "again", loaded)


def test_detectors_that_were_changed(tmp_path):
    detector = small.detector("gn, 2fc")
    gw_jax.swap_norms(detector, "backbone/stem_norm", lambda c: gw_jax.make_norm("gw", c, num_groups=2, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ConfigError, match=r"other norms are backbone/stem_norm \(GroupWhitening\).*Save gw_jax\.tree\.variables"
    ):
        save_detector(tmp_path / "saved", detector)
    detector = small.detector("frozen, 4conv1fc, mask")
    detector.box_head.conv_relu = "each"
    with pytest.raises(ConfigError, match="The network was changed after create_detector"):
        save_detector(tmp_path / "saved", detector)
    assert not (tmp_path / "saved").exists()


def test_existing_directory(tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        save_detector(tmp_path, small.detector("gn, 2fc"))


def test_classifiers_and_detectors(tmp_path):
    """Each loader refuses the other's directories, and says which one fits."""
    small.write_model(tmp_path / "classifier", "resnet18", norm="bn")
    with pytest.raises(
        CheckpointError, match=r"no detector; gw_jax\.load_pretrained loads it, and a detector can start from it"
    ):
        load_detector(tmp_path / "classifier")
    save_detector(tmp_path / "detector", small.detector("gn, 2fc"))
    with pytest.raises(CheckpointError, match=r"holds a detector; gw_jax\.detection\.load_detector loads it"):
        gw_jax.load_pretrained(tmp_path / "detector")
    with pytest.raises(CheckpointError, match=r"holds no detector: .* 'python -m gw_jax\.detection\.convert"):
        load_detector(tmp_path / "nothing")


def test_models_and_detectors(tmp_path):
    model = gw_jax.create_model("resnet18", num_classes=3, norm="bn", width=4, rngs=AbstractRngs())
    for call in (partial(save_detector, tmp_path / "out"), to_torch_state, partial(load_backbone, directory=tmp_path)):
        with pytest.raises(ConfigError, match=r"got a ResNet; a detector of gw_jax\.detection\.create_detector"):
            call(model)
    with pytest.raises(ConfigError, match=r"is a detector; gw_jax\.detection\.save_detector writes it"):
        gw_jax.save_pretrained(tmp_path / "out", small.detector("gn, 2fc"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": 3}, "'detector' must be the arguments of create_detector with a 'backbone'"),
        ({"backbone": None}, "'detector' must be the arguments of create_detector with a 'backbone'"),
        ({"backbone": "resnet51"}, "cannot be made: backbone='resnet51' is not known"),
        ({"backbone": {"bottleneck": True, "stage_sizes": [1, 1, 1, 10**9]}}, "a network of depth 1000000003"),
        ({"backbone": {"bottleneck": True, "stage_sizes": "many"}}, "a network of depth 0"),
        ({"backbone": {"bottleneck": True, "stage_sizes": [1, 1, 1, 1], "a": 1}}, "cannot be made"),
        ({"norm_options": 3}, "'norm_options' of 'detector' must be an object"),
        ({"norm": "gww"}, "cannot be made: norm='gww' is not known"),
        ({"anchors": 3}, "cannot be made: .*anchors"),
        ({"num_classes": 4}, "The arrays of .* are not those of the network"),
        ({"mask_head": True}, "The arrays of .* are not those of the network"),
    ],
)
def test_damaged_directories(tmp_path, saved, change, message):
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "detector": {**config["detector"], **change}}))
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_detector(tmp_path)
