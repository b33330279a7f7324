"""Exported networks compute the same in another process without this package, and on other platforms."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax import serving
from gw_jax.errors import ConfigError, DataError
from gw_jax.ops import group_whitening
from gw_jax.ops.choice import choose_implementation

IMAGES = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)


class Small(nnx.Module):
    """A convolution with each kind of layer that a network may have."""

    def __init__(self, rngs, **options):
        self.conv = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = gw_jax.GroupWhitening(32, num_groups=16, rngs=rngs, **options)
        self.batch_norm = gw_jax.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(self.batch_norm(self.norm(self.conv(x), relu=True)))
        return self.head(x.mean((1, 2)))


@pytest.fixture(scope="module")
def model():
    model = Small(nnx.Rngs(0))
    model(jnp.asarray(IMAGES))  # Running statistics that are not the initial ones.
    model.eval()
    return model


def compiled(model, images):
    graphdef, state = nnx.split(model)
    # Parameters are constants, as in a program: XLA computes with them while it compiles.
    return np.asarray(jax.jit(lambda images: nnx.merge(graphdef, state)(images))(images))


@pytest.mark.parametrize("batch", ["symbolic", 3])
def test_a_program_is_the_network(model, batch):
    exported = serving.export(model, (8, 8, 3), batch=batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_array_equal(exported.call(IMAGES), compiled(model, IMAGES))
    if batch == "symbolic":
        np.testing.assert_allclose(exported.call(IMAGES[:1])[0], exported.call(IMAGES)[0], atol=1e-5)


@pytest.mark.slow
def test_another_process_computes_the_same_without_this_package(model, tmp_path):
    pytest.importorskip("flatbuffers", reason="the extra 'serving' is not installed")
    path = tmp_path / "small.jax"
    serving.save(serving.export(model, (8, 8, 3)), path)
    np.save(tmp_path / "images.npy", IMAGES)
    script = (
        "import sys, pathlib, numpy, jax, jax.export\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "program = jax.export.deserialize(bytearray((folder / 'small.jax').read_bytes()))\n"
        "numpy.save(folder / 'out.npy', program.call(numpy.load(folder / 'images.npy')))\n"
        "assert 'gw_jax' not in sys.modules and 'flax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), compiled(model, IMAGES))
    np.testing.assert_array_equal(serving.load(path).call(IMAGES), compiled(model, IMAGES))


def test_no_kernel_is_in_a_program_whatever_machine_exports_it(model, monkeypatch):
    devices = []

    def observe(x, *args, **options):
        choice = choose_implementation(x, *args, **options)
        devices.append(choice.implementation)
        return choice

    monkeypatch.setattr(group_whitening, "choose_implementation", observe)
    big = Small(nnx.Rngs(0), implementation="prefer_kernel")
    big.eval()
    monkeypatch.setattr(jax, "devices", lambda *args: [_H100()])
    exported = serving.export(big, (8, 8, 3), batch=64)
    assert devices == ["matmul"]
    assert "triton" not in exported.mlir_module()


class _H100:
    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"


def test_files_that_hold_no_program(tmp_path):
    pytest.importorskip("flatbuffers", reason="the extra 'serving' is not installed")
    path = tmp_path / "bad.jax"
    path.write_bytes(b"not a program")
    with pytest.raises(DataError, match=r"bad\.jax.*holds no program"):
        serving.load(path)
    with pytest.raises(DataError, match=r"missing\.jax.*cannot be read"):
        serving.load(tmp_path / "missing.jax")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"image_shape": (8, 8)}, ValueError, r"\(h, w, c\)"),
        ({"image_shape": (8, 8, 0)}, ValueError, "image_shape=0"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"batch": "any"}, ValueError, "batch='any'"),
        ({"platforms": "cpu"}, ValueError, "sequence of cpu, cuda"),
        ({"platforms": ["gpu"]}, ValueError, "sequence of cpu, cuda"),
        ({"model": object()}, TypeError, "nnx.Module"),
    ],
)
def test_bad_arguments_are_named(model, change, error, text):
    with pytest.raises(error, match=text):
        serving.export(**({"model": model, "image_shape": (8, 8, 3)} | change))


def test_training_mode_is_refused(tmp_path):
    model = Small(nnx.Rngs(0))
    for run in (lambda: serving.export(model, (8, 8, 3)), lambda: serving.save_tensorflow(model, (8, 8, 3), tmp_path)):
        with pytest.raises(ValueError, match=r"batch_norm \(BatchNorm\).*model\.eval\(\)"):
            run()
    model.eval()
    model.dropout.deterministic = False
    with pytest.raises(ValueError, match=r"dropout \(Dropout\)"):
        serving.export(model, (8, 8, 3))


@pytest.mark.parametrize(
    ("missing", "run", "text"),
    [
        ("flatbuffers", lambda model, path: serving.load(path), r"gw_jax\[serving\]"),
        (
            "tensorflow",
            lambda model, path: serving.save_tensorflow(model, (8, 8, 3), path / "new"),
            "pip install tensorflow",
        ),
    ],
)
def test_missing_packages_are_named(model, monkeypatch, tmp_path, missing, run, text):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=text):
        run(model, tmp_path)


def test_a_jax_without_jax2tf_is_named(model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", type(sys)("tensorflow"))
    sys.modules["tensorflow"].__version__ = "2.0"
    monkeypatch.setitem(sys.modules, "jax.experimental.jax2tf", None)
    with pytest.raises(ConfigError, match=r"no jax\.experimental\.jax2tf"):
        serving.save_tensorflow(model, (8, 8, 3), tmp_path / "new")


@pytest.mark.slow  # Importing TensorFlow takes longer than the test.
def test_a_saved_model_is_the_network(model, tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (the extra 'prepare')")
    pytest.importorskip("jax.experimental.jax2tf", reason="this JAX has no jax2tf")
    serving.save_tensorflow(model, (8, 8, 3), tmp_path / "small")
    signature = tf.saved_model.load(str(tmp_path / "small")).signatures["serving_default"]
    for images in (IMAGES, IMAGES[:1]):
        found, truth = signature(images=tf.constant(images))["outputs"].numpy(), compiled(model, images)
        assert np.abs(found - truth).max() <= 1e-6 * np.abs(truth).max()
    with pytest.raises(ConfigError, match="not an empty directory"):
        serving.save_tensorflow(model, (8, 8, 3), tmp_path / "small")
