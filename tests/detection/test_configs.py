"""The nine recipes for COCO in configs/: every value of the published files, and headers that tell the truth."""

import dataclasses
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from gw_jax.detection import create_detector
from gw_jax.detection.config import DetectionConfig
from gw_jax.detection.pixels import PIXELS
from gw_jax.nn import FrozenBatchNorm, GroupNorm, GroupWhitening
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train.command_line import load_config
from gw_jax.train.config import validate
from gw_jax.train.config_fields import flatten
from gw_jax.train.optimizer import matching
from gw_jax.train.schedule import Length, make_schedule
from gw_jax.train.state import model_to_dicts
from tests.detection import golden

ROOT = pathlib.Path(__file__).parents[2]
# Of the published file: its number and name, whether its key MODEL.RESNETS.DF keeps it from loading, the AP of boxes and of
# masks that the authors report, and the norms of backbone, pyramid, box head ("2fc" has none) and mask head.
FASTER, MASK = "e2e_faster_rcnn_R_50_0selfStep_1FPN_", "e2e_mask_rcnn_X_101_32x8d_FPN_2Xconv_1Image_"
PUBLISHED = {
    "coco_faster_r50_bn": (1, FASTER + "2fc_1x", True, (0.3631,), ("frozen_bn", "none", "2fc", None)),
    "coco_faster_r50_gn": (2, FASTER + "2fc_1x_GN", True, (0.3632,), ("gn", "none", "2fc", None)),
    "coco_faster_r50_gw": (3, FASTER + "2fc_1x_GW", False, (0.3813,), ("gw", "none", "2fc", None)),
    "coco_faster_r50_4conv_bn": (4, FASTER + "2Xconv_1x", False, (0.3639,), ("frozen_bn", "none", "none", None)),
    "coco_faster_r50_4conv_gn": (5, FASTER + "2Xconv_1x_GN", False, (0.3786,), ("gn", "gn", "gn", None)),
    "coco_faster_r50_4conv_gw": (6, FASTER + "2Xconv_1x_GW", True, (0.3960,), ("gw", "gn", "gw", None)),
    "coco_mask_x101_bn": (7, MASK + "1x", True, (0.4224, 0.3753), ("frozen_bn", "none", "none", "none")),
    "coco_mask_x101_gn": (8, MASK + "1x_GN", True, (0.4218, 0.3754), ("gn", "gn", "gn", "gn")),
    "coco_mask_x101_gw": (9, MASK + "1x_GW", True, (0.4441, 0.3917), ("gw", "gw", "gw", "gw")),
}
# Parameters, and those that are trained.
PARAMETERS = {
    "coco_faster_r50_bn": (41_704_036, 41_481_636),
    "coco_faster_r50_gn": (41_757_156, 41_531_812),
    "coco_faster_r50_gw": (41_711_716, 41_488_804),
    "coco_faster_r50_4conv_bn": (43_014_756, 42_792_356),
    "coco_faster_r50_4conv_gn": (43_070_948, 42_845_604),
    "coco_faster_r50_4conv_gw": (43_025_508, 42_802_596),
    "coco_mask_x101_bn": (108_742_837, 108_317_685),
    "coco_mask_x101_gn": (108_949_813, 108_519_413),
    "coco_mask_x101_gw": (108_812_085, 108_385_269),
}
# Base learning rate, batch, milestones, iterations, images per GPU, proposals per GPU.
SOLVERS = {"r50": (0.02, 16, 60_000, 80_000, 90_000, 2, 2000), "x101": (0.01, 8, 120_000, 160_000, 180_000, 1, 1000)}


def load(stem):
    return load_config(str(ROOT / "configs" / f"{stem}.py"))


def solver(stem):
    return SOLVERS["x101" if "x101" in stem else "r50"]


def text(stem):
    return (ROOT / "configs" / f"{stem}.py").read_text()


def detector(config):
    return create_detector(**config.model_arguments(), rngs=AbstractRngs())


def modules(model, kind):
    return [module for _, module in nnx.iter_graph(model) if isinstance(module, kind)]


def test_every_recipe_is_expected_here():
    assert {path.stem for path in (ROOT / "configs").glob("coco_*.py")} == set(PUBLISHED)


@pytest.mark.parametrize("stem", PUBLISHED)
def test_header_has_the_commands_the_source_and_what_to_expect(stem):
    _, name, loads, expected, _ = PUBLISHED[stem]
    header = text(stem).split('"""')[1]
    assert re.findall(r"python train\.py --config=(\S+) --config\.init_from=backbones/\w+\n", header) == [
        f"configs/{stem}.py"
    ]
    assert header.index("python -m gw_jax.detection.prepare coco") < header.index("python train.py")
    assert f"The values are those of {name}.yaml." in header
    assert ("MODEL.RESNETS.DF" in header) is not loads
    assert re.findall(r"eval/(?:box|mask)_ap ([\d.]+)", header) == [f"{value:.4f}" for value in expected]
    assert "without a variance; not yet run here" in header


