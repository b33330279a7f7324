"""Identification of the network of a state dict, and refusals. No file and no PyTorch is needed."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import gw_jax
from gw_jax.convert import to_torch_state
from gw_jax.convert.entries import entries
from gw_jax.errors import CheckpointError
from gw_jax.models.pretrained import fill_model
from gw_jax.models.reference_names import REFERENCE_MNIST, REFERENCE_RESNETS
from gw_jax.models.remembered import abstract_model
from tests.helpers.reference import NORM_CFG, interpret, small, state_of

# The options of the published models, on narrow networks.
pytestmark = pytest.mark.filterwarnings("ignore:num_groups=64 exceeds")


def test_all_names_of_the_reference_are_known():
    assert len(REFERENCE_RESNETS) == 33
    assert set(REFERENCE_RESNETS) | set(REFERENCE_MNIST) <= set(gw_jax.list_models())


@pytest.mark.parametrize("arch", sorted(REFERENCE_RESNETS))
def test_every_architecture_is_recognised(arch):
    name, whiten = REFERENCE_RESNETS[arch]
    imported = interpret(state_of(**small(name, whiten=whiten)))
    config = imported.model_config
    # In networks of basic blocks, B1 and B2 are the same.
    same = whiten == "S1-B1" and name in ("resnet18", "resnet34")
    assert (config["name"], config["whiten"]) == (name, "S1-B2" if same else whiten)
    assert imported.report.reference_name == (arch.replace("100n", "010n") if same else arch)
    assert config["num_classes"] == 5
    given = interpret(state_of(**small(name, whiten=whiten)), arch=arch)
    assert given.report.reference_name == arch


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", ["IGWItN", "IGWSVD", "BN", "GN", "LN", "ItN", "ItNSigma", "DBN", "DBNSigma"])
def test_every_norm_is_recognised_and_goes_back(norm, last):
    arguments = small("resnet18", norm, whiten="S1-B3", last_norm=last)
    state = state_of(**arguments)
    cfg = {key: value for key, value in NORM_CFG.get(norm, {}).items() if key != "num_channels"}
    imported = interpret(state, norm=norm, norm_cfg=cfg or None, arch_cfg={"last": last})
    model = fill_model(imported.model, imported.arrays)
    expected = gw_jax.make_norm(norm, 8, rngs=None, **NORM_CFG.get(norm, {}))
    assert type(model.stem_norm) is type(expected)
    for attribute in ("method", "running", "num_iterations", "channels_per_group", "num_groups"):
        assert getattr(model.stem_norm, attribute, None) == getattr(expected, attribute, None)
    again = to_torch_state(model)
    assert list(again) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, strict=True)


@pytest.mark.parametrize("norm", ["IGWItN", "IN", "No"])
def test_norms_without_parameters(norm):
    cfg = {**NORM_CFG.get(norm, {}), **({"affine": False} if norm != "No" else {})}
    state = state_of(**{**small("resnet18", norm), "norm_options": cfg})
    assert "bn1.weight" not in state
    config = interpret(state, norm=norm, norm_cfg=NORM_CFG.get(norm)).model_config
    assert config["whiten"] == "S1-B2"
    assert config["norm"] == {"IGWItN": "gw", "IN": "in", "No": "none"}[norm]


@pytest.mark.parametrize("arch", ["MLP", "MLP_NormAFLinear", "LeNet"])
@pytest.mark.parametrize("norm", ["BN", "IGWSVD", "DBN"])
def test_mnist_networks(arch, norm):
    name = REFERENCE_MNIST[arch]
    arguments = {"num_classes": 10, "in_channels": 1, "image_size": 28}
    if name != "lenet":
        arguments |= {"depth": 3, "width": 24, "norm": norm, "norm_options": {**NORM_CFG.get(norm, {}), "affine": True}}
    state = state_of(name, **arguments)
    imported = interpret(state, norm=norm if name != "lenet" else "IGWItN", norm_cfg=NORM_CFG.get(norm))
    assert imported.model_config["name"] == name
    model = fill_model(imported.model, imported.arrays)
    assert model(jnp.ones((2, 28, 28, 1))).shape == (2, 10)
    again = to_torch_state(model)
    for key, value in state.items():
        np.testing.assert_array_equal(again.pop(key), value, strict=True)
    assert not again


def test_a_network_without_norms_ignores_the_norm_of_its_file(reference):
    """The reference's LeNet ignores --norm, so its training dict may name any."""
    cfg = {"norm": "DBN", "norm_cfg": {"num_channels": 2}}
    state = state_of("lenet", num_classes=10)
    imported = interpret(state, {"cfg": cfg, "epoch": 0}, norm="GN")
    report = imported.report
    assert "norm" not in report.model_config
    assert not report.guesses
    assert report.notices == ["the optimizer holds no momentum; training starts with none"]
    assert to_torch_state(fill_model(imported.model, imported.arrays)).keys() == state.keys()


