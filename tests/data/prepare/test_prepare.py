import resource
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gw_jax.data import EvalBatches
from gw_jax.data.datasets import open_dataset
from gw_jax.data.images import Transform
from gw_jax.data.prepare.__main__ import main
from gw_jax.data.prepare.archives import check_archives
from gw_jax.errors import DataError
from tests.helpers.imagenet import TRAIN, VALIDATION, jpeg, train_files, validation_files
from tests.helpers.prepare import refused
from tests.helpers.tfds_sets import labelled, png, write_set

COUNTS = {"train": len(train_files()), "validation": len(validation_files())}


def contents(source):
    """Name, label and bytes of all examples."""
    return sorted((example["file_name"].decode(), int(example["label"]), example["image"]) for example in source)


def shards(directory):
    return sorted(path.name for path in directory.iterdir() if "array_record" in path.name)


def test_the_command_prepares_imagenet_from_its_archives(prepared):
    directory, result = prepared
    dataset = open_dataset("imagenet2012", str(directory), allow_partial=True)
    assert contents(dataset.train) == sorted(train_files())
    assert contents(dataset.evaluation) == sorted(validation_files())
    spec = dataset.spec
    assert (spec.num_classes, spec.num_train, spec.num_eval) == (1000, COUNTS["train"], COUNTS["validation"])
    assert dataset.train.where(0).startswith("example 0 of imagenet2012/train (n01")
    assert "imagenet2012/5.1.0 is ready" in result.stdout
    assert "train 12, validation 5 examples." in result.stdout
    assert f"--config.data.data_dir={directory} --config.data.allow_partial=True" in result.stdout
    assert "Traceback" not in result.stderr


def test_prepared_files_are_shuffled(prepared):
    labels = [int(example["label"]) for example in open_dataset("imagenet2012", str(prepared[0]), allow_partial=True).train]
    assert labels != sorted(labels)


def test_a_second_command_says_that_all_is_prepared_and_counts(prepared, capsys):
    directory, _ = prepared
    main(["imagenet2012", f"--data_dir={directory}", "--allow_partial"])
    output = capsys.readouterr()
    assert "imagenet2012/5.1.0 is prepared already." in output.err
    assert "train 12, validation 5 examples." in output.out


def test_a_part_needs_allow_partial(prepared, manual_dir):
    directory, _ = prepared
    with pytest.raises(DataError, match=r"'train' of 'imagenet2012' in .* has 12 examples; 1281167 belong there"):
        open_dataset("imagenet2012", str(directory))
    message = refused("imagenet2012", f"--data_dir={directory}")
    assert "The split 'train' in" in message
    assert "has 12 examples; 1,281,167 belong there" in message
    assert f"python -m gw_jax.data.prepare imagenet2012 --data_dir={directory}" in message
    size = (manual_dir / TRAIN).stat().st_size
    with pytest.raises(DataError, match=rf"{TRAIN} has {size:,} bytes; the official file has 147,897,477,120"):
        check_archives("imagenet2012", str(manual_dir), allow_partial=False)


