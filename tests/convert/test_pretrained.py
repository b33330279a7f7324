"""Models in directories: whole or absent, and consistent."""

import json
import random

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import gw_jax
from gw_jax import files
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models import pretrained, save_pretrained
from gw_jax.models.resnet import Architecture
from gw_jax.tree import variables

CONFIG = {
    "name": "mlp",
    "num_classes": 4,
    "depth": 2,
    "width": 12,
    "norm": "dbn",
    "norm_options": {"channels_per_group": 5},
}


@pytest.fixture(scope="module")
def model():
    return gw_jax.create_model(**CONFIG, rngs=nnx.Rngs(3))


def zeros(name, *, param_dtype=jnp.float32, **arguments):
    """A network whose arrays are zero: no time goes into random values."""
    abstract = pretrained.abstract_model({"name": name, **arguments}, None, param_dtype)
    return pretrained.fill_model(
        abstract, {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in variables(abstract).items()}
    )


def test_round_trip(model, tmp_path):
    x = jnp.asarray(np.random.default_rng(0).random((6, 28, 28, 1)), jnp.float32)
    model(x)
    save_pretrained(tmp_path / "deep" / "model", model, CONFIG, source={"run": "a test"})
    loaded = gw_jax.load_pretrained(tmp_path / "deep" / "model")
    for path, value in variables(model).items():
        np.testing.assert_array_equal(variables(loaded)[path], value, strict=True)
    model.eval()
    np.testing.assert_array_equal(loaded(x), model(x))
    assert json.loads((tmp_path / "deep" / "model" / "config.json").read_text())["source"] == {"run": "a test"}
    assert gw_jax.load_pretrained(tmp_path / "deep" / "model", dtype=jnp.bfloat16).linears[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_types_of_parameters(tmp_path, param_dtype):
    model = zeros(**CONFIG, param_dtype=param_dtype)
    save_pretrained(tmp_path / "model", model)
    loaded = gw_jax.load_pretrained(tmp_path / "model", param_dtype=param_dtype)
    chex.assert_trees_all_equal_dtypes(variables(loaded), variables(model))
    chex.assert_trees_all_equal(variables(loaded), variables(model))


@pytest.mark.parametrize("name", ["resnet18", "resnet_whiten_001n18", "mlp", "lenet"])
def test_a_model_remembers_how_it_was_made(tmp_path, name):
    options = {"norm": "gw", "norm_options": {"num_groups": 4, "implementation": "plain"}} if name != "lenet" else {}
    width = {"width": 8} if name != "lenet" else {}
    model = zeros(name, num_classes=3, **width, **options)
    graphdef, state = nnx.split(model)
    gw_jax.save_pretrained(tmp_path / "model", nnx.merge(graphdef, state))
    written = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    expected = {"norm": "gw", "norm_options": {"num_groups": 4}} if options else {}
    assert written == {"name": name, "num_classes": 3, **width, **expected}
    loaded = gw_jax.load_pretrained(tmp_path / "model")
    chex.assert_trees_all_equal(variables(loaded), variables(model))
    gw_jax.save_pretrained(tmp_path / "again", loaded)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model"] == written


def test_a_model_that_was_changed_is_refused(tmp_path):
    """Another norm with the same parameters would load without an error, and compute something else."""
    model = zeros("resnet18", width=8, norm_options={"num_groups": 4})
    model.stem_norm = gw_jax.GroupNorm(8, num_groups=4, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="was changed after create_model"):
        gw_jax.save_pretrained(tmp_path / "model", model)
    with pytest.raises(ConfigError, match=r"This Linear does not remember .* Pass the arguments of create_model"):
        gw_jax.save_pretrained(tmp_path / "model", nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_name_is_refused(tmp_path):
    model = zeros(Architecture(False, (1, 1, 1, 1)), width=8, norm_options={"num_groups": 4})
    with pytest.raises(ConfigError, match="was made from an Architecture and not by name"):
        gw_jax.save_pretrained(tmp_path / "model", model)


def test_the_record_changes_no_comparison_and_no_cache():
    first, second = (zeros("mlp", norm="bn", **given) for given in ({}, {"depth": 4}))
    assert nnx.split(first)[0] == nnx.split(second)[0]
    assert hash(nnx.split(first)[0]) == hash(nnx.split(second)[0])


def test_values_that_json_does_not_have(model, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written to config\.json: .*not JSON serializable"):
        save_pretrained(
            tmp_path / "model", model, {**CONFIG, "norm_options": {**CONFIG["norm_options"], "dtype": jnp.float32}}
        )
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_not_touched(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already; it was not changed"):
        save_pretrained(tmp_path / "model", model, CONFIG)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


def test_a_failed_write_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_pretrained(tmp_path / "model", model, CONFIG)
    assert not list(tmp_path.iterdir())


def remove_config(directory):
    (directory / "config.json").unlink()


def cut_config(directory):
    (directory / "config.json").write_text("{")


def work_directory(directory):
    (directory / "config.json").write_text('{"config": {}, "versions": {}}')


def later_format(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "format": 99}))


def other_network(directory):
    config = json.loads((directory / "config.json").read_text())
    config["model"]["depth"] = 3
    (directory / "config.json").write_text(json.dumps(config))


def unknown_network(directory):
    config = json.loads((directory / "config.json").read_text())
    config["model"]["name"] = "resnet5"
    (directory / "config.json").write_text(json.dumps(config))


def no_model(directory):
    (directory / "config.json").write_text("null")


def too_deep(directory):
    """A network whose construction would take hours."""
    config = json.loads((directory / "config.json").read_text())
    config["model"]["depth"] = 10**6
    (directory / "config.json").write_text(json.dumps(config))


def nested(directory):
    (directory / "config.json").write_text("[" * 10**6)


def wrong_types(directory):
    config = json.loads((directory / "config.json").read_text())
    config["model"]["norm_options"] = [1]
    (directory / "config.json").write_text(json.dumps(config))


def wrong_value(directory):
    config = json.loads((directory / "config.json").read_text())
    config["model"]["width"] = "wide"
    (directory / "config.json").write_text(json.dumps(config))


def negative_epochs(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "training": {"epochs": -3}}))


