"""Options of a network: what is insisted on, what a file's cfg says, what is guessed, what is refused."""

import re

import jax
import jax.numpy as jnp
import pytest

from gw_jax.convert import load
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.pretrained import fill_model
from tests.helpers.reference import NORM_CFG, interpret, small, state_of

# The options of the published models, on narrow networks.
pytestmark = pytest.mark.filterwarnings("ignore:num_groups=64 exceeds")


def test_undetermined_options_are_guessed_and_reported():
    state = state_of(**{**small("resnet18"), "width": 64, "norm_options": {"num_groups": 64}})
    report = interpret(state).report
    assert report.model_config["norm_options"] == {"num_groups": 64, "num_iterations": 5}
    assert any("norm=IGWItN (the default; the keys fit IGWSVD, too)" in guess for guess in report.guesses)
    assert any("T=5, num_groups=64" in guess for guess in report.guesses)
    text = str(report)
    assert "guessed       norm_cfg T=5, num_groups=64" in text
    assert "95 used, 0 ignored" in text
    assert not interpret(state, norm_cfg={"T": 5, "num_groups": 64}).report.guesses[1:]


def test_the_training_dict_gives_options_that_keys_do_not_determine():
    state = state_of(**small("resnet18", "ItNSigma", last_norm=True))
    cfg = {"norm": "ItNSigma", "norm_cfg": {"T": 3, "num_channels": 6}, "arch_cfg": {"last": True, "dropout": 0.25}}
    imported = interpret(state, {"cfg": cfg, "epoch": 41, "optimizer": {}})
    assert imported.model_config["norm"] == "iternorm_sigma"
    assert imported.model_config["norm_options"] == {"num_iterations": 3, "channels_per_group": 6}
    assert imported.model_config["dropout"] == 0.25
    assert imported.training.epochs == 42
    assert not imported.report.guesses


def test_the_default_norm_can_be_insisted_on():
    state = state_of(**small("resnet18", "BN", whiten="none"))
    with pytest.raises(CheckpointError, match="norm='IGWItN' was requested, but the norms of the file are of another kind"):
        interpret(state, norm="IGWItN")
    cfg = {"norm": "IGWSVD", "norm_cfg": {"num_groups": 8}}
    state = state_of(**small("resnet18"))
    told, asked = (interpret(state, {"cfg": cfg}, norm=norm) for norm in (None, "IGWItN"))
    assert told.model_config["norm"] == "gw_zca"
    assert asked.model_config["norm"] == "gw"
    assert asked.model_config["norm_options"] == {"num_iterations": 5, "num_groups": 64}
    assert "the training dict's cfg says norm='IGWSVD'; IGWItN was used" in asked.report.notices
    assert not any(guess.startswith("norm=") for guess in asked.report.guesses)


def test_missing_options_are_guessed_and_reported():
    report = interpret(state_of(**small("resnet18")), norm_cfg={"T": 3}).report
    assert report.model_config["norm_options"] == {"num_iterations": 3, "num_groups": 64}
    assert "norm_cfg num_groups=64 (as in the published models; the file does not determine it)" in report.guesses


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
def test_options_of_the_head_that_do_not_fit(arch_cfg, message):
    state = state_of(**small("resnet18"))
    for given in ({"arch_cfg": arch_cfg}, {"training": {"cfg": {"arch_cfg": arch_cfg}}}):
        with pytest.raises(ConfigError, match=message):
            interpret(state, **given, norm_cfg={"num_groups": 4})


def test_a_cfg_that_contradicts_the_keys_is_named():
    cfg = {"norm": "IGWItN", "norm_cfg": {"T": 5, "num_groups": 64}}
    state = state_of(**small("resnet18", "GN"))
    imported = interpret(state, {"cfg": cfg}, norm_cfg={"num_groups": 4})
    assert imported.model_config["norm"] == "gn"
    assert any("cfg says norm='IGWItN'; GN was used" in notice for notice in imported.report.notices)


def uses_last_norm(model):
    """Whether the logits are computed with the norm before the last layer."""
    calls = []
    model.last_norm = lambda x: calls.append(x.shape) or x
    jax.eval_shape(lambda x: model(x), jnp.ones((1, 32, 32, 3)))
    return bool(calls)


@pytest.mark.parametrize(("name", "applied"), [("resnet50", True), ("resnext50_32x4d", False)])
def test_the_last_norm_of_a_resnext_is_not_applied_unless_requested(name, applied):
    state = state_of(**small(name, last_norm=True))
    options = {"norm_cfg": NORM_CFG["IGWItN"]}
    default, told = (interpret(state, **options, apply_last_norm=told) for told in (None, True))
    assert default.model_config["apply_last_norm"] is applied
    assert any("last_bn is kept but not applied" in notice for notice in default.report.notices) is not applied
    assert told.model_config["apply_last_norm"] is True
    uses = [uses_last_norm(fill_model(imported.model, imported.arrays)) for imported in (default, told)]
    assert uses == [applied, True]
    dropout = interpret(state, **options, arch_cfg={"dropout": 0.5}).model_config.get("dropout", 0)
    assert dropout == (0.5 if applied else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet_whiten_010n50"}, "which is a resnet50, but the file holds a resnet18: basic blocks (2, 2, 2, 2)"),
        ({"norm": "IGWSVD", "arch": "resnet_whiten_010n50"}, "which is a resnet50, but"),
        ({"arch": "resnet18"}, "has its norm at S1, but the file has it at S1-B2"),
        ({"arch": "resnet_whiten_001n18"}, "The reference calls that 'resnet_whiten_010n18'"),
        ({"norm": "GN"}, "norm='GN' was requested, but the norms of the file are of another kind (group whitening)"),
        ({"arch_cfg": {"num_classes": 10}}, "arch_cfg num_classes=10 was requested, but the file has 5"),
        ({"arch_cfg": {"last": True}}, "arch_cfg last=True was requested, but the file has False"),
    ],
)
def test_a_network_other_than_requested_is_refused(arguments, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        interpret(state_of(**small("resnet18")), **{"norm_cfg": {"num_groups": 4}, **arguments})


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
def test_options_that_do_not_fit(norm_cfg, message):
    state = state_of(**small("resnet18", width=64))
    with pytest.raises(ConfigError, match=message):
        interpret(state, norm_cfg=norm_cfg)


def test_iterative_normalisation_must_be_named():
    state = state_of(**small("resnet18", "ItN"))
    with pytest.raises(CheckpointError, match="ItN or ItNSigma, which have the same keys"):
        interpret(state)
