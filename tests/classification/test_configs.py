"""The recipes in configs/: what their networks are, what their schedules do, and that their headers tell the truth."""

import math
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags

from gw_jax.classification.checks import check_devices
from gw_jax.data.specs import SPECS
from gw_jax.errors import ConfigError
from gw_jax.models import create_model
from gw_jax.models.config import model_arguments
from gw_jax.nn import BatchNorm, BatchWhitening, GroupNorm, GroupWhitening
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train.config import validate
from gw_jax.train.config_fields import flatten
from gw_jax.train.optimizer import matching
from gw_jax.train.schedule import make_schedule
from gw_jax.train.state import model_to_dicts

# ml_collections loads files with a deprecated function of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = pathlib.Path(__file__).parents[2]
STEMS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if not path.stem.startswith(("coco_", "detection_")))
LARS_BATCHES = (4096, 8192, 16384, 32768)

# Of the reference's networks: parameters, arrays of parameters, norms of the kind that the recipe is about, BatchNorms, and
# how many examples share statistics (a share of the batch on one of the authors' GPUs).
RESNET50, RESNET101 = 25_557_032, 44_549_160
RESNEXT50, RESNEXT101 = 25_028_904, 88_791_336
NETWORKS = {
    "imagenet_resnet50_gw": (RESNET50, 161, GroupWhitening, 17, 36, 128),
    "imagenet_resnet101_gw": (RESNET101, 314, GroupWhitening, 34, 70, 128),
    "imagenet_resnext50_gw": (RESNEXT50, 161, GroupWhitening, 17, 36, 128),
    "imagenet_resnext101_gw": (RESNEXT101, 314, GroupWhitening, 34, 70, 64),
    "imagenet_resnet50_bn": (RESNET50, 161, BatchNorm, 53, 53, 128),
    "imagenet_resnet101_bn": (RESNET101, 314, BatchNorm, 104, 104, 128),
    "imagenet_resnext50_bn": (RESNEXT50, 161, BatchNorm, 53, 53, 128),
    "imagenet_resnext101_bn": (RESNEXT101, 314, BatchNorm, 104, 104, 64),
    "imagenet_resnext50_gn": (RESNEXT50, 161, GroupNorm, 53, 0, None),
    "imagenet_resnext101_gn": (RESNEXT101, 314, GroupNorm, 104, 0, None),
    # Before the last layer stands one more: 2,048 scales and biases.
    "imagenet_resnet50_iternorm_sigma_df": (25_561_128, 163, BatchWhitening, 18, 36, 128),
    "imagenet_resnext50_iternorm_sigma_df": (25_033_000, 163, BatchWhitening, 18, 36, 128),
    "imagenet_resnext101_iternorm_sigma_df": (88_795_432, 316, BatchWhitening, 35, 70, 64),
}
OURS = {
    "imagenet_resnet50_gw_modern": (RESNET50, 161, GroupWhitening, 17, 36, 128),
    "imagenet_resnet50_gw_lars": (RESNET50, 161, GroupWhitening, 17, 36, 128),
}


def load(name):
    """The configuration that ``--config=configs/NAME`` gives."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    stem, _, argument = name.partition(":")
    values(["train.py", f"--config={ROOT}/configs/{stem}.py" + (f":{argument}" if argument else "")])
    return config.value


def make(config):
    """The network of ``config`` without its values."""
    spec = SPECS[config.data.name]
    arguments = model_arguments(
        config.model,
        num_classes=spec.num_classes,
        in_channels=spec.image_shape[-1],
        image_size=config.data.image_size or spec.image_shape[0],
        batch_size=config.data.batch_size // config.accumulate_steps,
    )
    return create_model(**arguments, rngs=AbstractRngs())


def modules(model, kind):
    return [module for _, module in nnx.iter_graph(model) if isinstance(module, kind)]


def rates(config, steps_per_epoch, epochs):
    """Learning rates of the first steps of ``epochs``."""
    schedule = make_schedule(
        config.schedule, config.optimizer.learning_rate, steps_per_epoch, config.num_epochs * steps_per_epoch
    )
    return [float(schedule(epoch * steps_per_epoch)) for epoch in epochs]


def decay_mask(params, config):
    return jax.tree.map(lambda spared: not spared, matching(params, config.optimizer.no_decay))


def test_every_recipe_is_expected_here():
    assert set(STEMS) == {*NETWORKS, *OURS, "quickstart"}


@pytest.mark.parametrize("stem", STEMS)
def test_header_names_its_own_file(stem):
    text = (ROOT / "configs" / f"{stem}.py").read_text()
    header = text.split('"""')[1]
    commands = re.findall(r"python train\.py.*", header)
    option = "" if stem == "quickstart" else rf" --config=configs/{stem}\.py(:\d+)?"
    assert len(commands) == 1
    assert re.fullmatch(rf"python train\.py{option}", commands[0])
    if ":" in commands[0]:
        validate(load(stem + ":" + commands[0].split(":")[1]))