@pytest.mark.parametrize("stem", PUBLISHED)
def test_network(stem):
    """Norms of all places, and the number of parameters of the published code."""
    _, _, _, _, (norm, fpn, box, mask) = PUBLISHED[stem]
    config = load(stem)
    validate(config)
    model = config.model
    assert (model.norm, model.fpn_norm) == (norm, fpn)
    assert (model.box_head, model.box_head_norm) == (("2fc", "none") if box == "2fc" else ("4conv1fc", box))
    assert (model.mask_head, model.mask_head_norm) == (mask is not None, mask or "none")
    assert (model.conv_relu, model.frozen_bn_epsilon) == ("last", 0)
    made = detector(config)
    assert {norm.num_groups for norm in modules(made, GroupWhitening)} == (
        {64} if "gw" in (norm, fpn, box, mask) else set()
    )
    assert {norm.num_iterations for norm in modules(made, GroupWhitening)} <= {5}
    assert {norm.num_groups for norm in modules(made, GroupNorm)} == ({32} if "gn" in (norm, fpn, box, mask) else set())
    assert bool(modules(made, FrozenBatchNorm)) == (norm != "gn")
    _, params, _ = model_to_dicts(made)
    frozen = matching(params, config.optimizer.frozen)
    trained = [leaf for leaf, is_frozen in zip(*map(jax.tree.leaves, (params, frozen)), strict=True) if not is_frozen]
    counts = tuple(sum(math.prod(leaf.shape) for leaf in leaves) for leaves in (jax.tree.leaves(params), trained))
    assert counts == PARAMETERS[stem]


@pytest.mark.parametrize("stem", PUBLISHED)
def test_parameters_are_those_of_the_golden_files(stem):
    known = golden.keys(PUBLISHED[stem][0])
    assert (known["parameters"], known["trainable_parameters"]) == PARAMETERS[stem]


@pytest.mark.parametrize("stem", PUBLISHED)
def test_solver_and_sampling(stem):
    config = load(stem)
    rate, batch, _, _, steps, images, proposals = solver(stem)
    assert (config.optimizer.learning_rate, config.batch_size, config.num_steps) == (rate, batch, steps)
    assert (config.reference_batch_size, config.scale_to_batch, config.accumulate_steps) == (batch, False, 1)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == ("sgd", 0.9, False, 1e-4)
    sampling = config.sampling
    assert sampling.pool_images == images == batch // 8
    assert sampling.pool_images * sampling.proposals == proposals
    assert (sampling.rpn_batch, sampling.rpn_positive_fraction) == (256, 0.5)
    assert (sampling.box_batch, sampling.box_positive_fraction) == (512, 0.25)
    assert (sampling.pre_nms_top_n, sampling.post_nms_top_n) == (2000, 2000)
    assert (config.num_classes, config.eval_batch_size) == (81, 8)
    # The name that the command in the headers gives to the set.
    assert (config.data.name, config.data.min_side, config.data.max_side, config.data.flip) == ("coco2017", 800, 1333, True)
    assert config.canvases == ("800x1344", "1344x800")
    assert (config.dtype, config.ema_decay, config.seed) == ("auto", 0, 0)


@pytest.mark.parametrize("stem", PUBLISHED)
def test_pixels(stem):
    pixels = PIXELS[load(stem).pixels]
    if stem == "coco_mask_x101_bn":
        assert (pixels.channels, list(pixels.mean), set(pixels.std)) == ("BGR", [102.9801, 115.9465, 122.7717], {1})
    else:
        assert (pixels.channels, list(pixels.mean), list(pixels.std)) == (
            "RGB",
            [123.675, 116.28, 103.53],
            [58.395, 57.12, 57.375],
        )


@pytest.mark.parametrize("stem", ["coco_faster_r50_gw", "coco_mask_x101_gw"])
def test_learning_rates(stem):
    config = load(stem)
    rate, _, first, second, steps, _, _ = solver(stem)
    table = golden.load("ops/tables")["lr_table"]
    rows = table[(table[:, :3] == (rate, first, second)).all(1)]
    assert len(rows) > 10
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, 7329, steps)
    np.testing.assert_allclose(jax.vmap(schedule)(rows[:, 3].astype(int) - 1), rows[:, 4], rtol=1e-6)


@pytest.mark.parametrize("stem", ["coco_faster_r50_gw", "coco_mask_x101_gw"])
def test_saves_and_evaluations(stem):
    """Saved as often as the reference saves; evaluated 9 times, and the last model counts."""
    config = load(stem)
    length = Length.of(config, 7329)
    saves = [step for step in range(0, length.total_steps + 1, 500) if length.saves(step)]
    assert saves == list(range(2500, length.total_steps + 1, 2500))
    evaluations = [step for step in range(0, length.total_steps + 1, 500) if length.evaluates(step)]
    assert len(evaluations) == 9
    assert evaluations[-1] == length.total_steps
    assert config.checkpoint.evaluate == "last"


@pytest.mark.parametrize("family", SOLVERS)
def test_recipes_of_a_family_differ_in_their_networks_only(family):
    """Beside the pixels that belong to the weights of Caffe2."""
    first, *others = (flatten(load(stem)) for stem in PUBLISHED if family in stem)
    for other in others:
        differences = {name for name in first if first[name] != other[name] and not name.startswith("model.")}
        assert differences <= {"pixels"}


def test_a_recipe_for_8_images_is_that_for_16_scaled():
    """The published files follow the rule themselves."""
    r50, x101 = load("coco_faster_r50_gw"), load("coco_mask_x101_gw")
    scaled, summary = dataclasses.replace(r50, batch_size=8, scale_to_batch=True).resolve()
    assert scaled.optimizer == x101.optimizer
    assert scaled.schedule.milestone_steps == x101.schedule.milestone_steps
    assert (scaled.num_steps, scaled.eval_every_steps) == (x101.num_steps, x101.eval_every_steps)
    assert scaled.schedule.warmup_steps == 999
    assert summary == (
        "Scaled from batches of 16 to 8: optimizer.learning_rate 0.02 to 0.01, num_steps 90,000 to 180,000, "
        "eval_every_steps 10,000 to 20,000, schedule.warmup_steps 499 to 999, schedule.milestone_steps 59,999 to 119,999, "
        "schedule.milestone_steps 79,999 to 159,999."
    )
    assert isinstance(scaled, DetectionConfig)
    validate(scaled)
