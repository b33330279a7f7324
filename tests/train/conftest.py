import os
import shutil
import signal
import socket

import pytest

from gw_jax.train import run
from tests.helpers import toy


@pytest.fixture
def config():
    """A run of the toy task: 3 epochs of 10 steps."""
    return toy.make_config()


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A work directory in which the run of ``config`` went to its end, undisturbed, and its result."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    return workdir, run(toy.make_config(), workdir)


@pytest.fixture
def finished(whole_run, tmp_path):
    """A copy of the work directory of ``whole_run`` for one test, and the result."""
    shutil.copytree(whole_run[0], tmp_path / "whole")
    return tmp_path / "whole", whole_run[1]


@pytest.fixture
def hangup_stops():
    """SIGHUP as in a terminal, where the tests may run under ``nohup``, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@pytest.fixture
def exits(monkeypatch):
    """The exit codes with which this process would have ended."""
    found = []
    monkeypatch.setattr(os, "_exit", found.append)
    return found
