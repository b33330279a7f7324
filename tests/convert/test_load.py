"""Which network a state dict belongs to, what is guessed, what is refused. No file and no PyTorch is needed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gw_jax
from gw_jax.convert import load, to_torch_state
from gw_jax.convert.entries import entries
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.pretrained import abstract_model, fill_model
from gw_jax.models.reference_names import REFERENCE_MNIST, REFERENCE_RESNETS

# The options of the published models, on narrow networks.
pytestmark = pytest.mark.filterwarnings("ignore:num_groups=64 exceeds")

# Options with which every norm of the reference works on the widths of the small networks below.
NORM_CFG = {
    "IGWItN": {"T": 5, "num_groups": 4},
    "IGWSVD": {"num_groups": 4},
    "GN": {"num_groups": 4},
    "ItN": {"T": 5, "num_channels": 6},
    "ItNSigma": {"T": 3, "num_channels": 6},
    "DBN": {"num_channels": 6},
    "DBNSigma": {"num_channels": 6},
}


def interpret(reference, state, training=None, **arguments):
    return load.load_state(reference.in_memory(state, training), "file.pth", load.LoadOptions(**arguments))


def state_of(reference, name, **arguments):
    """A state dict with the entries of the network ``name``."""
    model = abstract_model({"name": name, **arguments}, None, jnp.float32)
    return reference.make_state([(entry.key, entry.shape) for entry in entries(model)])


def small(name, norm="IGWItN", **arguments):
    """Arguments of a network of a few thousand parameters."""
    width = 16 if name == "resnext50_32x4d" else 8
    common = {"name": name, "num_classes": 5, "width": width, "norm": norm, "norm_options": NORM_CFG.get(norm, {})}
    return {**common, **arguments}


def test_all_names_of_the_reference_are_known():
    assert len(REFERENCE_RESNETS) == 33
    assert set(REFERENCE_RESNETS) | set(REFERENCE_MNIST) <= set(gw_jax.list_models())


@pytest.mark.parametrize("arch", sorted(REFERENCE_RESNETS))
def test_every_architecture_is_recognised(reference, arch):
    name, whiten = REFERENCE_RESNETS[arch]
    imported = interpret(reference, state_of(reference, **small(name, whiten=whiten)))
    config = imported.model_config
    # In networks of basic blocks, B1 and B2 are the same.
    same = whiten == "S1-B1" and name in ("resnet18", "resnet34")
    assert (config["name"], config["whiten"]) == (name, "S1-B2" if same else whiten)
    assert imported.report.reference_name == (arch.replace("100n", "010n") if same else arch)
    assert config["num_classes"] == 5
    given = interpret(reference, state_of(reference, **small(name, whiten=whiten)), arch=arch)
    assert given.report.reference_name == arch


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", ["IGWItN", "IGWSVD", "BN", "GN", "LN", "ItN", "ItNSigma", "DBN", "DBNSigma"])
def test_every_norm_is_recognised_and_goes_back(reference, norm, last):
    arguments = small("resnet18", norm, whiten="S1-B3", last_norm=last)
    state = state_of(reference, **arguments)
    cfg = {key: value for key, value in NORM_CFG.get(norm, {}).items() if key != "num_channels"}
    imported = interpret(reference, state, norm=norm, norm_cfg=cfg or None, arch_cfg={"last": last})
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
def test_norms_without_parameters(reference, norm):
    cfg = {**NORM_CFG.get(norm, {}), **({"affine": False} if norm != "No" else {})}
    state = state_of(reference, **{**small("resnet18", norm), "norm_options": cfg})
    assert "bn1.weight" not in state
    config = interpret(reference, state, norm=norm, norm_cfg=NORM_CFG.get(norm)).model_config
    assert config["whiten"] == "S1-B2"
    assert config["norm"] == {"IGWItN": "gw", "IN": "in", "No": "none"}[norm]


@pytest.mark.parametrize("arch", ["MLP", "MLP_NormAFLinear", "LeNet"])
@pytest.mark.parametrize("norm", ["BN", "IGWSVD", "DBN"])
def test_mnist_networks(reference, arch, norm):
    name = REFERENCE_MNIST[arch]
    arguments = {"num_classes": 10, "in_channels": 1, "image_size": 28}
    if name != "lenet":
        arguments |= {"depth": 3, "width": 24, "norm": norm, "norm_options": {**NORM_CFG.get(norm, {}), "affine": True}}
    state = state_of(reference, name, **arguments)
    imported = interpret(reference, state, norm=norm if name != "lenet" else "IGWItN", norm_cfg=NORM_CFG.get(norm))
    assert imported.model_config["name"] == name
    model = fill_model(imported.model, imported.arrays)
    assert model(jnp.ones((2, 28, 28, 1))).shape == (2, 10)
    again = to_torch_state(model)
    for key, value in state.items():
        np.testing.assert_array_equal(again.pop(key), value, strict=True)
    assert not again


def test_a_network_without_norms_takes_no_notice_of_them(reference):
    """The reference's LeNet ignores --norm, so its training dict may name any."""
    cfg = {"norm": "DBN", "norm_cfg": {"num_channels": 2}}
    state = state_of(reference, "lenet", num_classes=10)
    imported = interpret(reference, state, {"cfg": cfg, "epoch": 0}, norm="GN")
    report = imported.report
    assert "norm" not in report.model_config
    assert not report.guesses
    assert report.notices == ["the optimizer holds no momentum; training starts with none"]
    assert to_torch_state(fill_model(imported.model, imported.arrays)).keys() == state.keys()


