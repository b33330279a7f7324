"""Outputs are whole or absent, follow no planted link, and remove nothing that they did not make."""

import os
import pathlib
import stat

import pytest

from gw_jax import files
from gw_jax.errors import CheckpointError


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_writing_replaces_whole_files(tmp_path):
    files.write_atomically(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), files.replacing(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    files.write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_temporary_names_cannot_be_foreseen(tmp_path, monkeypatch):
    """A link of the temporary name, planted by another user, is an error and is not followed."""
    (tmp_path / "theirs").write_text("theirs")
    foreseen = tmp_path / f".a.{os.getpid()}"
    foreseen.symlink_to(tmp_path / "theirs")
    files.write_atomically(tmp_path / "a", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs"
    monkeypatch.setattr(files, "_temporary_name", lambda path: foreseen)
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "a", "again")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert foreseen.is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "a", "")
        with files.new_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777 & ~umask


def test_a_directory_removes_only_what_it_made(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    monkeypatch.setattr(files, "_temporary_name", lambda path: mine)
    with pytest.raises(FileExistsError), files.new_directory(tmp_path / "new"):
        pass
    assert names(mine) == ["file"]


@pytest.mark.parametrize("make", [files.new_directory, files.new_file])
def test_a_failure_leaves_nothing(tmp_path, make):
    (tmp_path / "kept").mkdir()
    with pytest.raises(RuntimeError), make(tmp_path / "kept" / "deep" / "deeper" / "new"):
        raise RuntimeError
    assert names(tmp_path / "kept") == []


@pytest.mark.parametrize("make", [files.new_directory, files.new_file])
def test_existing_paths_are_not_replaced(tmp_path, make):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError), make(tmp_path / "link"):
        pass
    with pytest.raises(OSError), make(tmp_path / "late") as temporary:  # noqa: PT012
        if temporary.is_file():
            (tmp_path / "late").write_text("theirs")
        else:
            (tmp_path / "late").mkdir()
            (tmp_path / "late" / "theirs").write_text("")
    assert names(tmp_path) == ["late", "link"]


def test_names_of_any_length(tmp_path):
    files.write_atomically(tmp_path / ("n" * 255), "whole")
    assert names(tmp_path) == ["n" * 255]
    with pytest.raises(CheckpointError, match=r"cannot be written: File name too long\. Give another name"):
        files.require_new(tmp_path / ("n" * 256))
    with pytest.raises(CheckpointError, match="null byte"):
        files.require_new(pathlib.Path("a\0b"))
    files.require_new(tmp_path / "new")
    files.require_new(tmp_path / "new" / "deeper")
