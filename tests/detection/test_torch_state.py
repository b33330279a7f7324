"""State dicts of the reference's detectors: the nine key lists, both directions, and states that are refused."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax.convert.entries import entries
from gw_jax.detection.detector import create_detector
from gw_jax.detection.identify import identify_detector
from gw_jax.detection.recipes import FROZEN, reference_optimizer
from gw_jax.detection.torch_state import from_torch_state, to_torch_state
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.nn import make_norm
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.tree import variables
from tests.detection import golden, small

CONFIGS = range(1, 10)


def is_frozen(path):
    """Whether the recipe's patterns freeze the parameter, as the trainer searches for them."""
    return any(re.search(pattern, path.replace(".", "/")) for pattern in FROZEN)


def kind_of(entry):
    """The kind of an entry as the golden files name it."""
    if not entry.trained:
        return "buffer"
    return "frozen" if is_frozen(entry.path) else "trainable"


@pytest.mark.parametrize("config", CONFIGS)
def test_key_lists(config):
    """Names, shapes, order, kind and both counts of parameters, of full size without arrays."""
    expected = golden.keys(config)
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in expected["entries"]}
    detector = create_detector(**identify_detector(shapes), rngs=AbstractRngs())
    table = list(entries(detector))
    found = [[entry.key, list(entry.shape), kind_of(entry)] for entry in table]
    assert found == [[entry["name"], entry["shape"], entry["kind"]] for entry in expected["entries"]]
    sizes = {entry.path: math.prod(entry.shape) for entry in table if entry.trained}
    assert sum(sizes.values()) == expected["parameters"]
    # The reference treats as a bias whatever has the word in its name.
    (is_bias,) = reference_optimizer(0.02).no_decay
    assert {entry.path for entry in table if entry.trained and "bias" in entry.key} == {
        path for path in sizes if re.search(is_bias, path.replace(".", "/"))
    }
    assert sum(size for path, size in sizes.items() if not is_frozen(path)) == expected["trainable_parameters"]
    parameters = nnx.to_pure_dict(nnx.state(detector, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)) == expected["parameters"]
    assert {entry.path for entry in table if entry.constant is None} == set(variables(detector))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_of_full_size(config):
    state = golden.state(config, seed=3)
    # The wrapper, the prefix and another order, as in the checkpoint of a run on several devices.
    shuffled = {f"module.{name}": state[name] for name in sorted(state)}
    require_same(to_torch_state(from_torch_state({"model": shuffled, "iteration": 3})), state)