def test_the_order_of_flattened_pixels(reference):
    """LeNet's first linear layer sees c h w there and h w c here."""
    state = state_of(reference, "lenet", num_classes=10)
    model = fill_model(*(lambda i: (i.model, i.arrays))(interpret(reference, state)))
    features = np.random.default_rng(0).standard_normal((2, 16, 5, 5)).astype(np.float32)
    expected = features.reshape(2, 400) @ state["net.7.weight"].T + state["net.7.bias"]
    np.testing.assert_allclose(
        model.linear1(jnp.asarray(features.transpose(0, 2, 3, 1).reshape(2, 400))), expected, atol=1e-5
    )


def test_the_autoencoder_has_no_checkpoints():
    model = abstract_model({"name": "autoencoder"}, None, jnp.float32)
    with pytest.raises(ValueError, match="never ran"):
        entries(model)


def test_what_the_file_does_not_tell_is_guessed_aloud(reference):
    state = state_of(reference, **{**small("resnet18"), "width": 64, "norm_options": {"num_groups": 64}})
    report = interpret(reference, state).report
    assert report.model_config["norm_options"] == {"num_groups": 64, "num_iterations": 5}
    assert any("norm=IGWItN (the default; the keys fit IGWSVD, too)" in guess for guess in report.guesses)
    assert any("T=5, num_groups=64" in guess for guess in report.guesses)
    text = str(report)
    assert "guessed       norm_cfg T=5, num_groups=64" in text
    assert "95 used, 0 ignored" in text
    assert not interpret(reference, state, norm_cfg={"T": 5, "num_groups": 64}).report.guesses[1:]


def test_the_training_dict_tells_what_keys_do_not(reference):
    state = state_of(reference, **small("resnet18", "ItNSigma", last_norm=True))
    cfg = {"norm": "ItNSigma", "norm_cfg": {"T": 3, "num_channels": 6}, "arch_cfg": {"last": True, "dropout": 0.25}}
    imported = interpret(reference, state, {"cfg": cfg, "epoch": 41, "optimizer": {}})
    assert imported.model_config["norm"] == "iternorm_sigma"
    assert imported.model_config["norm_options"] == {"num_iterations": 3, "channels_per_group": 6}
    assert imported.model_config["dropout"] == 0.25
    assert imported.training.epochs == 42
    assert not imported.report.guesses


