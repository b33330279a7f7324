"""metrics.jsonl: what is read of a damaged file, what stays on a resume, and a disk that is full."""

import errno
import json
import os

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gw_jax.errors import TrainingError
from gw_jax.train import metrics
from gw_jax.train.metrics import DAMAGED_FILE, METRICS_FILE, MetricsWriter, read_metrics
from gw_jax.train.plot import plot_curves
from gw_jax.train.task import Curve

# Steps 1 to 6, two per epoch; each epoch is evaluated.
LINES = [
    {"step": 2, "epoch": 1, "train/loss": 0.9},
    {"step": 2, "epoch": 1, "eval/loss": 0.8, "eval/count": 50},
    {"step": 4, "epoch": 2, "train/loss": 0.7},
    {"step": 4, "epoch": 2, "eval/loss": 0.6, "eval/count": 50},
    {"step": 6, "epoch": 3, "train/loss": 0.5},
    {"step": 6, "epoch": 3, "eval/loss": 0.4, "eval/count": 50},
]


def write_lines(workdir, lines):
    text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (workdir / METRICS_FILE).write_bytes(b"\n".join(text) + b"\n")


def resume(workdir, step, *, evaluated=True, **options):
    MetricsWriter(workdir, step=step, evaluated=evaluated, tensorboard=False, **options).close()
    return read_metrics(workdir)


@pytest.mark.parametrize(
    "damage",
    [b'{"step": 2, "epo', b"\xff\xfe\x00", b"[1, 2]", b'"step"', b'{"epoch": 1}', b'{"step": "2"}', b"[" * 100_000],
    ids=["cut", "no text", "a list", "a string", "no step", "a step of text", "deep"],
)
def test_lines_after_a_damaged_line_are_read_and_the_damage_is_named(tmp_path, capsys, damage):
    write_lines(tmp_path, [LINES[0], damage, *LINES[2:]])
    assert read_metrics(tmp_path) == [LINES[0], *LINES[2:]]
    assert f"warning: Line 2 of {tmp_path / METRICS_FILE} cannot be read" in capsys.readouterr().err


def test_all_damaged_lines_are_named(tmp_path, capsys):
    write_lines(tmp_path, [LINES[0], b"x", b"y", LINES[1]])
    read_metrics(tmp_path)
    assert "Lines 2, 3 of" in capsys.readouterr().err


def test_blank_lines_and_a_missing_file_are_no_damage(tmp_path, capsys):
    assert read_metrics(tmp_path) == []
    write_lines(tmp_path, [LINES[0], b"", b"  ", *LINES[1:]])
    assert read_metrics(tmp_path) == LINES
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("step", "evaluated", "kept"), [(0, True, 0), (2, False, 1), (2, True, 2), (3, True, 2), (6, False, 5), (6, True, 6)]
)
def test_a_resume_drops_what_it_repeats_and_nothing_else(tmp_path, step, evaluated, kept):
    write_lines(tmp_path, LINES)
    assert resume(tmp_path, step, evaluated=evaluated) == LINES[:kept]


def test_a_resume_keeps_the_lines_after_a_damaged_one(tmp_path, capsys):
    content = [LINES[0], b"x", *LINES[2:]]
    write_lines(tmp_path, content)
    before = (tmp_path / METRICS_FILE).read_bytes()
    assert resume(tmp_path, 4) == [LINES[0], *LINES[2:4]]
    assert f"Line 2 of {tmp_path / METRICS_FILE} cannot be read and is removed" in capsys.readouterr().err
    assert (tmp_path / DAMAGED_FILE).read_bytes() == before


@pytest.mark.parametrize("tail", [b'{"step": 7, "epo', b'{"step": 6, "epoch": 3, "ev', b'{"st'])
def test_half_a_line_that_is_repeated_is_dropped_without_a_warning(tmp_path, capsys, tail):
    write_lines(tmp_path, [*LINES[:5], tail])
    assert resume(tmp_path, 4) == LINES[:4]
    assert capsys.readouterr().err == ""
    assert not (tmp_path / DAMAGED_FILE).exists()


@pytest.mark.parametrize("content", [LINES[:5], [*LINES[:5], b'{"step": 6, "epoch": 3, "eval/l'], []])
def test_the_last_evaluation_is_restored_from_the_checkpoint(tmp_path, content):
    write_lines(tmp_path, content)
    assert resume(tmp_path, 6, evaluation=LINES[5])[-1] == LINES[5]
    assert resume(tmp_path, 6, evaluation=LINES[5]).count(LINES[5]) == 1