def test_the_order_of_flattened_pixels():
    """LeNet's first linear layer sees c h w there and h w c here."""
    state = state_of("lenet", num_classes=10)
    model = fill_model(*(lambda i: (i.model, i.arrays))(interpret(state)))
    features = np.random.default_rng(0).standard_normal((2, 16, 5, 5)).astype(np.float32)
    expected = features.reshape(2, 400) @ state["net.7.weight"].T + state["net.7.bias"]
    np.testing.assert_allclose(
        model.linear1(jnp.asarray(features.transpose(0, 2, 3, 1).reshape(2, 400))), expected, atol=1e-5
    )


def test_the_autoencoder_has_no_checkpoints():
    model = abstract_model({"name": "autoencoder"}, None, jnp.float32)
    with pytest.raises(ValueError, match="never ran"):
        entries(model)


def test_a_network_with_more_entries_than_the_file_is_not_built():
    """One entry claims so many groups that listing their entries would take the memory of the machine."""
    state = state_of(**small("resnet18", "DBN"))
    state["bn1.DBN_Groups.0.running_mean"] = np.zeros((1, 1), np.float32)
    for key in [key for key in state if "DBN_Groups" in key and "Groups.0." not in key]:
        del state[key]
    big = np.broadcast_to(np.float32(0), (10**6, 3, 7, 7))
    with pytest.raises(CheckpointError, match="many more entries than the file has"):
        interpret({**state, "conv1.weight": big})


def test_torchvision_files_without_counters():
    state = state_of(**small("resnet50", "BN", whiten="none"))
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    imported = interpret(state)
    assert imported.model_config["norm"] == "bn"
    assert len(imported.report.keys_used) == len(state) == 53 * 4 + 53 + 2


def test_lost_running_statistics_are_noticed():
    state = state_of(**small("resnet18", "DBN"))
    assert not interpret(state).report.notices
    for key in state:
        if key.endswith(".running_mean") and "DBN_Groups" in key:
            state[key] = np.zeros_like(state[key])
    assert "running means of the batch whitening are all zero" in interpret(state).report.notices[0]


@pytest.mark.parametrize(
    ("name", "norm"),
    [("resnet18", "IGWItN"), ("resnet18", "BN"), ("resnet18", "DBN"), ("mlp", "GN"), ("mlp_norm_linear", "DBN")],
)
def test_every_missing_entry_is_named(name, norm):
    options = {**NORM_CFG.get(norm, {}), "affine": True}
    state = state_of(**{**small(name, norm), "width": 12, "norm_options": options if norm != "BN" else {}})
    required = [key for key in state if not key.endswith("num_batches_tracked")]
    # Of each kind of block one is enough.
    for key in [key for key in required if key.startswith(("conv1", "bn1", "layer2.0", "fc", "net"))]:
        without = {other: value for other, value in state.items() if other != key}
        with pytest.raises(CheckpointError, match=re.escape(key)):
            interpret(without, norm_cfg=NORM_CFG.get(norm))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [s.pop(key) for key in list(s) if "layer2.1" in key], "resnet18, of which 'layer2.1' is missing"),
        (lambda s: [s.pop(key) for key in list(s) if "layer2.0" in key], "The block 'layer2.0' is missing, although"),
        (lambda s: s.update({"layer3.2.conv1.weight": s["fc.weight"]}), "resnet18, of which 'layer3.2' is left over"),
        (lambda s: s.update({"layer3.100001.conv1.weight": s["fc.weight"]}), "The block 'layer3.2' is missing, although"),
        (lambda s: s.pop("layer2.0.bn1.bias"), "1 missing: layer2.0.bn1.bias"),
        (lambda s: s.pop("fc.weight"), "'fc.weight', which a network with such keys has with 2 axes, is missing"),
        (lambda s: s.update({"layer9.weight": s["fc.bias"]}), "1 that the network does not have: layer9.weight"),
        (lambda s: s.update({"fc.bias": np.zeros(3, np.float32)}), "fc.bias is [3] and should be [5]"),
        (
            lambda s: s["layer1.0.conv2.weight"].__setitem__(0, np.nan),
            "'layer1.0.conv2.weight' of file.pth holds 72 values",
        ),
        (lambda s: s.update({"bn1.running_mean": s["fc.bias"]}), "Norms other than BatchNorm are at 1; no placement has"),
        (lambda s: s.update({"bn1.weight": s["fc.bias"]}), "mixes norms"),
        (
            lambda s: [s.pop(f"layer1.1.bn1.{name}") for name in ("weight", "bias")],
            "no entries at 'layer1.1.bn1', where layer1.1.bn1.bias, layer1.1.bn1.weight is missing",
        ),
        (lambda s: [s.pop(key) for key in list(s) if "layer" in key], "No network of the reference has keys like"),
    ],
)
def test_damaged_states(change, message):
    state = state_of(**small("resnet18"))
    change(state)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        assert interpret(state, norm_cfg={"num_groups": 4}).arrays
