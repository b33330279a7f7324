"""Sets made from folders of images: what is in them, and folders that are refused."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gw_jax.data.datasets import open_dataset
from gw_jax.data.prepare.__main__ import main
from gw_jax.data.prepare.folder import list_images
from tests.helpers.prepare import refused


def write_image(path, shape=(8, 6, 3), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two classes; of the training images one is a level deeper and one is a GIF."""
    for number, name in enumerate(["a cat/1.png", "a cat/more/2.jpg", "hunde ä/1.PNG", "hunde ä/2.gif"]):
        write_image(tmp_path / "train" / name, seed=number)
    write_image(tmp_path / "eval/hunde ä/3.jpeg", seed=9)
    (tmp_path / "train/.DS_Store").write_bytes(b"")
    (tmp_path / "train/a cat/Thumbs.db").write_bytes(b"")
    return tmp_path


def command(folders, name="pets"):
    return [
        "folder",
        name,
        f"--train={folders / 'train'}",
        f"--eval={folders / 'eval'}",
        f"--data_dir={folders / 'data'}",
    ]


def examples(source):
    return {example["file_name"].decode(): (int(example["label"]), example["image"]) for example in source}


def test_a_set_holds_the_files_as_they_are(folders, capsys):
    main(command(folders))
    printed = capsys.readouterr().out
    assert "pets/1.1.0 is ready in" in printed
    assert "train 4, validation 1 examples.\nTrain with: python train.py --config.data.name=pets" in printed
    assert "image_size" not in printed
    data = open_dataset("pets", str(folders / "data"))
    assert (data.spec.num_classes, data.spec.image_shape) == (2, (8, 6, 3))
    assert (data.spec.num_train, data.spec.num_eval, data.spec.eval_split) == (4, 1, "validation")
    labels = {"a cat/1.png": 0, "a cat/more/2.jpg": 0, "hunde ä/1.PNG": 1, "hunde ä/2.gif": 1}
    expected = {name: (label, (folders / "train" / name).read_bytes()) for name, label in labels.items()}
    assert examples(data.train) == expected
    assert examples(data.evaluation) == {"hunde ä/3.jpeg": (1, (folders / "eval/hunde ä/3.jpeg").read_bytes())}
    assert "(a cat/1.png)" in data.train.where([e["file_name"] for e in data.train].index(b"a cat/1.png"))


def test_a_second_command_keeps_the_set_and_refuses_other_files(folders, capsys):
    main(command(folders))
    main(command(folders))
    assert "pets/1.1.0 is prepared already" in capsys.readouterr().err
    write_image(folders / "train/a cat/4.png")
    assert "holds a set that was prepared from other files. Give another NAME" in refused(*command(folders))
    main(command(folders, "more_pets"))
    assert len(open_dataset("more_pets", str(folders / "data")).train) == 5


def test_an_edit_that_keeps_the_size_of_a_file_is_noticed(folders):
    picture = folders / "train/a cat/5.bmp"
    write_image(picture, seed=1)
    size = picture.stat().st_size
    main(command(folders))
    write_image(picture, seed=2)
    assert picture.stat().st_size == size
    assert "holds a set that was prepared from other files. Give another NAME" in refused(*command(folders))


def test_shapes_that_differ_and_grey_images(folders, capsys):
    write_image(folders / "eval/a cat/wide.png", (4, 9, 3))
    main(command(folders))
    assert "--config.data.image_size=224" in capsys.readouterr().out
    assert open_dataset("pets", str(folders / "data")).spec.image_shape == (None, None, 3)
    for split in ("train", "eval"):
        for number in range(2):
            write_image(folders / "grey" / split / "digit" / f"{number}.png", (5, 5), seed=number)
    main(command(folders / "grey", "digits"))
    assert open_dataset("digits", str(folders / "grey/data")).spec.image_shape == (5, 5, 1)


