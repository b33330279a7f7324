import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from tests.helpers.imagenet import write_archives


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
