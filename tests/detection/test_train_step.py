"""A training step of the full-size networks through the trainer, against the reference's: losses, gradients, parameters."""

import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gw_jax.convert.entries import to_torch_state
from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.inputs import place_on_canvas
from gw_jax.detection.options import Sampling
from gw_jax.detection.recipes import reference_optimizer, reference_schedule
from gw_jax.detection.targets import pad_targets
from gw_jax.detection.task import LOSSES, DetectionTask
from gw_jax.detection.torch_state import from_torch_state
from gw_jax.models.config import NormConfig
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train.mesh import make_mesh
from gw_jax.train.optimizer import make_optimizer
from gw_jax.train.schedule import make_schedule
from gw_jax.train.state import TrainState, model_to_dicts
from gw_jax.train.step import make_train_step
from gw_jax.versions import enable_x64
from tests.detection import golden
from tests.detection.in_memory import InMemoryData

pytestmark = pytest.mark.slow

GW = NormConfig(num_groups=64)
MODELS = {
    3: DetectorConfig(norm_options=GW),
    6: DetectorConfig(norm_options=GW, fpn_norm="gn", box_head="4conv1fc", box_head_norm="gw"),
    9: DetectorConfig(
        backbone="resnext101_32x8d",
        norm_options=GW,
        fpn_norm="gw",
        box_head="4conv1fc",
        box_head_norm="gw",
        mask_head=True,
        mask_head_norm="gw",
    ),
}
MILESTONES = {3: (60_000, 80_000), 6: (60_000, 80_000), 9: (120_000, 160_000)}


def one_batch(data, images):
    """The golden batch in the reference's layout, on the canvas that it pads to."""
    pictures = [data[f"image{i}.rgb_uint8_hwc"] for i in range(images)]
    canvas = tuple(int(-(-max(picture.shape[axis] for picture in pictures) // 32) * 32) for axis in (0, 1))
    placed, _, sizes = place_on_canvas(pictures, canvas, np.uint8)
    targets = pad_targets(
        [data[f"image{i}.gt_boxes"] for i in range(images)],
        [data[f"image{i}.gt_labels"] for i in range(images)],
        [json.loads(str(data[f"image{i}.gt_polygons_json"])) for i in range(images)],
        max_objects=6,
    )
    return {"image": placed, "size": sizes, **targets}


def config_for(number, data, images, dtype):
    sampling = Sampling(
        rpn_batch=1_000_000,
        # All of the 306 candidates are taken. Config 9 has 21 positives: fewer places for the mask head.
        box_batch=320,
        box_positive_fraction=0.1 if number == 9 else 0.5,
        pre_nms_top_n=2000,
        post_nms_top_n=2000,
        proposals=300,
    )
    if json.loads(str(data["overrides"]))[-2:] == ["MODEL.RPN.FPN_POST_NMS_PER_BATCH", True]:
        # The best 300 of both images together.
        sampling = dataclasses.replace(sampling, proposals=150, pool_images=2)
    return DetectionConfig(
        dtype=dtype,
        batch_size=images,
        num_steps=90_000,
        model=MODELS[number],
        sampling=sampling,
        optimizer=reference_optimizer(0.01 if number == 9 else 0.02),
        schedule=reference_schedule(*MILESTONES[number]),
    )


@dataclasses.dataclass
class Run:
    """What some training steps gave, under the reference's names and in its layout."""

    number: int
    losses: list = dataclasses.field(default_factory=list)
    gradients: list = dataclasses.field(default_factory=list)
    parameters: list = dataclasses.field(default_factory=list)

    @property
    def trained(self):
        """Names of the parameters that the reference trains."""
        return {entry["name"] for entry in golden.keys(self.number)["entries"] if entry["trainable"]}


class Case:
    """A golden file: its arrays, the run that it describes, and the network's state."""

    def __init__(self, name, number, images, dtype="float32"):
        self.data = data = golden.load(f"train_step/{name}")
        multipliers = dict(zip(data["multiplier_keys"].tolist(), data["multipliers"].tolist(), strict=True))
        self.torch_state = golden.state(number, int(data["weight_seed"]), multipliers)
        self.config = config_for(number, data, images, dtype)
        self.batch = one_batch(data, images)
        self.task = DetectionTask(self.config, InMemoryData([self.batch]))
        detector = from_torch_state(self.torch_state, param_dtype=jnp.dtype(dtype))
        self.loaded_graphdef, self.params, self.batch_stats = model_to_dicts(detector)
        self.graphdef, _, _ = model_to_dicts(self.task.make_model(AbstractRngs()))

    def in_reference(self, params, batch_stats):
        """Names and values of parameters in the reference's state dict."""
        return to_torch_state(nnx.merge(self.loaded_graphdef, params, batch_stats))


def run_steps(name, number, images, dtype="float32", steps=1):
    case = Case(name, number, images, dtype)
    config, task, params, batch_stats = case.config, case.task, case.params, case.batch_stats
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, task.steps_per_epoch, config.num_steps)
    # The first part of the optimiser's state is the gradient.
    kept = optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), lambda g, _, __: (g, g))
    optimizer = optax.chain(kept, make_optimizer(config.optimizer, schedule))
    step = make_train_step(task, case.graphdef, optimizer, config, make_mesh(jax.devices()[:1]))

    result = Run(number, parameters=[case.torch_state])
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
    for _ in range(steps):
        # Every candidate is taken, so that the key does not matter.
        state, metrics = step(state, case.batch)
        result.losses.append({loss: float(metrics[loss][0]) for loss in LOSSES if loss in metrics})
        result.gradients.append(case.in_reference(state.opt_state[0], state.batch_stats))
        result.parameters.append(case.in_reference(state.params, state.batch_stats))
    return case.data, result, schedule