def test_the_damaged_last_evaluation_of_a_finished_run_is_named(tmp_path, capsys):
    write_lines(tmp_path, [*LINES[:5], b'{"step": 6, "epoch": 3, "eval/l'])
    resume(tmp_path, 6)
    assert "Line 6 of" in capsys.readouterr().err


def test_every_line_is_flushed_to_disk(tmp_path):
    writer = MetricsWriter(tmp_path, step=0, evaluated=True, tensorboard=True)
    for line in LINES:
        values = {name: value for name, value in line.items() if "/" in name}
        writer.write(line["step"], line["epoch"], values)
        assert read_metrics(tmp_path)[-1] == line
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(name.encode() in content for name in ("train/loss", "eval/loss", "eval/count"))
    writer.close()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_main", lambda: False)
    writer = MetricsWriter(tmp_path, step=0, evaluated=True, tensorboard=True)
    writer.write(1, 1, {"train/loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_one_error(tmp_path, tensorboard, monkeypatch):
    writer = MetricsWriter(tmp_path, step=0, evaluated=True, tensorboard=tensorboard)
    writer.write(1, 1, {"train/loss": 1.0})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"cannot be written to .*metrics.jsonl: No space left on device"):
            writer.write(2, 1, {"train/loss": 1.0})
        writer.close()
    assert read_metrics(tmp_path)[0]["step"] == 1


def test_a_removed_directory_is_an_error(tmp_path):
    writer = MetricsWriter(tmp_path, step=0, evaluated=True, tensorboard=False)
    (tmp_path / METRICS_FILE).unlink()
    with pytest.raises(TrainingError, match="was removed while the run wrote it"):
        writer.write(1, 1, {"train/loss": 1.0})
    writer.close()


def test_values_that_json_does_not_have_are_refused(tmp_path):
    writer = MetricsWriter(tmp_path, step=0, evaluated=True, tensorboard=False)
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.write(1, 1, {"train/loss": float("nan")})
    writer.close()


def test_curves_of_any_metrics(tmp_path):
    write_lines(tmp_path, LINES)
    loss = Curve(title="loss", metrics=("train/loss", "eval/loss"), log_scale=True)
    count = Curve(title="count", metrics=("eval/count",), log_scale=False)
    path = plot_curves(tmp_path, [loss, count], "a fit")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in tmp_path.iterdir()} == {METRICS_FILE, "curves.png"}
    (tmp_path / METRICS_FILE).unlink()
    plot_curves(tmp_path, [loss], "a fit of $x")


def test_curves_name_run_task_and_values(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda self, file: drawn.append(self.figure))
    workdir = tmp_path / "my_$run"
    workdir.mkdir()
    accuracies = [0.5, 0.96, 1.0, 0.9]
    write_lines(workdir, [{"step": n, "epoch": n, "eval/accuracy": value} for n, value in enumerate(accuracies, start=1)])
    error = Curve("error", ("eval/accuracy",), log_scale=True, complement=True)
    accuracy = Curve("accuracy", ("eval/accuracy",), best="max")
    plot_curves(workdir, [error, accuracy, Curve("none", ("eval/none",))], "some network")
    (figure,) = drawn
    assert figure.get_suptitle() == r"my_\$run: some network"
    left, middle, right = figure.axes
    assert (left.get_title(), left.get_yscale(), middle.get_yscale()) == ("error", "log", "linear")
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.5, 0.04, 0, 0.1], atol=1e-12)
    assert [text.get_text() for text in left.get_legend().texts] == ["1 - eval/accuracy: last 0.1, best 0 (epoch 3)"]
    assert [text.get_text() for text in middle.get_legend().texts] == ["eval/accuracy: last 0.9, best 1 (epoch 3)"]
    assert [text.get_text() for text in right.get_legend().texts] == ["eval/none"]


def test_tensorboard_shows_the_configuration(tmp_path):
    writer = MetricsWriter(tmp_path, step=0, evaluated=True, tensorboard=True, config={"seed": 3, "init_from": None})
    writer.close()
    (file,) = (tmp_path / "tensorboard").glob("events*")
    text = b"| field | value |\n|---|---|\n| seed | `3` |\n| init_from | `null` |\n"
    assert text in file.read_bytes()