@pytest.mark.parametrize("stem", STEMS)
def test_recipe_is_valid_and_its_network_can_be_made(stem):
    config = load(stem)
    validate(config)
    model = make(config)
    _, params, _ = model_to_dicts(model)
    leaves = jax.tree.leaves(params)
    if stem == "quickstart":
        assert len(modules(model, GroupWhitening)) == 9
        return
    num_params, num_arrays, kind, num_norms, num_batch_norms, group_size = (NETWORKS | OURS)[stem]
    assert sum(math.prod(leaf.shape) for leaf in leaves) == num_params
    assert len(leaves) == num_arrays
    norms, batch_norms = modules(model, kind), modules(model, BatchNorm)
    assert (len(norms), len(batch_norms)) == (num_norms, num_batch_norms)
    assert {norm.group_size for norm in (*batch_norms, *modules(model, BatchWhitening))} <= {group_size}
    if kind in (GroupWhitening, BatchWhitening):
        assert {norm.num_iterations for norm in norms} == {5}
    if kind is GroupWhitening:
        assert {norm.num_groups for norm in norms} == {64}
    if kind is BatchWhitening:
        assert max(norm.channels_per_group for norm in norms) == 256  # or all channels, where there are fewer
        assert {norm.running for norm in norms} == {"covariance"}
    if kind is GroupNorm:
        assert {norm.num_groups for norm in norms} == {32}


@pytest.mark.parametrize("stem", NETWORKS)
def test_the_papers_schedule(stem):
    config = load(stem)
    assert rates(config, 5004, (0, 29, 30, 59, 60, 89, 90, 99)) == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4]
    )
    assert (config.num_epochs, 1281167 // config.data.batch_size) == (100, 5004)


@pytest.mark.parametrize("stem", NETWORKS)
def test_the_papers_runs_differ_in_their_networks_only(stem):
    known, given = flatten(load("imagenet_resnet50_gw")), flatten(load(stem))
    differences = {name for name in known if known[name] != given[name] and not name.startswith("model.")}
    assert differences <= {"optimizer.no_decay"}
    assert given["optimizer.weight_decay"] == 1e-4
    assert (given["label_smoothing"], given["ema_decay"], given["seed"]) == (0, 0, 1)


@pytest.mark.parametrize("stem", NETWORKS)
def test_weight_decay_covers_all_used_parameters_as_in_the_reference(stem):
    config = load(stem)
    _, params, _ = model_to_dicts(make(config))
    mask = decay_mask(params, config)
    # The reference's ResNeXt makes a last norm and never calls it.
    unused = config.model.last_norm and not config.model.apply_last_norm
    assert unused == ("resnext" in stem and "iternorm" in stem)
    assert not any(jax.tree.leaves(mask["last_norm"])) if unused else all(jax.tree.leaves(mask))
    assert all(jax.tree.leaves({name: part for name, part in mask.items() if name != "last_norm"}))


@pytest.mark.parametrize("stem", NETWORKS)
def test_the_papers_batches_fit_devices(stem):
    config = load(stem)
    for exponent in range(9):
        check_devices(config, 2**exponent)


def test_modern_recipe():
    config = load("imagenet_resnet50_gw_modern")
    for exponent in range(10):
        check_devices(config, 2**exponent)
    assert rates(config, 1251, (0, 2.5, 5, 152.5, 300)) == pytest.approx([0, 0.25, 0.5, 0.25, 0], abs=1e-4)
    _, params, _ = model_to_dicts(make(config))
    for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params, config)):
        assert decays == (path[-1].key == "kernel")


@pytest.mark.parametrize("batch_size", LARS_BATCHES)
def test_large_batches(batch_size):
    config = load(f"imagenet_resnet50_gw_lars:{batch_size}")
    validate(config)
    assert config.data.batch_size == batch_size
    # 128 images per device, and any smaller number of devices.
    for num_devices in (1, 32, batch_size // 128):
        check_devices(config, num_devices)
    peak, warmup = config.optimizer.learning_rate, config.schedule.warmup_epochs
    assert warmup == (25 if batch_size == 32768 else 5)
    middle = (warmup + config.num_epochs) / 2
    found = rates(config, 1000, (0, warmup, middle, config.num_epochs))
    assert found == pytest.approx([0, peak, peak / 4, 0], abs=1e-4)


def test_larger_batches_learn_faster():
    peaks = [load(f"imagenet_resnet50_gw_lars:{size}").optimizer.learning_rate for size in LARS_BATCHES]
    assert peaks == sorted(set(peaks))
    assert load("imagenet_resnet50_gw_lars") == load(f"imagenet_resnet50_gw_lars:{LARS_BATCHES[0]}")


def test_a_batch_without_a_recipe_is_named():
    with pytest.raises(ConfigError, match="no recipe for a batch of '5000'; give one of 4096, 8192, 16384, 32768"):
        load("imagenet_resnet50_gw_lars:5000")


def test_the_command_line_accepts_a_batch_size_after_the_colon(tmp_path):
    """The data are not there, which is what the run says: the form was understood, and all else is valid."""
    command = [sys.executable, str(ROOT / "train.py"), f"--config={ROOT}/configs/imagenet_resnet50_gw_lars.py:16384"]
    ended = subprocess.run(
        [*command, f"--config.data.data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "error: The data set 'imagenet2012' is not prepared" in ended.stderr