def test_the_default_norm_can_be_insisted_on(reference):
    state = state_of(reference, **small("resnet18", "BN", whiten="none"))
    with pytest.raises(CheckpointError, match="norm='IGWItN' was asked for, but the norms of the file are of another kind"):
        interpret(reference, state, norm="IGWItN")
    cfg = {"norm": "IGWSVD", "norm_cfg": {"num_groups": 8}}
    state = state_of(reference, **small("resnet18"))
    told, asked = (interpret(reference, state, {"cfg": cfg}, norm=norm) for norm in (None, "IGWItN"))
    assert told.model_config["norm"] == "gw_zca"
    assert asked.model_config["norm"] == "gw"
    assert asked.model_config["norm_options"] == {"num_iterations": 5, "num_groups": 64}
    assert "the training dict's cfg says norm='IGWSVD'; IGWItN was used" in asked.report.notices
    assert not any(guess.startswith("norm=") for guess in asked.report.guesses)


def test_options_that_are_not_given_are_guessed_aloud(reference):
    report = interpret(reference, state_of(reference, **small("resnet18")), norm_cfg={"T": 3}).report
    assert report.model_config["norm_options"] == {"num_iterations": 3, "num_groups": 64}
    assert "norm_cfg num_groups=64 (as in the published models; the file does not tell)" in report.guesses


@pytest.mark.parametrize(
    ("arch_cfg", "message"),
    [
        ({"dropout": "lots"}, "arch_cfg dropout='lots'; a number from 0 to less than 1"),
        ({"dropout": float("nan")}, "arch_cfg dropout=nan"),
        ({"dropout": True}, "arch_cfg dropout=True"),
        ({"replace_stride_with_dilation": True}, "replace_stride_with_dilation=True; three booleans"),
        ({"replace_stride_with_dilation": [1, 0, 0]}, r"replace_stride_with_dilation=\[1, 0, 0\]; three booleans"),
    ],
)
def test_options_of_the_head_that_do_not_fit(reference, arch_cfg, message):
    state = state_of(reference, **small("resnet18"))
    for given in ({"arch_cfg": arch_cfg}, {"training": {"cfg": {"arch_cfg": arch_cfg}}}):
        with pytest.raises(ConfigError, match=message):
            interpret(reference, state, **given, norm_cfg={"num_groups": 4})


def test_a_network_of_more_entries_than_the_file_is_not_built(reference):
    """One entry claims so many groups that listing their entries would take the memory of the machine."""
    state = state_of(reference, **small("resnet18", "DBN"))
    state["bn1.DBN_Groups.0.running_mean"] = np.zeros((1, 1), np.float32)
    for key in [key for key in state if "DBN_Groups" in key and "Groups.0." not in key]:
        del state[key]
    big = np.broadcast_to(np.float32(0), (10**6, 3, 7, 7))
    with pytest.raises(CheckpointError, match="many more entries than the file has"):
        interpret(reference, {**state, "conv1.weight": big})


def test_a_cfg_that_contradicts_the_keys_is_named(reference):
    cfg = {"norm": "IGWItN", "norm_cfg": {"T": 5, "num_groups": 64}}
    state = state_of(reference, **small("resnet18", "GN"))
    imported = interpret(reference, state, {"cfg": cfg}, norm_cfg={"num_groups": 4})
    assert imported.model_config["norm"] == "gn"
    assert any("cfg says norm='IGWItN'; GN was used" in notice for notice in imported.report.notices)


def test_torchvision_files_without_counters(reference):
    state = state_of(reference, **small("resnet50", "BN", whiten="none"))
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    imported = interpret(reference, state)
    assert imported.model_config["norm"] == "bn"
    assert len(imported.report.keys_used) == len(state) == 53 * 4 + 53 + 2


def uses_last_norm(model):
    """Whether the logits are computed with the norm before the last layer."""
    calls = []
    model.last_norm = lambda x: calls.append(x.shape) or x
    jax.eval_shape(lambda x: model(x), jnp.ones((1, 32, 32, 3)))
    return bool(calls)