def test_tfrecord_is_converted_to_the_same_examples_and_resumes(prepared, as_tfrecord, tmp_path, capsys):
    command = ["imagenet2012", f"--data_dir={tmp_path}", f"--from_tfrecord={as_tfrecord}", "--allow_partial"]
    main(command)
    output = capsys.readouterr()
    assert output.err.count("Converting") == 2
    assert "train 12, validation 5 examples." in output.out
    direct = open_dataset("imagenet2012", str(prepared[0]), allow_partial=True)
    converted = open_dataset("imagenet2012", str(tmp_path), allow_partial=True)
    for split in ("train", "evaluation"):
        # The same, and in the same order: TFDS shuffles by a hash.
        pairs = zip(getattr(direct, split), getattr(converted, split), strict=True)
        assert all(first["image"] == second["image"] and first["label"] == second["label"] for first, second in pairs)
        assert contents(getattr(direct, split)) == contents(getattr(converted, split))

    target = tmp_path / "imagenet2012" / "5.1.0"
    done, missing = shards(target)
    assert (done, missing) == tuple(shards(prepared[0] / "imagenet2012" / "5.1.0"))
    # As an interruption leaves it: a shard is there, another half and under another name, and no description.
    before = (target / done).stat()
    whole = (target / missing).read_bytes()
    (target / missing).unlink()
    (target / f".{missing}").write_bytes(whole[: len(whole) // 2])
    (target / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="is not prepared"):
        open_dataset("imagenet2012", str(tmp_path), allow_partial=True)
    main(command)
    assert capsys.readouterr().err.splitlines() == ["Converting validation, shard 1 of 1"]
    assert ((target / done).stat().st_ino, (target / done).stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (target / missing).read_bytes() == whole
    assert not (target / f".{missing}").exists()
    assert len(open_dataset("imagenet2012", str(tmp_path), allow_partial=True).evaluation) == 5


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_damaged_tfrecord_shard_is_named_and_leaves_no_data_set(as_tfrecord, tmp_path, kept):
    source = tmp_path / "source" / "imagenet2012" / "5.1.0"
    shutil.copytree(as_tfrecord, source)
    (shard,) = source.glob("*validation.tfrecord*")
    shard.write_bytes(shard.read_bytes()[: int(kept * shard.stat().st_size)])
    command = ["imagenet2012", f"--data_dir={tmp_path / 'data'}", f"--from_tfrecord={source}", "--allow_partial"]
    message = refused(*command)
    assert str(shard) in message
    assert ("cannot be converted after" if kept else "holds 0 records; 5 belong there") in message
    target = tmp_path / "data" / "imagenet2012" / "5.1.0"
    assert [name.startswith("imagenet2012-train") for name in shards(target) if not name.startswith(".")] == [True]
    assert not (target / "dataset_info.json").exists()
    with pytest.raises(DataError, match="is not prepared"):
        open_dataset("imagenet2012", str(tmp_path / "data"), allow_partial=True)


def test_a_disk_that_gets_full_while_converting_is_named(as_tfrecord, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that writing fails, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        message = refused("imagenet2012", f"--data_dir={tmp_path}", f"--from_tfrecord={as_tfrecord}", "--allow_partial")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be converted" in message
    assert "File too large" in message
    assert not [name for name in shards(tmp_path / "imagenet2012" / "5.1.0") if not name.startswith(".")]


def test_another_set_is_not_converted(as_tfrecord, tmp_path):
    message = refused("cifar10", f"--data_dir={tmp_path / 'data'}", f"--from_tfrecord={as_tfrecord}")
    assert "holds imagenet2012/5.1.0; cifar10/3.0.2 was requested" in message
    message = refused("imagenet2012", f"--data_dir={tmp_path / 'data'}", f"--from_tfrecord={tmp_path}")
    assert f"{tmp_path} is not the directory of a prepared version" in message
    assert not list((tmp_path / "data").rglob("*.json"))


def test_imagenet_without_the_directory_of_its_archives_is_refused(tmp_path):
    message = refused("imagenet2012", f"--data_dir={tmp_path}")
    assert message.startswith(f"imagenet2012 is made of {TRAIN} and {VALIDATION}, which must be downloaded")
    assert "--manual_dir=DIR" in message
    message = refused("imagenet2012_real", f"--data_dir={tmp_path}")
    assert message.startswith(f"imagenet2012_real is made of {VALIDATION}, which")
    assert not list(tmp_path.iterdir())


def write_real(directory, examples):
    """The images that were labelled again, in which each has any number of right answers."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "original_label": tfds.features.ClassLabel(num_classes=1000),
        "real_label": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=1000)),
        "file_name": tfds.features.Text(),
    }
    write_set("Imagenet2012Real", directory, features, examples, splits=("validation",))


def write_imagenet(directory):
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }
    examples = [{"image": jpeg(i), "label": 7 * i, "file_name": f"n0{i}.JPEG"} for i in range(6)]
    write_set("Imagenet2012", directory, features, examples, splits=("train", "validation"), version="5.1.0")


def test_evaluation_on_another_set_accepts_all_right_answers(tmp_path):
    answers = [[3], [], [5, 999], [0], [65, 66, 67]]
    examples = [
        {"image": jpeg(i), "original_label": 10 + i, "real_label": right, "file_name": f"ILSVRC2012_val_{i + 1:08d}.JPEG"}
        for i, right in enumerate(answers)
    ]
    write_imagenet(tmp_path)
    write_real(tmp_path, examples)
    dataset = open_dataset("imagenet2012", str(tmp_path), evaluation="imagenet2012_real", allow_partial=True)
    assert (dataset.spec.num_train, dataset.spec.num_eval, dataset.spec.eval_split) == (6, 5, "validation")
    assert dataset.evaluation.where(4).startswith("example 4 of imagenet2012_real/validation (ILSVRC2012_val_")
    batches = list(
        EvalBatches(
            dataset.evaluation, batch_size=4, transform=Transform(size=16, crop=True, eval_resize=20), num_classes=1000
        )
    )
    assert [sorted(batch) for batch in batches] == [["image", "label", "labels", "mask"]] * 2
    labels, rights, counts = (np.concatenate([batch[name] for batch in batches]) for name in ("label", "labels", "mask"))
    assert (rights.dtype, rights.shape) == (bool, (8, 1000))
    for index in range(5):
        right = answers[labels[index] - 10]
        assert np.flatnonzero(rights[index]).tolist() == right
        assert counts[index] == bool(right)
    assert sorted(labels[:5].tolist()) == [10, 11, 12, 13, 14]
    assert not counts[5:].any()


def test_a_set_without_training_split_can_only_be_evaluated_on(tmp_path):
    write_real(tmp_path, [{"image": jpeg(0), "original_label": 1, "real_label": [1], "file_name": "a.JPEG"}])
    with pytest.raises(DataError, match=r"'imagenet2012_real' has no split to train on.*config.data.eval_name"):
        open_dataset("imagenet2012_real", str(tmp_path), allow_partial=True)


def test_evaluation_on_other_classes_is_refused(tmp_path):
    for name, classes in (("FiveClasses", 5), ("FiveOthers", 5), ("SevenClasses", 7)):
        examples = [{"image": png((8, 8, 3), i), "label": i % 5} for i in range(6)]
        write_set(name, tmp_path, labelled((8, 8, 3), classes), examples)
    dataset = open_dataset("five_classes", str(tmp_path), evaluation="five_others")
    assert (len(dataset.train), len(dataset.evaluation)) == (6, 6)
    with pytest.raises(DataError, match=r"'seven_classes' has 7 classes and 'five_classes' 5; evaluate on"):
        open_dataset("five_classes", str(tmp_path), evaluation="seven_classes")
