"""Kept answers of kernel checks: what of them is believed, and that none of their files ends a program."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from gw_jax.ops import check_kernels
from gw_jax.ops.kernels import answers, check_cache, placement
from gw_jax.ops.kernels.check_cache import Answer
from tests.helpers.kernels import GPU
from tests.helpers.pretend import LABEL, cache_file, images, keep, new_process, question, uses_kernel, whiten


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


def test_an_answer_is_kept_with_everything_it_depends_on(gpu):
    gpu()
    check_kernels(whiten, images())
    stored = json.loads(cache_file().read_text())
    assert stored["answer"]["passed"]
    key = stored["key"]
    assert key["device_kind"] == GPU.kind
    assert key["versions"]["jax"] == jax.__version__
    assert set(key["versions"]) == {"jax", "jaxlib", "jax_triton", "triton", "runtime", "kernels"}
    assert (key["dtype"], key["spatial"], key["spec"]["num_groups"]) == ("float32", [4, 4], 16)


@pytest.mark.parametrize("change", ["jax", "jaxlib", "triton", "runtime", "kernels", "machine", "device"])
def test_an_answer_of_another_version_or_machine_is_not_believed(gpu, monkeypatch, change, caplog):
    gpu()
    keep()
    assert uses_kernel()
    old = cache_file().read_bytes()
    new_process()
    if change == "machine":
        monkeypatch.setattr(check_cache, "machine", lambda: "another")
    elif change == "device":
        gpu(device=placement.DeviceKind("gpu", "NVIDIA B200"))
    else:
        versions = {**check_cache.versions(), change: "0.0.1"}
        monkeypatch.setattr(check_cache, "versions", lambda: versions)
    assert not uses_kernel()
    # Not even under the name that a new answer would have.
    cache_file().write_bytes(old)
    with caplog.at_level(logging.WARNING):
        assert not uses_kernel()
    assert "it is the answer to something else" in caplog.text


def test_other_sources_of_kernels_have_another_digest(monkeypatch, tmp_path):
    before = check_cache.sources_digest.__wrapped__()
    sources = pathlib.Path(check_cache.__file__).parent
    folder = tmp_path / "ops" / "kernels"
    shutil.copytree(sources, folder)
    shutil.copy(sources.parent / "inverse_sqrt.py", folder.parent)
    monkeypatch.setattr(check_cache, "__file__", str(folder / "check_cache.py"))
    assert check_cache.sources_digest.__wrapped__() == before
    with (folder / "gpu_triton.py").open("a") as file:
        file.write("\n")
    assert check_cache.sources_digest.__wrapped__() != before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 10_000,
        b" " * 100_000,
        "cut",
        {"passed": 1},
        {"passed": "yes"},
        {"errors": [1]},
        {"errors": {"output": None}},
        {"checked_at": "yesterday"},
        {"checked_at": "2026-01-01T00:00:00"},
        {"seconds": None},
        {"problem": 3},
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_a_word(gpu, caplog, content):
    gpu()
    keep()
    path = cache_file()
    if content == "cut":
        content = path.read_bytes()[:-20]
    elif isinstance(content, dict):
        stored = json.loads(path.read_text())
        content = json.dumps(stored | {"answer": stored["answer"] | content}).encode()
    path.write_bytes(content)
    new_process()
    with caplog.at_level(logging.WARNING):
        assert not uses_kernel()
    assert f"{path} is damaged or no answer of a kernel check" in caplog.text
    keep()
    assert uses_kernel()


def test_a_directory_in_place_of_a_file_is_ignored_with_a_word(gpu, caplog):
    gpu()
    cache_file().mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert check_kernels(whiten, images()) == {LABEL: True}
    assert "cannot be read (Is a directory)" in caplog.text
    assert "cannot be kept" in caplog.text
    assert uses_kernel()


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_not_fatal(gpu, caplog, tmp_path, monkeypatch):
    """A file where the directory should be: root may write to read-only directories."""
    gpu()
    (tmp_path / "file").touch()
    monkeypatch.setenv(check_cache.DIRECTORY_VARIABLE, str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert check_kernels(whiten, images()) == {LABEL: True}
    (record,) = caplog.records
    assert "cannot be kept" in record.getMessage()
    assert check_cache.DIRECTORY_VARIABLE in record.getMessage()
    assert uses_kernel()


def test_a_failed_write_leaves_the_old_answer(gpu, monkeypatch):
    gpu()
    keep()
    before = cache_file().read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    check_cache.write(question().key, Answer(False, "it is wrong"))
    assert [path.read_bytes() for path in cache_file().parent.iterdir()] == [before]


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_processes_that_write_at_once_leave_a_whole_file():
    script = (
        "import sys\n"
        "from gw_jax.ops.kernels import check_cache\n"
        "from gw_jax.ops.kernels.check_cache import Answer\n"
        "for number in range(100):\n"
        "    problem = sys.argv[1] * number * 20\n"
        "    check_cache.write({'a': 1}, Answer(False, problem))\n"
        "    assert not check_cache.read({'a': 1}).passed\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, letter], stderr=subprocess.PIPE) for letter in "ab"]
    assert [process.communicate()[1] for process in processes] == [b"", b""]
    assert [path.suffix for path in check_cache.path_of({"a": 1}).parent.iterdir()] == [".json"]


@pytest.mark.usefixtures("gpu")
def test_the_directory_follows_the_environment(monkeypatch, tmp_path):
    assert check_cache.directory() == tmp_path / "cache"
    monkeypatch.delenv(check_cache.DIRECTORY_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert check_cache.directory() == tmp_path / "xdg" / "gw_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_cache.directory() == tmp_path / ".cache" / "gw_jax"


def test_several_hosts_believe_only_what_they_agreed_on(gpu, monkeypatch):
    gpu()
    keep()
    new_process()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not uses_kernel()
    with pytest.raises(ValueError, match="which have to agree on kernels"):
        check_kernels(whiten, images())
    answers.decide(question(), Answer(True))
    assert uses_kernel()
