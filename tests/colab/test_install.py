"""The first two code cells of every notebook: versions, devices, installation under a constraint, upgrade."""

import os
import pathlib
import re
import signal
import subprocess
import types
import zipfile

import numpy as np
import pytest

from colab import install
from gw_jax import versions

ROOT = pathlib.Path(__file__).resolve().parents[2]
UPGRADE = (ROOT / "colab" / "upgrade.py").read_text()


def probe(stdout="", returncode=0, stderr=""):
    return types.SimpleNamespace(stdout=stdout, returncode=returncode, stderr=stderr)


def test_tested_versions_are_those_of_the_package():
    expected = {
        name: (versions.dotted(oldest), versions.dotted(versions.NEWEST_TESTED[name][:2]))
        for name, oldest in versions.OLDEST.items()
    }
    assert expected == install.TESTED


@pytest.mark.parametrize("version", ["0.7.2", "0.10.2", "0.12.9", "0.12.0.dev20260101"])
def test_tested_jax_needs_no_notice(version):
    assert install.check_versions({"jax": version, "jaxlib": version, "flax": "0.11.2", "numpy": "2.1.3"}) == []


@pytest.mark.parametrize(("name", "version", "lowest"), [("jax", "0.7.1", "0.7.2"), ("flax", "0.10.9", "0.11.2")])
def test_too_old_a_version_is_refused(name, version, lowest):
    with pytest.raises(RuntimeError, match=rf"{name} {version} is too old, gw_jax needs {lowest}: set UPGRADE = True"):
        install.check_versions({"jax": "0.10.0", "flax": "0.12.0", name: version})


def test_untested_version_is_named_with_the_way_back():
    (notice,) = install.check_versions({"jax": "0.13.0", "flax": "0.12.0"})
    assert re.search(r"jax 0.13.0 is newer than 0.12.* pip install 'jax==0.12.\*'", notice)


def test_nothing_is_required_before_the_installation():
    assert install.check_versions({}) == []


@pytest.mark.parametrize(
    ("stdout", "has_gpu", "has_torch", "expected"),
    [
        ("gpu 1 x Tesla T4", True, True, []),
        ("tpu 8 x TPU v5 lite", False, True, []),
        ("cpu 1 x cpu", False, True, ["No GPU or TPU: .* Runtime > Change runtime type"]),
        ("cpu 1 x cpu", True, True, ["There is a GPU, but JAX does not use it: .* Disconnect and delete runtime"]),
        ("gpu 1 x Tesla T4", True, False, ["No PyTorch: only 02_import_pytorch needs it"]),
    ],
)
def test_devices_and_torch(stdout, has_gpu, has_torch, expected):
    notices = install.check_devices(probe(stdout), has_gpu, has_torch)
    assert len(notices) == len(expected)
    assert all(re.search(pattern, notice) for pattern, notice in zip(expected, notices, strict=True))


def test_jax_that_does_not_start_is_an_error_with_its_reason():
    broken = probe(returncode=1, stderr="Traceback ...\nRuntimeError: jaxlib 0.7.2 is too old for this plugin\n")
    with pytest.raises(RuntimeError, match=r"JAX does not start: RuntimeError: jaxlib .*\n.*delete runtime"):
        install.check_devices(broken, True, True)


def test_checkout_is_found_from_within_only(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT / "colab")
    assert install.find_checkout() == ROOT
    monkeypatch.chdir(tmp_path)
    assert install.find_checkout() is None


def test_address_must_be_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="Set REPOSITORY, at the top of the install cell"):
        install.clone()


def git(*arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_clone_of_a_revision(monkeypatch, tmp_path):
    source = tmp_path / "source"
    git("init", "--quiet", "--initial-branch=other", str(source))
    (source / "file").write_text("content")
    git("-C", str(source), "add", "file")
    git("-C", str(source), "commit", "--quiet", "-m", "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(install, "REPOSITORY", source.as_uri())
    with pytest.raises(RuntimeError, match=r"git clone .* failed:\n.*main"):
        install.clone()
    monkeypatch.setattr(install, "REVISION", "other")
    assert (install.clone() / "file").read_text() == "content"
    monkeypatch.setattr(install, "REPOSITORY", "file:///gone")
    assert install.clone() == tmp_path / "gw_jax_checkout"  # It is there already.


def wheel(directory, requirement):
    path = directory / "gw_demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = "gw_demo-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: gw-demo\nVersion: 1.0\nRequires-Dist: {requirement}\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


@pytest.fixture
def offline_pip(monkeypatch):
    """Pip without an index, which reports what it would install."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DRY_RUN", "1")


@pytest.mark.usefixtures("offline_pip")
def test_pip_refuses_to_replace_what_is_installed(tmp_path):
    before = install.installed()
    newer = f"{int(np.__version__.split('.')[0]) + 1}"
    with pytest.raises(
        RuntimeError, match=r"(?s)gw-demo 1.0 depends on numpy.*Nothing was replaced\. .*'numpy': .*set UPGRADE = True"
    ):
        install.install(wheel(tmp_path, f"numpy>={newer}"))
    assert install.installed() == before


@pytest.mark.usefixtures("offline_pip")
def test_pip_installs_what_fits(tmp_path):
    install.install(wheel(tmp_path, "numpy"))


@pytest.mark.usefixtures("offline_pip")
def test_constraint_names_the_installed_versions(monkeypatch, tmp_path):
    seen = []
    real = install.run

    def run(*command):
        seen.append(pathlib.Path(command[command.index("--constraint") + 1]).read_text())
        real(*command)

    monkeypatch.setattr(install, "run", run)
    install.install(wheel(tmp_path, "numpy"))
    assert seen == ["".join(f"{name}=={version}\n" for name, version in install.installed().items())]
    assert set(install.installed()) == {"jax", "jaxlib", "flax", "numpy"}


def test_replaced_package_is_an_error(monkeypatch):
    found = iter([{"jax": "0.7.2"}, {"jax": "0.10.2"}, {"jax": "0.10.2"}])
    monkeypatch.setattr(install, "installed", lambda: next(found))
    monkeypatch.setattr(install, "run", lambda *command: None)
    with pytest.raises(AssertionError, match=r"pip replaced .*0\.7\.2.* by .*0\.10\.2"):
        install.install("anything")


def test_missing_packages_of_a_checkout_are_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    real = install.importlib.util.find_spec
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name in ("optax", "mlxtend") else real(name)
    )
    with pytest.raises(RuntimeError, match=r"optax, mlxtend missing: run pip install -e '\.\[examples\]'"):
        install.set_up()


def test_upgrade_is_off(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    exec(UPGRADE, {})


@pytest.mark.parametrize(
    ("has_gpu", "has_tpu", "jax"), [(False, False, "jax"), (True, False, "jax[cuda12]"), (False, True, "jax[tpu]")]
)
def test_upgrade_installs_for_the_device_and_restarts(monkeypatch, has_gpu, has_tpu, jax):
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append((command, check)))
    monkeypatch.setattr(os, "kill", lambda process, number: calls.append((process, number)))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if has_gpu else None)
    monkeypatch.setattr(os.path, "exists", lambda path: has_tpu and path == "/dev/accel0")
    exec(UPGRADE.replace("UPGRADE = False", "UPGRADE = True"), {})
    (command, check), end = calls
    assert command[1:4] == ["-m", "pip", "install"]
    assert command[-2].split(">=")[0] == jax
    assert check
    assert end == (os.getpid(), signal.SIGKILL)