def probe(name, array):
    shape = array.shape
    direction = np.random.default_rng([12345, zlib.crc32(name.encode())]).standard_normal(shape)
    return float((np.asarray(array, np.float64) * direction).sum())


def norm(array):
    return float(np.sqrt((np.asarray(array, np.float64) ** 2).sum()))


def check_losses(expected, found, bounds):
    for loss, value in found.items():
        np.testing.assert_allclose(value, float(expected[loss]), rtol=bounds.get(loss, bounds["all"]), err_msg=loss)
    assert {loss for loss in LOSSES if loss in expected} == set(found)


def check_gradients(data, expected, found, gradients, probes):
    """Norms and probes of the parameters in ``found``."""
    largest = max(expected["grad_norm"])
    compared = [(position, name) for position, name in enumerate(data["names"].tolist()) if name in found]
    for position, name in compared:
        goal = float(expected["grad_norm"][position])
        np.testing.assert_allclose(norm(found[name]), goal, rtol=gradients, atol=1e-7 * largest, err_msg=name)
        share = probes["backbone"] if name.startswith("backbone.body") else probes["other"]
        error = abs(probe(name, found[name]) - float(expected["grad_probe"][position]))
        assert error <= share * goal + 1e-7 * largest, (name, error, goal)
    return [name for _, name in compared]


def check_step(data, run, index, *, prefix="", losses, gradients, probes, after):
    """Compares the step ``index`` (from 1) with the golden numbers below ``prefix``."""
    expected = golden.part(data, f"{prefix}step{index}")
    check_losses(expected, run.losses[index - 1], losses)
    found = run.gradients[index - 1]
    assert check_gradients(data, expected, found, gradients, probes) == data["names"].tolist()
    for name, goal in zip(data["names"].tolist(), expected["param_norm_after"], strict=True):
        np.testing.assert_allclose(norm(run.parameters[index][name]), float(goal), rtol=after, err_msg=name)
    total = np.sqrt(sum(norm(found[name]) ** 2 for name in run.trained))
    np.testing.assert_allclose(total, float(expected["total_grad_norm"]), rtol=gradients)


