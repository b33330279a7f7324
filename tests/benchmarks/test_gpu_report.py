"""The report on a GPU: its steps run one after the other, and what one of them does to itself is listed."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import gpu_report, layer_profile
from benchmarks.gpu_report import Step


def run(step, directory, seconds=60.0):
    return gpu_report.run(step, directory, small=True, seconds=seconds)


def test_the_json_of_a_step_is_written_when_it_ends(tmp_path):
    (tmp_path / "input").write_text(json.dumps({"cases": [1]}))
    result = run(Step("tool", ("json.tool", "--compact"), (str(tmp_path / "input"),), 60), tmp_path)
    assert (result["state"], result["file"]) == ("done", "tool.json")
    assert json.loads((tmp_path / "tool.json").read_text()) == {"cases": [1]}
    assert result["command"] == f"python -m json.tool --compact {tmp_path / 'input'}"


def test_a_step_that_fails_or_takes_too_long_is_listed(tmp_path):
    result = run(Step("missing", ("json.tool",), (str(tmp_path / "missing"),), 60), tmp_path)
    assert (result["state"], result["file"]) == ("failed with exit code 2", None)
    assert "No such file" in result["last_lines"][-1]
    result = run(Step("server", ("http.server",), ("--bind=127.0.0.1", "0"), 60), tmp_path, seconds=0.5)
    assert (result["state"], result["file"]) == ("out of time", None)


def test_steps_for_which_no_time_is_left_are_listed(tmp_path):
    assert gpu_report.main([f"--directory={tmp_path}", "--seconds=1", "--only=parity,profile"]) == 0
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert [(step["step"], step["state"]) for step in steps] == [
        ("parity", "not run: no time left"),
        ("profile", "not run: no time left"),
    ]
    with pytest.raises(SystemExit):
        gpu_report.main([f"--directory={tmp_path}", "--only=everything"])


def test_the_time_of_operations_is_that_of_the_device():
    def line(name, **events):
        found = [SimpleNamespace(name=event, duration_ns=duration) for event, duration in events.items()]
        return SimpleNamespace(name=name, events=found)

    host = SimpleNamespace(name="/host:CPU", lines=[line("tf_XLAEigen/1", dot=4000), line("python", dot=1)])
    device = SimpleNamespace(
        name="/device:GPU:0", lines=[line("Stream #1", gemm=6000, copy=1000), line("XLA Modules", jit=9)]
    )
    assert layer_profile.operation_times([host], 2) == {"dot": 2.0}
    assert layer_profile.operation_times([host, device], 2) == {"gemm": 3.0, "copy": 0.5}


@pytest.mark.slow
def test_a_small_report_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    code = gpu_report.main(["--small", f"--directory={tmp_path}", "--only=layers,profile", "--seconds=500"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == 0, report
    layers, profile = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("layers", "profile"))
    assert layer_profile.slowest(layers) == ((2, 4, 4, 64), "float32")
    assert profile["shape"] == [2, 4, 4, 64]
    assert profile["microseconds"]