@pytest.mark.parametrize(("name", "applied"), [("resnet50", True), ("resnext50_32x4d", False)])
def test_the_last_norm_of_a_resnext_is_not_applied_unless_told(reference, name, applied):
    state = state_of(reference, **small(name, last_norm=True))
    options = {"norm_cfg": NORM_CFG["IGWItN"]}
    default, told = (interpret(reference, state, **options, apply_last_norm=told) for told in (None, True))
    assert default.model_config["apply_last_norm"] is applied
    assert any("last_bn is kept but not applied" in notice for notice in default.report.notices) is not applied
    assert told.model_config["apply_last_norm"] is True
    uses = [uses_last_norm(fill_model(imported.model, imported.arrays)) for imported in (default, told)]
    assert uses == [applied, True]
    dropout = interpret(reference, state, **options, arch_cfg={"dropout": 0.5}).model_config.get("dropout", 0)
    assert dropout == (0.5 if applied else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet_whiten_010n50"}, "which is a resnet50, but the file holds a resnet18: basic blocks (2, 2, 2, 2)"),
        ({"norm": "IGWSVD", "arch": "resnet_whiten_010n50"}, "which is a resnet50, but"),
        ({"arch": "resnet18"}, "has its norm at S1, but the file has it at S1-B2"),
        ({"arch": "resnet_whiten_001n18"}, "The reference calls that 'resnet_whiten_010n18'"),
        ({"norm": "GN"}, "norm='GN' was asked for, but the norms of the file are of another kind (group whitening)"),
        ({"arch_cfg": {"num_classes": 10}}, "arch_cfg num_classes=10 was asked for, but the file has 5"),
        ({"arch_cfg": {"last": True}}, "arch_cfg last=True was asked for, but the file has False"),
    ],
)
def test_another_network_than_asked_for(reference, arguments, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        interpret(reference, state_of(reference, **small("resnet18")), **{"norm_cfg": {"num_groups": 4}, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"arch": "resnet_whiten_010n5"},
            "arch='resnet_whiten_010n5' is not known; .* Did you mean 'resnet_whiten",
        ),
        ({"norm": "IGWITN"}, "norm='IGWITN' is not known; .* Did you mean 'IGWItN'"),
        (
            {"arch_cfg": {"classes": 5}},
            "arch_cfg key='classes' is not known; .* Did you mean 'num_classes'",
        ),
    ],
)
def test_names_that_are_not_known(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load.read("file.pth", load.LoadOptions(**arguments))


@pytest.mark.parametrize(
    ("norm_cfg", "message"),
    [
        ({"num_groups": 48}, "8 channels|cannot be made"),
        ({"groups": 4}, r"norm_cfg has the keys \['groups'\]"),
        ({"num_groups": "many"}, "num_groups='many' is a str"),
        ({"num_channels": 3}, "cannot be made"),
    ],
)
def test_options_that_do_not_fit(reference, norm_cfg, message):
    state = state_of(reference, **small("resnet18", width=64))
    with pytest.raises(ConfigError, match=message):
        interpret(reference, state, norm_cfg=norm_cfg)


def test_lost_running_statistics_are_noticed(reference):
    state = state_of(reference, **small("resnet18", "DBN"))
    assert not interpret(reference, state).report.notices
    for key in state:
        if key.endswith(".running_mean") and "DBN_Groups" in key:
            state[key] = np.zeros_like(state[key])
    assert "running means of the batch whitening are all zero" in interpret(reference, state).report.notices[0]


def test_iterative_normalisation_must_be_named(reference):
    state = state_of(reference, **small("resnet18", "ItN"))
    with pytest.raises(CheckpointError, match="ItN or ItNSigma, which have the same keys"):
        interpret(reference, state)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("resnet18", "IGWItN"), ("resnet18", "BN"), ("resnet18", "DBN"), ("mlp", "GN"), ("mlp_norm_linear", "DBN")],
)
def test_every_missing_entry_is_named(reference, name, norm):
    options = {**NORM_CFG.get(norm, {}), "affine": True}
    state = state_of(reference, **{**small(name, norm), "width": 12, "norm_options": options if norm != "BN" else {}})
    required = [key for key in state if not key.endswith("num_batches_tracked")]
    # Of each kind of block one is enough.
    for key in [key for key in required if key.startswith(("conv1", "bn1", "layer2.0", "fc", "net"))]:
        without = {other: value for other, value in state.items() if other != key}
        with pytest.raises(CheckpointError, match=re.escape(key)):
            interpret(reference, without, norm_cfg=NORM_CFG.get(norm))


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
def test_damaged_states(reference, change, message):
    state = state_of(reference, **small("resnet18"))
    change(state)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        assert interpret(reference, state, norm_cfg={"num_groups": 4}).arrays