def require_same(found, expected):
    """Whether two state dicts agree in everything, bit for bit."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("kind", small.KINDS)
def test_round_trip(kind):
    state = small.state(kind)
    detector = from_torch_state(state, norm_options=small.KINDS[kind].get("norm_options"))
    require_same(to_torch_state(detector), state)
    given = {**small.SIZES, **small.KINDS[kind]}
    assert {name: detector.arguments[name] for name in given} == given


@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d"])
def test_backbones_by_name(backbone):
    state = small.state("gw, 2fc", backbone, width=16)
    detector = from_torch_state(state, norm_options=small.GROUPS)
    assert detector.arguments["backbone"] == backbone
    require_same(to_torch_state(detector), state)


def test_wrappers_types_and_order():
    state = small.state("gn, 2fc")
    wrapped = {"model": {f"module.{name}": state[name] for name in reversed(state)}, "optimizer": {}, "iteration": 7}
    require_same(to_torch_state(from_torch_state(wrapped, norm_options=small.GROUPS)), state)
    devices = {name: jnp.asarray(value) for name, value in state.items()}
    require_same(to_torch_state(from_torch_state(devices, norm_options=small.GROUPS)), state)
    half = from_torch_state(state, norm_options=small.GROUPS, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert half.fpn.inner[0].conv.kernel.dtype == jnp.bfloat16
    assert {value.dtype for value in to_torch_state(half).values()} == {np.dtype(np.float32)}


def test_float64(float64):
    state = small.state("frozen, 2fc")
    detector = from_torch_state(state, param_dtype=jnp.float64)
    assert {leaf.dtype for leaf in variables(detector).values()} == {jnp.dtype(jnp.float64)}
    require_same(to_torch_state(detector), state)


def test_layout_of_values():
    """Single values at places that the spec gives: features are flattened c y x there, y x c here."""
    state = small.state("gw, 4conv1fc, mask")
    detector = from_torch_state(state, norm_options=small.GROUPS)
    box, mask = "roi_heads.box.feature_extractor.", "roi_heads.mask.predictor."
    y, x, channel, unit = 2, 5, 3, 11
    place = (y * 7 + x) * 8 + channel
    assert detector.box_head.fc6.kernel[place, unit] == state[f"{box}fc6.weight"][unit, (channel * 7 + y) * 7 + x]
    assert detector.mask_head.deconv.kernel[0, 1, 2, 7] == state[f"{mask}conv5_mask.weight"][2, 7, 0, 1]
    assert detector.fpn.layer[3].conv.kernel[0, 1, 2, 7] == state["backbone.fpn.fpn_layer4.0.weight"][7, 2, 0, 1]
    assert detector.box_head.deltas.kernel[1, 4 * 2 + 3] == state["roi_heads.box.predictor.bbox_pred.weight"][11, 1]
    assert detector.rpn_head.deltas.bias[7] == state["rpn.head.bbox_pred.bias"][7]
    assert detector.backbone.stage2[0].shortcut.norm.var[5] == state["backbone.body.layer2.0.downsample.1.running_var"][5]


def renumbered(state, numbers):
    """``state`` with other numbers of the box head's convolutions."""
    pattern = r"(?<=xconvs\.)\d+"
    return {re.sub(pattern, lambda found: str(numbers[int(found[0])]), name): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("kind", "numbers"), [("gn, 4conv1fc, mask", [0, 1, 3, 4, 6, 7, 9, 10]), ("frozen, 4conv1fc, mask", [0, 2, 4, 6])]
)
def test_convolutions_with_a_relu_each(kind, numbers):
    """The parent project numbers them otherwise; both numberings are read, and the published one is written."""
    state, options = small.state(kind), small.KINDS[kind].get("norm_options")
    detector = from_torch_state(renumbered(state, numbers), conv_relu="each", norm_options=options)
    assert detector.box_head.conv_relu == "each"
    require_same(to_torch_state(detector), state)
    assert from_torch_state(state, conv_relu="each", norm_options=options).box_head.conv_relu == "each"
    assert from_torch_state(state, norm_options=options).box_head.conv_relu == "last"
    with pytest.raises(CheckpointError, match=r"there was a ReLU after each of them. Pass conv_relu='each'"):
        from_torch_state(renumbered(state, numbers), norm_options=options)


STEM = "backbone.body.stem."
ANCHOR = "rpn.anchor_generator.cell_anchors.2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # A key too many.
        ({"fc.weight": (3, 2)}, r"1 that the network does not have: fc\.weight"),
        ({f"{STEM}bn1.num_batches_tracked": ()}, r"not have: backbone\.body\.stem\.bn1\.num_batches"),
        ({"rpn.anchor_generator.cell_anchors.5": (3, 4)}, r"that the network does not have: rpn\.anchor_generator"),
        ({"roi_heads.mask.predictor.conv5_mask.bias": (8,)}, r"mask_fcn1\.weight'.*is missing"),
        ({"backbone.body.layer1.1.conv1.weight": (8, 32, 1, 1)}, r"where layer1\.1\.bn1\.bias.*missing"),
        ({"roi_heads.box.feature_extractor.xconvs.0.weight": (8, 8, 3, 3)}, r"missing: roi_heads\.box.*xconvs\.0\.bias"),
        # A key too few.
        ({f"{STEM}conv1.weight": None}, r"'conv1\.weight'.*is missing"),
        ({"backbone.body.layer3.0.conv2.weight": None}, r"1 missing: backbone\.body\.layer3\.0\.conv2\.weight"),
        ({"backbone.fpn.fpn_layer4.bias": None}, r"1 missing: backbone\.fpn\.fpn_layer4\.bias"),
        ({"roi_heads.box.predictor.cls_score.weight": None}, r"'roi_heads\.box\.predictor\.cls_score\.weight'.*is missing"),
        ({ANCHOR: None}, r"1 missing: rpn\.anchor_generator\.cell_anchors\.2"),
        # A key of another shape.
        ({"rpn.head.bbox_pred.weight": (8, 8, 1, 1)}, r"bbox_pred\.weight is \[8, 8, 1, 1\] and should be \[12, 8, 1, 1\]"),
        ({"roi_heads.box.feature_extractor.fc6.weight": (16, 393)}, r"fc6\.weight is \[16, 393\] and should be"),
        ({"roi_heads.box.predictor.bbox_pred.bias": (8,)}, r"bbox_pred\.bias is \[8\] and should be \[12\]"),
        ({"backbone.fpn.fpn_inner2.weight": (8, 32, 1, 1)}, r"fpn_inner2\.weight is \[8, 32, 1, 1\] and should be"),
        ({f"{STEM}conv1.weight": (8, 4, 7, 7)}, "images of 4 channels, and 3 are supported"),
        ({f"{STEM}conv1.weight": (8, 3, 3, 3)}, "only the stem 'imagenet'"),
        ({f"{STEM}conv1.weight": (8, 3)}, "which a network with such keys has with 4 axes"),
    ],
)  # fmt: skip
def test_states_that_are_refused(change, message):
    state = small.state("frozen, 2fc")
    for name, shape in change.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = np.ones(shape, np.float32)
    with pytest.raises((CheckpointError, ConfigError), match=message) as raised:
        from_torch_state(state)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (ANCHOR, lambda v: v * 2, r"cell_anchors\.2' of the state dict is .* constant of the network"),
        (ANCHOR, lambda v: v * np.nan, "constant of the network"),
        ("rpn.head.conv.bias", lambda v: v * np.nan, "8 values that are NaN or infinite"),
        ("rpn.head.conv.bias", lambda v: v.astype(np.int32), "of type int32"),
        ("rpn.head.conv.bias", lambda v: v.astype(object), "cannot be converted|of type object"),
        ("rpn.head.conv.bias", lambda v: "text", r"rpn\.head\.conv\.bias is \[\]"),
    ],
)
def test_values_that_are_refused(name, value, message):
    state = small.state("frozen, 2fc")
    state[name] = value(state[name])
    with pytest.raises(CheckpointError, match=message):
        from_torch_state(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"has entries like \(there are none\)"),
        ({"layer1.0.conv1.weight": np.ones(3), "fc.weight": np.ones(3)}, "entries of a classifier"),
        ({"a": np.ones(3)}, "No detector of the reference has entries like a"),
        ({7: np.ones(3)}, "is a int; strings are needed"),
        ("best.pth", "The state is a str; a dict"),
    ],
)
def test_what_is_no_detector(state, message):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        from_torch_state(state)