def binary_config(directory):
    (directory / "config.json").write_bytes(b"\xff\xfe\x1b[2J")


def integer_array(directory):
    arrays = load_file(directory / "model.safetensors")
    save_file({**arrays, "head.bias": np.zeros(4, np.int8)}, directory / "model.safetensors")


def escapes_in_names(directory):
    arrays = {f"\x1b[2J\n{number}": np.zeros(4, np.float32) for number in range(9)}
    save_file(arrays, directory / "model.safetensors")


def cut_arrays(directory):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[: len(data) // 2])


def remove_arrays(directory):
    (directory / "model.safetensors").unlink()


def misshapen_array(directory):
    arrays = load_file(directory / "model.safetensors")
    save_file({**arrays, "head.bias": np.zeros(3, np.float32)}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_config, "holds no model: there is no config.json"),
        (cut_config, "config.json is damaged"),
        (work_directory, "work directory of a run; export it with --config.mode=export"),
        (later_format, r"not the description of a model in format 1 \(found 99\)"),
        (other_network, r"not those of the network in config.json: linears.2.bias, linears.2.kernel"),
        (unknown_network, "cannot be made: .*resnet5"),
        (cut_arrays, "model.safetensors cannot be read"),
        (remove_arrays, "model.safetensors cannot be read"),
        (no_model, r"not the description of a model in format 1 \(found None\)"),
        (too_deep, "a network of depth 1000000, but model.safetensors holds 14 arrays"),
        (nested, "config.json is damaged: "),
        (binary_config, "config.json is damaged: "),
        (wrong_types, "'norm_options' of 'model' must be an object"),
        (wrong_value, r"The network of .*config\.json cannot be made"),
        (negative_epochs, "'training' must have the number of completed 'epochs'"),
        (integer_array, "The array head.bias of .* is of type int8, which does not fit float32"),
        (escapes_in_names, r"\\x1b\[2J\\n"),
        (misshapen_array, r"head.bias are missing, left over or of another shape \(1 in all\)"),
    ],
)
def test_damaged_directories(model, tmp_path, damage, message):
    save_pretrained(tmp_path / "model", model, CONFIG)
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message) as raised:
        gw_jax.load_pretrained(tmp_path / "model")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


VALUES = (None, True, -1, 0, 10**30, 1e99, "", "x" * 10**4, "\x1b[2J", [], {}, [1], {"a": 1})


def changed(config, rng):
    """``config`` with one value replaced, removed or added."""
    config = json.loads(json.dumps(config))
    node = rng.choice([config, config["model"], config["model"], config["model"]["norm_options"]])
    key = rng.choice([*node, "whiten", "stem", "dtype", "rngs", "implementation", "training", "\x1b[2J"])
    if rng.random() < 0.2:
        node.pop(key, None)
    else:
        node[key] = rng.choice(VALUES)
    return config


def test_directories_damaged_at_random(model, tmp_path):
    """Whatever is in the files, an error is the project's: one short printable line."""
    save_pretrained(tmp_path / "model", model, CONFIG)
    paths = [tmp_path / "model" / name for name in ("config.json", "model.safetensors")]
    contents = [path.read_bytes() for path in paths]
    rng, messages = random.Random(0), []
    for _ in range(300):
        config, arrays = map(bytearray, contents)
        kind = rng.choice(["config", "config", "config bytes", "header", "cut"])
        if kind == "config":
            config = json.dumps(changed(json.loads(contents[0]), rng)).encode()
        elif kind == "config bytes":
            config[rng.randrange(len(config))] = rng.randrange(256)
        elif kind == "header":
            arrays[rng.randrange(1500)] = rng.randrange(256)
        else:
            del arrays[rng.randrange(len(arrays)) :]
        paths[0].write_bytes(config)
        paths[1].write_bytes(arrays)
        try:
            gw_jax.load_pretrained(tmp_path / "model")
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all(message.isprintable() and len(message) < 3000 for message in messages)


def test_batch_statistics_are_part_of_it(model):
    assert {"norms.0.matrix", "norms.1.mean"} <= set(variables(model))
    assert pretrained.abstract_model(CONFIG, None, jnp.float32).norms[0].matrix.shape == (3, 5, 5)
