"""The command for prediction: images of any kind, what it writes, and what it refuses."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import gw_jax
from gw_jax.detection import predict, save_detector
from gw_jax.detection.coco_categories import COCO_CATEGORIES
from gw_jax.detection.data.scenes import Category
from gw_jax.detection.description import default_categories, describe, entries
from gw_jax.detection.predictor import Predictor
from gw_jax.errors import CheckpointError, ConfigError, DataError, TrainingError
from tests.detection import small

CATEGORIES = (Category(4, "cat"), Category(9, "dog"))


def model(directory, **source):
    save_detector(directory, small.detector("frozen, 4conv1fc, mask"), source={**entries(CATEGORIES, 64, 96), **source})
    return str(directory)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, quick_compilation):
    """One for all tests: compilation takes most of their time."""
    with quick_compilation():
        made = predict.load_model(model(tmp_path_factory.mktemp("model") / "small"))
        picture = Image.fromarray(noise(48, 60))
        made(picture)
        made(picture.rotate(90, expand=True))
    return made


@pytest.fixture
def command(predictor, monkeypatch, tmp_path):
    """Runs the command with that predictor in a directory of its own."""
    monkeypatch.setattr(predict, "load_model", lambda *_: predictor)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: predict.main(["model", *map(str, arguments)])


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] += 120
    return picture


@pytest.mark.slow
def test_the_command_writes_pictures_and_results(command, tmp_path, capsys):
    Image.fromarray(noise(48, 60)).save(tmp_path / "000000000139.jpg")
    Image.fromarray(noise(90, 50)).save(tmp_path / "7.png")
    arguments = ["000000000139.jpg", "7.png", "--json=results.json", "--out=pictures", "--threshold=0.3"]
    assert command(*arguments) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["000000000139.jpg", "7.png"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {result["image_id"] for result in results} == {139, 7}
    assert {result["file_name"] for result in results} == {"000000000139.jpg", "7.png"}
    assert {result["category_id"] for result in results} <= {4, 9}
    assert min(result["score"] for result in results) >= 0.3
    assert {tuple(result["segmentation"]["size"]) for result in results} == {(48, 60), (90, 50)}
    for result in results:
        x, y, w, h = result["bbox"]
        assert x >= 0
        assert y >= 0
        width, height = (60, 48) if result["image_id"] == 139 else (50, 90)
        assert x + w <= width + 1
        assert y + h <= height + 1
    count = sum(result["image_id"] == 7 for result in results)
    out = capsys.readouterr().out.splitlines()
    assert re.match(rf"7.png: {count} objects?: (cat|dog) \d\.\d\d", out[1])
    # A picture of 50 x 90 pixels is enlarged.
    picture = np.asarray(Image.open(tmp_path / "pictures" / "7.png"))
    assert picture.shape[0] == 90 * 7


def turned(path, orientation):
    """The same picture, stored turned with the EXIF entry that undoes it."""
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(48, 60)).transpose(inverse[orientation]).save(path, exif=exif)


@pytest.mark.slow
def test_images_of_every_kind_are_read(command, tmp_path):
    """Grey, with opacity, for print, of 16 bits, with a palette, turned: the objects are where they are in the picture."""
    picture = Image.fromarray(noise(48, 60))
    picture.save("rgb.png")
    picture.convert("RGBA").save("alpha.png")
    picture.convert("L").save("grey.png")
    picture.convert("L").convert("RGB").save("grey_rgb.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save("sixteen.png")
    picture.convert("CMYK").save("cmyk.tif")
    picture.quantize(256).save("palette.png")
    picture.convert("1").save("bits.png")
    for orientation in (3, 6, 8):
        turned(f"turned{orientation}.png", orientation)
    assert command(".", "--json=results.json", "--threshold=0.2") == 0
    found = {}
    for result in json.loads(pathlib.Path("results.json").read_text()):
        found.setdefault(result.pop("file_name"), []).append({**result, "image_id": 0})
    for name in ("alpha.png", "turned3.png", "turned6.png", "turned8.png", "cmyk.tif"):
        assert found[name] == found["rgb.png"], name
    assert found["sixteen.png"] == found["grey.png"] == found["grey_rgb.png"] != found["rgb.png"]
    assert all(result["segmentation"]["size"] == [48, 60] for result in found["rgb.png"])


@pytest.mark.slow
def test_images_of_extreme_sides_are_read(command):
    for name, (height, width) in {"a": (1, 300), "b": (300, 1), "c": (1, 1), "d": (33, 31)}.items():
        Image.fromarray(noise(height, width)).save(f"{name}.png")
    assert command("a.png", "b.png", "c.png", "d.png", "--threshold=0.05") == 0
    assert len(list(pathlib.Path("predictions").iterdir())) == 4


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_named_and_the_others_go_on(command, capsys):
    Image.fromarray(noise(48, 60)).save("good.png")
    content = pathlib.Path("good.png").read_bytes()
    pathlib.Path("cut.png").write_bytes(content[: len(content) // 2])
    pathlib.Path("text.jpg").write_text("no image")
    assert command("cut.png", "missing*.png", "good.png") == 1
    assert "There is no file 'missing*.png'" in capsys.readouterr().err
    assert command("cut.png", "good.png", "text.jpg", "--out=pictures") == 1
    err = capsys.readouterr().err
    assert "error: 'cut.png' cannot be read: " in err
    assert "error: 'text.jpg' cannot be read: no image in one of the formats" in err
    assert [path.name for path in pathlib.Path("pictures").iterdir()] == ["good.png"]


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_before_anything_is_computed(command, tmp_path, capsys):
    Image.fromarray(noise(48, 60)).save("good.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["empty"], "The folder 'empty' has no images"),
        (["nothing.png"], "There is no file 'nothing.png'"),
        (["good.png", "--out=file"], "--out='file' cannot be written"),
        (["good.png", "--json=empty"], "--json='empty' cannot be written: it is a directory"),
        (["good.png", "--json=nowhere/a.json"], "--json='nowhere/a.json' cannot be written: No such file"),
    ):
        assert command(*arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {message}"), err
        assert len(err.splitlines()) == 1
    for flag, message in (
        ("--threshold=2", "2 is no score between 0.05, below which a detector drops objects, and 1"),
        ("--threshold=0.01", "0.01 is no score between 0.05"),
        ("--threshold=half", "half is no score between 0.05"),
        ("--min_side=0", "0 is no number of pixels from 1 to 8192"),
        ("--max_side=1e3", "1e3 is no number of pixels from 1 to 8192"),
    ):
        with pytest.raises(SystemExit):
            command("good.png", flag)
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "good.png"]


def test_files_are_found_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", "photo[1].png"):
        (tmp_path / name).write_text("")
    found = predict.find_images(["photo[1].png", ".", "*.png"])
    assert [path.name for path in found] == ["photo[1].png", "a.png", "b.JPG"]
    with pytest.raises(DataError, match="no file 'c"):
        predict.find_images(["c*"])


def test_pictures_of_the_same_name_do_not_replace_each_other():
    paths = [pathlib.Path(name) for name in ("a/1.jpg", "b/1.jpg", "1.jpeg", "1.png", "2.tif")]
    assert list(predict._names(paths).values()) == ["1.jpg", "1-2.jpg", "1-3.jpg", "1.png", "2.png"]
    assert [number for number, _ in predict._image_ids(paths)] == [1, 2, 3, 4, 5]


def test_a_model_is_described_by_its_directory(tmp_path):
    found = predict.load_model(model(tmp_path / "own", pixels={"channels": "BGR", **PIXELS_BGR})).description
    assert (found.pixels, found.min_side, found.max_side, found.categories) == ("bgr", 64, 96, CATEGORIES)
    changed = predict.load_model(str(tmp_path / "own"), 128, None).description
    assert (changed.min_side, changed.max_side) == (128, 128)
    save_detector(tmp_path / "bare", small.detector("frozen, 2fc"))
    found = predict.load_model(str(tmp_path / "bare"))
    assert [category.name for category in found.description.categories] == ["class 1", "class 2"]
    assert (found.canvas((800, 1333)), found.canvas((1333, 800))) == ((800, 1344), (1344, 800))
    with pytest.raises(ConfigError, match="--min_side=900 is larger than --max_side=100"):
        predict.load_model(str(tmp_path / "own"), 900, 100)


PIXELS_BGR = {"mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0]}


def test_names_of_a_detector_that_has_none():
    assert default_categories(81) == COCO_CATEGORIES
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORIES[0] == (1, "person")
    assert COCO_CATEGORIES[79] == (90, "toothbrush")
    assert (13, "stop sign") in COCO_CATEGORIES


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"categories": [{"id": 1, "name": "cat"}]}, "2 objects with id and name are needed"),
        ({"categories": [{"id": 1}, {"id": 2}]}, "2 objects with id and name are needed"),
        ({"categories": 5}, "2 objects with id and name are needed"),
        ({"resize": {"min_side": 5}}, "The resize rule in the config.json of somewhere"),
        ({"resize": {"min_side": 50, "max_side": 40}}, "The resize rule"),
        ({"resize": [1, 2]}, "The resize rule"),
        ({"pixels": "red"}, "The pixels in the config.json of somewhere"),
    ],
)
def test_a_damaged_description_is_refused(entry, message):
    with pytest.raises(CheckpointError, match=message):
        describe({"source": entry}, 3, "somewhere")


def test_a_directory_without_a_detector_is_refused(tmp_path, capsys):
    Image.fromarray(noise(48, 60)).save(tmp_path / "good.png")
    classifier = gw_jax.create_model("mlp", num_classes=3, width=8, norm="bn", rngs=nnx.Rngs(0))
    gw_jax.save_pretrained(tmp_path / "classifier", classifier)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": {"model.name": "mlp"}}))
    for name, message in (
        ("nothing", "holds no detector: there is no config.json"),
        ("classifier", "holds a network of gw_jax.create_model and no detector"),
        ("run", "holds no run of a detector"),
    ):
        assert predict.main([str(tmp_path / name), str(tmp_path / "good.png"), f"--out={tmp_path / 'out'}"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: "), err
        assert message in err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_network_that_has_diverged_finds_nothing_and_says_so(predictor):
    broken = Predictor.__new__(Predictor)
    broken.__dict__.update(vars(predictor))
    broken._state = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), predictor._state)
    with pytest.raises(TrainingError, match="features are not finite"):
        broken(Image.fromarray(noise(48, 60)))
