"""``python -m gw_jax.doctor``: right installations pass, and whatever is wrong is named with exit code 1."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gw_jax.doctor import __main__ as doctor
from gw_jax.doctor import numerics, timing

SMALL = ["--model=mlp", "--num-groups=50", "--batch=8", "--dtype=float32"]


@pytest.fixture(autouse=True)
def in_a_good_installation(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    # Plugins of the machine that runs the tests are none of their business.
    monkeypatch.setattr(doctor, "check_versions", lambda section: None)


@pytest.mark.slow
def test_a_good_installation_passes(capsys):
    assert doctor.main([*SMALL, "--json"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert report["passed"]
    sections = {section["title"]: section for section in report["sections"]}
    assert list(sections) == [
        "Versions", "Imports", "Devices", "Kernels", "Group Whitening", "Errors beside float64",
        "Time, forward and backward", "Training", "Directories",
    ]  # fmt: skip
    (layer,) = sections["Group Whitening"]["data"]["layers"]
    assert (layer["shape"], layer["num_groups"], layer["count"]) == ([8, 100], 50, 4)
    assert layer["choice"] == "matmul"
    assert "no kernels for CPUs" in layer["reason"]
    (errors,) = sections["Errors beside float64"]["data"].values()
    assert 0 < errors["gradient of the input"] < 1e-4
    (times,) = sections["Time, forward and backward"]["data"].values()
    assert times["gw"] > 0
    assert times["bn"] > 0


@pytest.fixture
def nothing_slow(monkeypatch):
    monkeypatch.setattr(timing, "check_speed", lambda network, section: None)
    monkeypatch.setattr(timing, "check_training", lambda section: None)


@pytest.mark.usefixtures("nothing_slow")
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda y, scale: y * 1.001, "output is off by"),
        (lambda y, scale: y + 0 * scale * jnp.nan, "output is off by nan"),
        # The right values with a wrong derivative.
        (lambda y, scale: y + 0.1 * (scale - jax.lax.stop_gradient(scale)), "gradient of scale is off by"),
    ],
)
def test_a_wrong_implementation_is_named(monkeypatch, capsys, wrong, text):
    right = numerics.group_whiten

    def whiten(x, *, scale, implementation, **options):
        y = right(x, scale=scale, implementation=implementation, **options)
        return y if implementation == "plain" else wrong(y, scale)

    monkeypatch.setattr(numerics, "group_whiten", whiten)
    code = doctor.main([*SMALL, "--plain"])
    printed = " ".join(capsys.readouterr().out.split())
    assert code == 1
    assert "is wrong on this device" in printed
    assert text in printed
    assert '"implementation": "plain"' in printed


@pytest.mark.usefixtures("nothing_slow")
def test_a_network_without_group_whitening_is_no_fault(capsys):
    assert doctor.main(["--model=mlp", "--norm=bn", "--batch=8"]) == 0
    assert "no Group Whitening layer with norm bn" in capsys.readouterr().out


@pytest.mark.usefixtures("nothing_slow")
def test_a_network_that_cannot_be_made_is_a_problem(capsys):
    assert doctor.main(["--model=mlp", "--plain"]) == 1
    assert "100 channels cannot be cut into num_groups=32" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["--model=resnet51"], ["--batch=0"], ["--dtype=int8"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(arguments)
    assert ended.value.code == 2
    assert arguments[0].split("=")[1] in capsys.readouterr().err


def run_with(package, text, tmp_path):
    """The doctor in a process whose ``package`` is a file of this text."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(text)
    root = pathlib.Path(doctor.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, "-m", "gw_jax.doctor", "--plain"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


@pytest.mark.parametrize(
    ("package", "text", "expected"),
    [
        ("flax", "raise ImportError('cannot import name nnx')", "import flax fails: ImportError: cannot import name nnx"),
        (
            "jax",
            "raise RuntimeError('jaxlib version 0.9.0 is newer than and incompatible with jax version 0.8.0')",
            "import jax fails: RuntimeError: jaxlib version 0.9.0 is newer",
        ),
    ],
)
def test_a_broken_package_is_reported_and_does_not_end_the_doctor(package, text, expected, tmp_path):
    result = run_with(package, text, tmp_path)
    printed = " ".join(result.stdout.split())
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert printed.startswith("Versions Python")
    assert expected in printed


def test_a_broken_package_still_fails_an_import_elsewhere(tmp_path):
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "__init__.py").write_text("raise ImportError('no nnx')")
    root = pathlib.Path(doctor.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    result = subprocess.run([sys.executable, "-c", "import gw_jax"], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "no nnx" in result.stderr
