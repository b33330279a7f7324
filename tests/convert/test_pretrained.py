"""Models in directories: whole or absent, and consistent."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import gw_jax
from gw_jax import files
from gw_jax.convert import pretrained, save_pretrained
from gw_jax.errors import CheckpointError
from gw_jax.tree import variables

CONFIG = {
    "name": "mlp",
    "num_classes": 4,
    "depth": 2,
    "width": 12,
    "norm": "dbn",
    "norm_options": {"channels_per_group": 5},
}


@pytest.fixture
def model():
    return gw_jax.create_model(**CONFIG, rngs=nnx.Rngs(3))


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_library_reads_what_is_written(tmp_path, dtype):
    arrays = {"a": jnp.arange(6, dtype=dtype).reshape(2, 3), "b.c": jnp.int32(7), "d": jnp.zeros((0, 4), dtype)}
    pretrained.write_safetensors(tmp_path / "file", arrays, iter(arrays.items()))
    read = load_file(tmp_path / "file")
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(read[name], np.float64), np.asarray(array, np.float64), strict=True)
        assert read[name].dtype == array.dtype
    with pytest.raises(ValueError, match="The array 'd' came where 'a' was due"):
        pretrained.write_safetensors(tmp_path / "other", arrays, iter(reversed(arrays.items())))


def test_an_existing_directory_is_not_touched(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already; it was not touched"):
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


def cut_arrays(directory):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[: len(data) // 2])


def remove_arrays(directory):
    (directory / "model.safetensors").unlink()


def misshapen_array(directory):
    arrays = {path: np.asarray(value) for path, value in variables(gw_jax.create_model(**CONFIG, rngs=nnx.Rngs(0))).items()}
    save_file({**arrays, "head.bias": np.zeros(3, np.float32)}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_config, "holds no model: there is no config.json"),
        (cut_config, "config.json is damaged"),
        (work_directory, "work directory of a run; export it with --config.mode=export"),
        (later_format, r"not the description of a model in format 1 \(found 99\)"),
        (other_network, r"not those of the network in config.json: linears.2.bias, linears.2.kernel"),
        (unknown_network, "cannot be made: No network is called 'resnet5'"),
        (cut_arrays, "model.safetensors cannot be read"),
        (remove_arrays, "model.safetensors cannot be read"),
        (misshapen_array, r"head.bias are missing, left over or of another shape \(1 in all\)"),
    ],
)
def test_damaged_directories(model, tmp_path, damage, message):
    save_pretrained(tmp_path / "model", model, CONFIG)
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        gw_jax.load_pretrained(tmp_path / "model")


def test_batch_statistics_are_part_of_it(model):
    assert {"norms.0.matrix", "norms.1.mean"} <= set(variables(model))
    assert pretrained.abstract_model(CONFIG, None, jnp.float32).norms[0].matrix.shape == (3, 5, 5)
