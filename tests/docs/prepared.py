"""What a page takes for granted, by its name: files that the reader has."""

import pathlib

import numpy as np


def published_checkpoint(directory: pathlib.Path) -> None:
    """Files with the names, shapes and container of the published ones, with values of our own; a few images as ImageNet.

    ``resnet50_gw.pth`` is a state dict, ``checkpoint.pth`` a training dict.
    """
    import pytest
    from flax import nnx

    import gw_jax

    torch = pytest.importorskip("torch", reason="reading and writing .pth files needs PyTorch, an optional extra")
    model = gw_jax.create_model("resnet50", norm="gw", norm_options={"num_groups": 64}, rngs=nnx.Rngs(0))
    state = gw_jax.convert.to_torch_state(model)
    gw_jax.convert.write_torch_file(directory / "resnet50_gw.pth", state)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    trained = [name for name in tensors if "running" not in name and "num_batches" not in name]
    momentum = {number: {"momentum_buffer": torch.zeros_like(tensors[name])} for number, name in enumerate(trained)}
    groups = [{"params": list(momentum), "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}]
    optimizer = {"state": momentum, "param_groups": groups}
    torch.save({"model": tensors, "optimizer": optimizer, "epoch": 0}, directory / "checkpoint.pth")

    import tensorflow_datasets as tfds

    from tests.helpers.tfds_sets import labelled, png, write_set

    examples = [{"image": png((40, 40, 3), n), "label": 100 * n, "file_name": f"{n}.JPEG"} for n in range(8)]
    features = {**labelled((None, None, 3), 1000), "file_name": tfds.features.Text()}
    write_set("Imagenet2012", directory / "tfds", features, examples, ("train", "validation"), version="5.1.0")


def flowers(directory: pathlib.Path) -> None:
    """Folders ``flowers/train`` and ``flowers/test`` with 3 classes of small pictures."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for colour, name in enumerate(("daisy", "rose", "tulip")):
            folder = directory / "flowers" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (40, 32, 3), dtype=np.uint8)
                pixels[..., colour] += 100
                Image.fromarray(pixels).save(folder / f"{number}.jpg")


PREPARE = {"import_pytorch.md": published_checkpoint, "data.md": flowers}
