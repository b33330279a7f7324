import importlib.util
import pathlib
import re

import pytest

from gw_jax.classification import ClassificationConfig, ModelConfig, NormConfig
from gw_jax.errors import ConfigError
from gw_jax.models.config import chosen_norm_options, model_arguments
from gw_jax.train.config import validate
from gw_jax.train.config_fields import check_field_name, flatten

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_projects_configs_are_valid_and_say_what_they_do(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    validate(module.get_config())
    for word in ("python train.py", "Hardware:", "Expected:"):
        assert word in module.__doc__


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mode", "eval", "config.mode='eval' is not known; choose one of train, evaluate"),
        ("dtype", "float16", "config.dtype='float16' is not known"),
        ("model.name", "resnet5", "Did you mean 'resnet50'"),
        ("model.norm", "batch", "config.model.norm='batch' is not known; choose one of gw, gw_zca, bn, frozen_bn, gn, ln"),
        ("model.whiten", "s1-b2", "Did you mean 'S1-B2'"),
        ("model.norm_options.implementation", "kernels", "Did you mean 'kernel'"),
        ("schedule.name", "cos", "Did you mean 'cosine'"),
        ("optimizer.name", "adam", "choose one of sgd, lars, adamw"),
        ("num_epochs", 0, "config.num_epochs=0 is out of range; >= 1 is allowed"),
        ("num_epochs", "ten", "config.num_epochs='ten' is a str; it must be of type int"),
        ("optimizer.momentum", 1.5, "config.optimizer.momentum=1.5 is out of range; 0 to 1 is allowed"),
        ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate=nan is out of range"),
        ("schedule.warmup_epochs", 91, "out of range; 0 to 90 is allowed"),
        ("data.flip", 1, "config.data.flip=1 is a int; it must be of type bool"),
        ("data.image_size", 1.5, "it must be of type int | None"),
        ("optimizer.no_decay", ["scale"], "must be of type tuple"),
        ("optimizer.no_decay", ("sca(le",), r"config.optimizer.no_decay='sca(le' is not a regular expression"),
        ("model", None, "config.model is a NoneType; it must be a ModelConfig"),
    ],
)
def test_bad_values_are_named(path, value, message):
    config = ClassificationConfig()
    *groups, name = path.split(".")
    target = config
    for group in groups:
        target = getattr(target, group)
    setattr(target, name, value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(config)


def test_an_object_that_is_no_config_is_named():
    with pytest.raises(ConfigError, match=r"returned a dict; it must return a gw_jax\.train\.TrainConfig"):
        validate({"seed": 0})


@pytest.mark.parametrize("path", sorted(flatten(ClassificationConfig())))
def test_known_fields_are_found(path):
    check_field_name(ClassificationConfig(), path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "optimizer.learningrate",
            r"config.optimizer has no field 'learningrate'; .* Did you mean 'learning_rate'\?",
        ),
        ("learning_rate", r"config has no field 'learning_rate'; .* There is --config.optimizer.learning_rate"),
        ("optimizer", r"config.optimizer is a group of fields; set one of --config.optimizer.name"),
        ("seed.value", r"config.seed is a value and has no field 'value'"),
    ],
)
def test_misspelt_fields_are_named(path, message):
    with pytest.raises(ConfigError, match=message):
        check_field_name(ClassificationConfig(), path)


def test_options_that_the_norm_lacks_are_left_out():
    options = NormConfig(num_groups=8, momentum=0.5)
    assert chosen_norm_options(ModelConfig(norm="gw", norm_options=options)) == {"num_groups": 8}
    assert chosen_norm_options(ModelConfig(norm="bn", norm_options=options)) == {"momentum": 0.5}
    assert chosen_norm_options(ModelConfig(norm="none", norm_options=options)) == {}


def test_a_batch_smaller_than_a_group_has_one_set_of_statistics():
    """An imported model is evaluated with any training batch; training itself refuses such a batch."""
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": None}
    arguments = model_arguments(ModelConfig(batch_norm_group_size=128), batch_size=64, **sizes)
    assert arguments["batch_norm_options"] == {"group_size": 128, "statistics_sets": 1}