def test_links_are_followed_and_loops_are_refused(folders):
    write_image(folders / "elsewhere/1.png", seed=5)
    (folders / "train/linked").symlink_to(folders / "elsewhere")
    (folders / "train/linked-file").mkdir()
    (folders / "train/linked-file/x.png").symlink_to(folders / "elsewhere/1.png")
    files = list_images(folders / "train", "--train").files
    assert (files["linked"], files["linked-file"]) == (("linked/1.png",), ("linked-file/x.png",))
    (folders / "elsewhere/loop").symlink_to(folders / "train")
    assert f"linked/loop is a link to {folders / 'train'}, a folder that holds it" in refused(*command(folders))
    (folders / "elsewhere/loop").unlink()
    (folders / "train/linked-file/y.png").symlink_to(folders / "nowhere.png")
    message = refused(*command(folders))
    assert f"y.png, a link to {folders / 'nowhere.png'}, cannot be read: No such file" in message


@pytest.mark.parametrize(
    ("split", "name", "content", "message"),
    [
        (
            "train",
            "a cat/page.png",
            b"<html>",
            "1 of 5 files in .*train cannot be read as images: .*page.png .Unidentified",
        ),
        ("eval", "a cat/cut.png", None, "1 of 2 files in .*eval cannot be read as images: .*cut.png .*trunc"),
        ("train", "a cat/notes.txt", b"x", r"notes.txt is no image: its name must end in \.jpg"),
        ("train", "1.png", b"x", "--train=.* holds '1.png' beside the sub-folders of its classes"),
        (
            "eval",
            "bird/1.png",
            b"x",
            "--eval=.* has 'bird', for which --train=.* has no sub-folder; it has 'a cat', 'hunde",
        ),
        ("train", " cat/1.png", b"x", "--train=.* has a sub-folder named ' cat'. The name of a class must be printable"),
        ("train", "c\nd/1.png", b"x", r"has a sub-folder named 'c\\nd'"),
        ("train", "c\udcff/1.png", b"x", r"has a sub-folder named 'c\\udcff'"),
    ],
    ids=["no image", "truncated", "text", "no class", "class of eval only", "blank", "newline", "bytes"],
)
def test_files_that_cannot_be_used_are_named(folders, split, name, content, message):
    path = folders / split / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        whole = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(whole, "PNG")
        content = whole.getvalue()[:1000]
    path.write_bytes(content)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused(*command(folders)))
    assert not list((folders / "data").glob("pets/[!.]*"))


def test_folders_that_cannot_be_used_are_refused(folders):
    train, data_dir = folders / "train", f"--data_dir={folders / 'data'}"
    none = folders / "none"
    assert f"--train={none} does not exist" in refused("folder", "pets", f"--train={none}", f"--eval={train}", data_dir)
    none.mkdir()
    assert f"--train={none} holds nothing" in refused("folder", "pets", f"--train={none}", f"--eval={train}", data_dir)
    (none / "cat").mkdir()
    message = refused("folder", "pets", f"--train={none}", f"--eval={train}", data_dir)
    assert f"--train={none} holds the sub-folders 'cat', all without images" in message
    file = train / "a cat/1.png"
    assert f"--eval={file} is a file" in refused("folder", "pets", f"--train={train}", f"--eval={file}", data_dir)
    assert "are the same folder" in refused("folder", "pets", f"--train={train}", f"--eval={train}", data_dir)
    inside = train / "a cat"
    assert "one holds the other" in refused(
        "folder", "pets", f"--train={train}", f"--eval={inside.parent / '.'}/../train/.."
    )
    os.mkfifo(train / "a cat/pipe.jpg")
    assert "pipe.jpg is no image" in refused(*command(folders))
    (train / "a cat/pipe.jpg").unlink()
    (train / "bird").mkdir()
    assert "has no images of 'bird'" in refused(*command(folders))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "NAME='cifar10' is a known set, which would hide yours; give another name, such as my_cifar10"),
        ("mnist5k", "NAME='mnist5k' is a known set"),
        ("My-Pets", "NAME='My-Pets' must be of small letters"),
        ("../x", "NAME='../x' must be of small letters"),
        ("", "NAME='' must be of small letters"),
    ],
)
def test_names_that_cannot_be_used_are_refused(folders, name, message):
    assert message in refused(*command(folders, name))
    assert "data directory is an empty string" in refused(*command(folders)[:-1], "--data_dir=")


def test_preparing_needs_no_tensorflow(folders):
    script = "import sys; from gw_jax.data.prepare.__main__ import main; main(); print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script, *command(folders)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "train 4" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"