def check_heads(case, trained, prefix, *, losses, gradients, probes, **_):
    """The losses, and the gradients of the parts ``trained``, without those of what is below them."""

    def loss_of(heads, params, batch):
        model = nnx.merge(case.graphdef, {**params, **heads}, case.batch_stats)
        return case.task.loss(model, batch, jax.random.key(0))

    heads = {name: case.params[name] for name in trained}
    (_, found), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(heads, case.params, case.batch)
    expected = golden.part(case.data, f"{prefix}step1")
    check_losses(expected, {name: float(total / count) for name, (total, count) in found.items()}, losses)
    arrays = case.in_reference({**case.params, **gradient}, case.batch_stats)
    starts = {"rpn_head": "rpn.", "box_head": "roi_heads.box.", "mask_head": "roi_heads.mask."}
    arrays = {name: array for name, array in arrays.items() if name.startswith(tuple(starts[part] for part in trained))}
    compared = check_gradients(case.data, expected, arrays, gradients, probes)
    assert len(compared) > 5


FLOAT32 = {"losses": {"all": 1e-4}, "gradients": 2e-3, "probes": {"backbone": 2e-2, "other": 1e-2}, "after": 1e-5}
SECOND = {"losses": {"all": 1e-3}, "gradients": 1e-2, "probes": {"backbone": 1e-1, "other": 1e-1}, "after": 1e-4}
# At most 3e-7 was measured: regression targets are float32 in the reference.
FLOAT64 = {"losses": {"all": 1e-5}, "gradients": 1e-5, "probes": {"backbone": 1e-5, "other": 1e-5}, "after": 1e-5}


def check_untouched(data, run):
    names = data["frozen_names"].tolist()
    assert names
    assert not set(names) & run.trained
    for name in run.parameters[-1]:
        if name not in run.trained:
            np.testing.assert_array_equal(run.parameters[-1][name], run.parameters[0][name], err_msg=name)
    for name, value in zip(names, data["frozen_norm"], strict=True):
        np.testing.assert_allclose(norm(run.parameters[-1][name]), float(value), rtol=1e-6)


@pytest.mark.long
def test_two_steps_of_config_3(quick):
    data, run, schedule = run_steps("config3_two_images", 3, 2, steps=2)
    for index in (1, 2):
        np.testing.assert_allclose(float(schedule(index - 1)), float(data[f"step{index}.lr"]), rtol=1e-6)
    check_step(data, run, 1, **FLOAT32)
    check_step(data, run, 2, **SECOND)
    check_untouched(data, run)


def test_pooled_proposals_of_config_3(quick):
    """Up to the box head: all that is below it is as without pooling."""
    check_heads(Case("config3_pooled_top_n", 3, 2), ("box_head",), "", **FLOAT32)


@pytest.mark.long  # Both norms and heads are in the steps of configs 3 and 9.
def test_a_step_of_config_6(quick):
    data, run, _ = run_steps("config6_two_images", 6, 2)
    check_step(data, run, 1, **FLOAT32)
    check_untouched(data, run)
    # No gradient reaches this scale: what changes it is weight decay alone, so scales of norms are decayed.
    name = "backbone.fpn.fpn_layer4.1.weight"
    assert not run.gradients[0][name].any()
    assert norm(run.parameters[1][name]) < norm(run.parameters[0][name])


@pytest.mark.long  # Heads and losses of config 9; steps of config 3 and the proposals of config 9 are shorter.
def test_a_step_of_config_9(quick):
    data, run, _ = run_steps("config9_one_image", 9, 1)
    check_step(data, run, 1, **FLOAT32)
    check_untouched(data, run)


@pytest.mark.long  # In float32, above.
@pytest.mark.parametrize("number", [3, 6])
def test_float64(number):
    with enable_x64():
        data, run, _ = run_steps(f"config{number}_two_images", number, 2, "float64")
    check_step(data, run, 1, prefix="float64.", **FLOAT64)


@pytest.mark.long  # In float32, above.
def test_heads_of_config_9_in_float64():
    """The whole step agrees as well, but needs 8 GB of memory."""
    with enable_x64():
        case = Case("config9_one_image", 9, 1, "float64")
        check_heads(case, ("rpn_head", "box_head", "mask_head"), "float64.", **FLOAT64)
