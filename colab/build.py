"""Executes the notebooks and writes them with their outputs: ``python -m colab.build [NAME ...] [--check | --texts]``.

The source of a notebook is ``colab/NAME.py`` in jupytext's percent format. ``colab/NAME.ipynb`` is made from it; edits
there are lost. ``--check`` executes without writing. ``--texts`` writes without executing, where only texts changed.
Needs the extra ``notebooks``.
"""

import argparse
import base64
import io
import os
import pathlib
import sys
import time

import jupytext
import nbclient
import nbformat
from PIL import Image

DIRECTORY = pathlib.Path(__file__).parent
TIMEOUT_S = 1200  # of one cell: against a hang; a whole notebook takes one or two minutes on two free CPU cores
MAX_BYTES = 300_000
FORM = ' cellView="form"'  # On Colab, such a cell shows its title, and its code on demand.


def names() -> list[str]:
    """The names of all notebooks, in order."""
    return sorted(path.stem for path in DIRECTORY.glob("[0-9]*.py"))


def read_source(name: str) -> nbformat.NotebookNode:
    """The notebook in ``colab/NAME.py``, without outputs."""
    return jupytext.read(DIRECTORY / f"{name}.py", fmt="py:percent")


def with_common_cells(text: str) -> str:
    """The source of a notebook with ``install.py`` and ``upgrade.py`` as its first two code cells."""
    common = iter((DIRECTORY / file).read_text() for file in ("install.py", "upgrade.py"))
    cells = text.split("\n# %%")
    for index, cell in enumerate(cells):
        if cell.startswith(FORM):
            cells[index] = f"{FORM}\n{next(common)}"
    return "\n# %%".join(cells)


def kernel_environment() -> dict[str, str]:
    """The environment of the kernel: this one's, without what would change imports and pictures."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MPLBACKEND")}
    # Without it, JAX looks for TPUs on machines that have only their library.
    return {"JAX_PLATFORMS": "cpu", **environment}


def execute(name: str, directory: pathlib.Path = DIRECTORY) -> nbformat.NotebookNode:
    """The notebook ``name`` with its outputs, executed in ``directory`` by a kernel of this Python.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    notebook = read_source(name)
    client = nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(directory)}},
    )
    client.execute(env=kernel_environment())
    return _portable(notebook)


def _portable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """``notebook`` without what differs from machine to machine or from run to run, beside the outputs themselves."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # jupytext makes random ones.
        if cell.cell_type == "code":
            cell["outputs"] = [_smaller(output) for output in _joined(cell.outputs)]
    notebook.metadata = {
        "colab": {"provenance": []},
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """``outputs`` with successive pieces of a stream as one: where they are cut depends on time."""
    result: list[nbformat.NotebookNode] = []
    for output in outputs:
        if result and output.output_type == "stream" and result[-1].get("name") == output.name:
            result[-1]["text"] += output.text
        else:
            result.append(output)
    return result


def _smaller(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """``output`` with its picture, if it has one, in the 256 colours that fit it best: half the bytes."""
    if "image/png" in output.get("data", {}):
        picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
        file = io.BytesIO()
        picture = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        picture.save(file, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return output


def write(name: str, notebook: nbformat.NotebookNode) -> int:
    """Writes ``colab/NAME.ipynb`` and returns its size in bytes.

    Raises:
        ValueError: it is too large for the repository; smaller or fewer pictures are needed.
    """
    text = nbformat.writes(notebook) + "\n"
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(
            f"{name}.ipynb would have {size:,} bytes; {MAX_BYTES:,} are allowed. Draw fewer or smaller pictures."
        )
    (DIRECTORY / f"{name}.ipynb").write_text(text)
    return size


def with_new_texts(name: str) -> nbformat.NotebookNode:
    """The committed notebook ``name`` with the texts of its source, which need no execution.

    Raises:
        ValueError: code has changed, too.
    """
    notebook = nbformat.read(DIRECTORY / f"{name}.ipynb", as_version=4)
    code = {cell.source: cell for cell in notebook.cells if cell.cell_type == "code"}
    source = read_source(name)
    cells = [code.get(cell.source) if cell.cell_type == "code" else cell for cell in source.cells]
    if None in cells or len(code) != sum(cell.cell_type == "code" for cell in cells):
        raise ValueError(f"The code of {name}.py has changed; build it without --texts.")
    notebook.cells = cells
    return _portable(notebook)


def main(arguments: list[str] | None = None) -> int:
    """Builds what the command line says. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m colab.build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all without it")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="execute, but write nothing")
    how.add_argument("--texts", action="store_true", help="update the texts between the code, without executing it")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names()):
        parser.error(f"no notebook is called {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    for name in options.names or names():
        path = DIRECTORY / f"{name}.py"
        path.write_text(with_common_cells(path.read_text()))
        start = time.perf_counter()
        try:
            notebook = with_new_texts(name) if options.texts else execute(name)
        except (ValueError, nbclient.exceptions.CellExecutionError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        size = "not written" if options.check else f"{write(name, notebook):,} bytes"
        print(f"{name}: {time.perf_counter() - start:.0f} s, {size}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
