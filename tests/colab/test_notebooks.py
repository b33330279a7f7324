"""The notebooks: paired with their sources, with outputs that hold pictures and no traces of a machine, and executable."""

import base64
import importlib.util
import io
import os
import pathlib
import re
import sys

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed; it is in the extra notebooks")
for package in ("jupytext", "nbclient", "ipykernel"):
    pytest.importorskip(package, reason=f"{package} is not installed; it is in the extra notebooks")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed; it is in the extra notebooks")
build = pytest.importorskip("colab.build")

NAMES = build.names()
# Fewer would mean that a notebook no longer shows what its text describes.
PICTURES = {
    "01_plug_in_group_whitening": 4,
    "02_import_pytorch": 3,
    "03_train_anywhere": 3,
    "04_small_batches": 2,
    "05_detect_objects": 4,
}
# Directories of the machine that executed a notebook, and its Python.
LOCAL = re.compile(rf"{re.escape(sys.prefix)}|/work/|/tmp/|/home/|/root/|/Users/|site-packages")


def committed(name):
    return nbformat.read(build.DIRECTORY / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            yield output.text if output.output_type == "stream" else output.data.get("text/plain", "")


def pictures(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                yield Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))


def check_outputs(name, notebook):
    for text in texts(notebook):
        assert "Traceback" not in text
        assert not LOCAL.search(text), text
    found = list(pictures(notebook))
    assert len(found) >= PICTURES[name]
    for picture in found:
        low, high = picture.convert("L").getextrema()
        assert low < 100 < 200 < high
        assert 200 < picture.width < 1000


def test_there_are_five():
    assert list(PICTURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_first_cells_are_the_common_ones(name):
    path = build.DIRECTORY / f"{name}.py"
    assert build.with_common_cells(path.read_text()) == path.read_text()
    first, second = code_cells(build.read_source(name))[:2]
    assert first.source == (build.DIRECTORY / "install.py").read_text().strip()
    assert second.source == (build.DIRECTORY / "upgrade.py").read_text().strip()


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_in_sync_with_its_source(name):
    def cells(notebook):
        return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]

    assert cells(committed(name)) == cells(build.read_source(name))


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs(name):
    assert (build.DIRECTORY / f"{name}.ipynb").stat().st_size <= build.MAX_BYTES
    notebook = committed(name)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not any(output.get("name") == "stderr" for cell in code_cells(notebook) for output in cell.outputs)
    check_outputs(name, notebook)


def test_the_import_was_committed_with_pytorch():
    assert not any("SKIPPED" in text for text in texts(committed("02_import_pytorch")))


# Minutes of training, which tests/train, tests/experiments and tests/detection repeat shortened.
LONG = ("03_train_anywhere", "04_small_batches", "05_detect_objects")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in NAMES])
def test_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    notebook = build.execute(name)
    skipped = [text for text in texts(notebook) if "SKIPPED" in text]
    has_torch = importlib.util.find_spec("torch") is not None
    assert bool(skipped) == (name == "02_import_pytorch" and not has_torch)
    if has_torch or name != "02_import_pytorch":
        check_outputs(name, notebook)


def test_a_failing_cell_is_reported(monkeypatch, tmp_path, capsys):
    (tmp_path / "1_broken.py").write_text("# %%\n1 / 0\n")
    monkeypatch.setattr(build, "DIRECTORY", tmp_path)
    assert build.main(["--check"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "1_broken.ipynb").exists()


def test_a_notebook_that_is_too_large_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "DIRECTORY", tmp_path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * build.MAX_BYTES)])
    with pytest.raises(ValueError, match=r"would have 300,\d+ bytes; 300,000 are allowed"):
        build.write("large", notebook)
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        build.main(["nothing"])
    assert "no notebook is called nothing; there are 01_plug_in_group_whitening" in capsys.readouterr().err


def test_texts_change_without_execution_and_code_does_not(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "DIRECTORY", tmp_path)
    source = tmp_path / "1_small.py"
    source.write_text("# %% [markdown]\n# old\n\n# %%\nprint(6 * 7)\n")
    build.write("1_small", build.execute("1_small", tmp_path))
    source.write_text("# %%\nprint(6 * 7)\n\n# %% [markdown]\n# new\n")
    assert build.main(["--texts"]) == 0
    code, text = nbformat.read(tmp_path / "1_small.ipynb", as_version=4).cells
    assert (code.outputs[0].text, text.source) == ("42\n", "new")
    source.write_text("# %%\nprint(6 * 8)\n")
    assert build.main(["--texts"]) == 1
    assert "The code of 1_small.py has changed; build it without --texts." in capsys.readouterr().err
