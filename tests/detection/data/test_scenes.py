"""Prepared sets: layout of the records, and sets that cannot be opened."""

import itertools
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gw_jax.detection.data.packed import Objects, pack, unpack
from gw_jax.detection.data.prepare_coco import prepare_coco
from gw_jax.detection.data.scenes import open_scenes
from gw_jax.errors import DataError
from tests.helpers.coco import write_own


@pytest.fixture
def own(tmp_path):
    prepare_coco("own", str(tmp_path), [write_own(tmp_path)], write_own(tmp_path, split="eval"))
    return tmp_path


def test_objects_survive_packing():
    rng = np.random.default_rng(0)
    polygons = [[rng.random(6), rng.random(10)], [], [rng.random(8)]]
    objects = Objects(1, 65_535, True, rng.random((3, 4)), np.array([1, 80, 3], np.int32), polygons)
    for given in (objects, Objects(9, 9, False, np.zeros((0, 4)), np.zeros(0, np.int32), [])):
        found = unpack(pack(given))
        assert found[:3] == given[:3]
        assert (found.boxes.dtype, found.labels.dtype) == (np.float64, np.int32)
        np.testing.assert_array_equal(found.boxes, given.boxes)
        np.testing.assert_array_equal(found.labels, given.labels)
        assert [len(parts) for parts in found.polygons] == [len(parts) for parts in given.polygons]
        for part, expected in zip(*(itertools.chain(*each.polygons) for each in (found, given)), strict=True):
            np.testing.assert_array_equal(part, expected)
    content = pack(objects)
    for damaged in (b"", content[:20], content[:-1], content + b"\0", b"\7" + content[1:], content[:10] + b"\xff" * 60):
        with pytest.raises(ValueError, match="the field 'objects' is damaged"):
            unpack(damaged)


def test_scenes_are_in_the_order_of_their_ids(own):
    scenes = open_scenes("own", str(own))
    assert scenes.categories == ((3, "dog"), (7, "cat"))
    for records in (scenes.train, scenes.evaluation):
        assert len(records) == 2
        assert records.image_ids.tolist() == [scene.image_id for scene in records] == [10, 20]
        assert records.sizes.tolist() == [[scene.height, scene.width] for scene in records] == [[36, 24], [30, 40]]
        assert (records.sizes.dtype, records.image_ids.dtype) == (np.int32, np.int64)
        assert (records.max_objects, records.max_edges, records.has_masks) == (1, 4, True)
    scene = scenes.train[-1]
    assert (scene.image, scene.file_name) == ((own / "train/a.png").read_bytes(), "a.png")
    assert scenes.train.where(1) == "image 20 of own/train (a.png)"
    with pytest.raises(IndexError):
        scenes.train[2]
    assert pickle.loads(pickle.dumps(scenes.train))[0].image_id == 10
    assert open_scenes("own", str(own), training=False).train == ()
    assert open_scenes("own", str(own)).train.digest == scenes.train.digest


def test_another_content_has_another_digest(own, tmp_path):
    def moved(content):
        content["annotations"][0]["bbox"][0] = 4

    files = write_own(tmp_path / "2", moved), write_own(tmp_path / "2", split="eval")
    prepare_coco("own", str(tmp_path / "2"), [files[0]], files[1])
    first, second = open_scenes("own", str(own)), open_scenes("own", str(tmp_path / "2"))
    assert first.train[1].image == second.train[1].image
    assert first.train.digest != second.train.digest


def test_objects_without_masks_are_known(tmp_path):
    def boxes_only(content):
        for annotation in content["annotations"]:
            annotation["segmentation"] = []

    prepare_coco("own", str(tmp_path), [write_own(tmp_path, boxes_only)], write_own(tmp_path, split="eval"))
    scenes = open_scenes("own", str(tmp_path))
    assert (scenes.train.has_masks, scenes.evaluation.has_masks) == (False, True)
    assert (scenes.train.max_edges, scenes.train[0].polygons) == (0, [[]])


def test_sets_that_cannot_be_opened(own):
    for name in ("", "../own", "Own", "own/1.0.0"):
        with pytest.raises(DataError, match="is no name of a prepared set"):
            open_scenes(name, str(own))
    with pytest.raises(
        DataError, match=r"'coco2017' is not prepared in .*Prepared there: own\. .*detection.prepare coco2017"
    ):
        open_scenes("coco2017", str(own))
    with pytest.raises(DataError, match="empty string"):
        open_scenes("own", " ")
    metadata = own / "own/1.0.0/scenes.json"
    content = metadata.read_text()
    metadata.write_text(content.replace('"format": 1', '"format": 0'))
    with pytest.raises(DataError, match=r"another version of gw_jax \(format 0; 1 is read\)"):
        open_scenes("own", str(own))
    metadata.write_text(content[:50])
    with pytest.raises(DataError, match=r"'own' cannot be used in .*JSONDecodeError"):
        open_scenes("own", str(own))
    metadata.write_text(content)
    index = own / "own/1.0.0/index_train.npz"
    found = dict(np.load(index))
    np.savez(index, **{name: value[:1] for name, value in found.items()})
    with pytest.raises(DataError, match="has 2 images; 1 belong there"):
        open_scenes("own", str(own))
    assert len(open_scenes("own", str(own), training=False).evaluation) == 2


def test_records_are_spread_over_shards_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("gw_jax.data.prepare.array_record.SHARD_BYTES", 2000)
    prepare_coco("own", str(tmp_path), [write_own(tmp_path)], write_own(tmp_path, split="eval"))
    assert len(list(tmp_path.glob("own/1.0.0/own-train.array_record-*-of-00002"))) == 2
    assert [scene.image_id for scene in open_scenes("own", str(tmp_path)).train] == [10, 20]
    # Also for TFDS itself.
    source = tfds.builder("own", data_dir=str(tmp_path)).as_data_source("train", decoders=tfds.decode.PartialDecoding({}))
    assert len(source) == 2
