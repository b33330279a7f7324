"""From the official archives, in small, to a top-1: the real command lines, and an imported model evaluated by them."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import gw_jax
from gw_jax.data.images import centre_crop, resize_shorter_edge
from tests.helpers import imagenet, reference

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments, **extra):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, env={**environment, **extra}
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Holds the archives in ``manual`` and the prepared set in ``data``."""
    pytest.importorskip(
        "tensorflow", reason="TFDS prepares ImageNet with TensorFlow, which is not installed (extra: prepare)"
    )
    directory = tmp_path_factory.mktemp("imagenet")
    imagenet.write_archives(directory / "manual")
    result = command(
        *("-m", "gw_jax.data.prepare", "imagenet2012", f"--manual_dir={directory / 'manual'}"),
        *(f"--data_dir={directory / 'data'}", "--allow_partial"),
    )
    assert "Train with: python train.py --config=configs/imagenet_resnet50_gw.py" in result.stdout
    return directory


def on_tiny_set(directory):
    return [
        f"--config={ROOT / 'configs' / 'imagenet_resnet50_gw.py'}",
        f"--config.data.data_dir={directory / 'data'}",
        "--config.data.allow_partial=True",
    ]


@pytest.mark.slow
def test_the_recipe_trains_on_what_was_prepared(directory, tmp_path):
    flags = [
        *on_tiny_set(directory),
        f"--workdir={tmp_path / 'run'}",
        "--config.num_epochs=2",
        "--config.data.batch_size=4",
        "--config.data.eval_batch_size=4",
        "--config.data.image_size=32",
        "--config.data.eval_resize=36",
        "--config.data.num_workers=1",
        "--config.model.width=4",
        "--config.model.norm_options.num_groups=4",
        "--config.model.batch_norm_group_size=2",
        "--config.optimizer.learning_rate=0.01",
        "--config.log.every_steps=1",
    ]
    command(ROOT / "train.py", *flags)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    evaluations = [line for line in lines if "eval/count" in line]
    assert [line["eval/count"] for line in evaluations] == [5, 5]
    result = command(ROOT / "train.py", *flags, "--config.mode=evaluate", "--config.checkpoint.evaluate=last")
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    assert {name: printed[name] for name in ("eval/loss", "eval/top1", "eval/top5", "eval/count")} == {
        name: value for name, value in evaluations[-1].items() if name.startswith("eval/")
    }


@pytest.mark.slow
@pytest.mark.long  # Of a page, too: docs/import_pytorch.md, and of its notebook.
def test_an_imported_model_gets_the_numbers_of_load_torch(directory, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, an optional extra that brings gigabytes, is not installed")
    state = {key: torch.from_numpy(value) for key, value in reference.golden_state("r50_gw").items()}
    torch.save(state, tmp_path / "best.pth")
    command("-m", "gw_jax.convert", tmp_path / "best.pth", tmp_path / "model")
    result = command(
        *(ROOT / "train.py", *on_tiny_set(directory), "--config.mode=evaluate", "--config.data.num_workers=0"),
        *("--config.data.eval_batch_size=2", f"--config.init_from={tmp_path / 'model'}", "--config.dtype=float32"),
        f"--workdir={tmp_path / 'evaluation'}",
    )
    printed = json.loads(result.stdout.strip().splitlines()[-1])

    model, _ = gw_jax.convert.load_torch(tmp_path / "best.pth")
    files = imagenet.validation_files()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = []
    for _, _, content in files:
        (tmp_path / "image.JPEG").write_bytes(content)
        picture = centre_crop(resize_shorter_edge(Image.open(tmp_path / "image.JPEG").convert("RGB"), 256), 224)
        images.append((np.asarray(picture) / 255 - mean) / std)
    graphdef, arrays = nnx.split(model)
    logits = jax.jit(lambda arrays, x: nnx.merge(graphdef, arrays)(x))(arrays, jnp.asarray(np.stack(images), jnp.float32))
    labels = jnp.array([label for _, label, _ in files])
    losses = jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(files)), labels]
    assert printed["eval/count"] == len(files)
    assert printed["eval/top1"] == float((logits.argmax(-1) == labels).mean())
    np.testing.assert_allclose(printed["eval/loss"], losses.mean(), rtol=1e-5)