def test_norms_that_no_detector_has():
    state = small.state("gn, 2fc")
    frozen = small.state("frozen, 2fc")
    mixed = {name: frozen.get(name) if ".bn2." in name else state.get(name) for name in {**state, **frozen}}
    with pytest.raises(CheckpointError, match="no placement has these"):
        from_torch_state({name: value for name, value in mixed.items() if value is not None})
    with pytest.raises(ConfigError, match=r"norm_options=\{'num_groups': 3\}.*num_groups=3"):
        from_torch_state(state, norm_options={"num_groups": 3})


def test_deep_backbones():
    """A file that names very many blocks is refused before a network of them is made."""
    shapes = {name: value.shape for name, value in small.state("frozen, 2fc").items()}
    block = {name: shape for name, shape in shapes.items() if name.startswith("backbone.body.layer1.0.")}
    for index in range(1, 201):
        shapes |= {name.replace("layer1.0.", f"layer1.{index}."): shape for name, shape in block.items()}
    with pytest.raises(CheckpointError, match=r"bottleneck blocks \(201, 1, 1, 1\).*up to 200 blocks"):
        identify_detector(shapes)


def test_a_frozen_norm_alone():
    norm = make_norm("frozen_bn", 3, rngs=nnx.Rngs(0))
    assert [(entry.key, entry.shape, entry.trained) for entry in entries(norm)] == [
        (name, (3,), False) for name in ("weight", "bias", "running_mean", "running_var")
    ]


def test_dead_channels():
    """A variance near zero is named; with an epsilon it is read, and a negative one never is."""
    state = small.state("gw, 2fc")
    name = "backbone.body.layer3.0.downsample.1.running_var"
    state[name][[4, 9]] = [1e-12, 0]
    message = r"backbone\.body\.layer3\.0\.downsample\.1\.running_var \(2 of 128: 4, 9\).*epsilon=1e-5 \(--epsilon=1e-5\)"
    with pytest.raises(CheckpointError, match=message):
        from_torch_state(state, norm_options=small.GROUPS)
    detector = from_torch_state(state, norm_options=small.GROUPS, epsilon=1e-5)
    assert detector.backbone.stage3[0].shortcut.norm.epsilon == 1e-5
    assert detector.arguments["frozen_bn_epsilon"] == 1e-5
    require_same(to_torch_state(detector), state)
    state[name][4] = -1e-6
    with pytest.raises(CheckpointError, match="have a variance near 0"):
        from_torch_state(state, norm_options=small.GROUPS, epsilon=1e-5)
    state[name][[4, 9]] = 1e-7
    from_torch_state(state, norm_options=small.GROUPS)
