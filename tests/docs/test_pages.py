"""Every code block of README and docs: Python and shell blocks run, in the order of their page, or say why not."""

import contextlib
import io
import os
import pathlib
import re
import shlex
import subprocess

import pytest
from tensorflow_datasets.core import registered

from gw_jax.train import command_line
from tests.docs.blocks import PAGES, ROOT, SHELLS, TEXTS, Block, identify, read_blocks
from tests.docs.prepared import PREPARE

# What a reason must name: something that a machine of CI lacks, or time.
REASONS = re.compile(
    r"\b(cloud|TensorFlow|TPU|GPU|GPUs|ImageNet|COCO|SLURM|cluster|network|hub|hours|minutes|address|example of)\b"
)
BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def is_run(block):
    return not {"not run", "as in"} & set(block.marks)


def run_python(block, scope):
    # Blank lines before it, so that a traceback has the line of the page.
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    # A page runs more than once in a process, and TFDS refuses to register the name of a builder twice.
    with registered.skip_registration(), contextlib.redirect_stdout(io.StringIO()):
        exec(code, scope)


def run_shell(block, directory):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
        "REPOSITORY": str(ROOT),
        "TRAIN_ARGUMENTS": block.marks.get("run with", ""),
    }
    prelude = (ROOT / "tests" / "docs" / "prelude.sh").read_text()
    result = subprocess.run(
        ["bash", "-c", prelude + block.text], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{block}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


@pytest.fixture
def checkout(tmp_path, monkeypatch, data_dir, quick_compilation):
    """A directory in which the commands of a page run: a checkout whose files are links, in which nothing is written."""
    for path in ROOT.iterdir():
        if path.name in ("train.py", "configs", "benchmarks", "scripts", "experiments", "tests", "colab", "docs"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    # The digits are prepared once; sets that a page makes are its own.
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds" / "mnist5k").symlink_to(pathlib.Path(data_dir) / "mnist5k")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    with quick_compilation():
        yield tmp_path


def runs_commands(page):
    blocks = [block for block in read_blocks(page) if is_run(block)]
    return any(block.language in SHELLS or "slow" in block.marks for block in blocks)


# README and the first page in the default run. Slow: the others; those with commands run whole, below.
DEFAULT_PAGES = ("README.md", "index.md")
PYTHON_PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] * (page.name not in DEFAULT_PAGES))
    for page in PAGES
    if page.name in DEFAULT_PAGES or not runs_commands(page)
]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=identify)
def test_python_blocks_run(page, checkout):
    scope = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.language == "python" and is_run(block) and not {"after the commands", "slow"} & set(block.marks):
            run_python(block, scope)


# Minutes of commands; a notebook of the same content runs in place of the first, and other tests do what the others do.
LONG_PAGES = (
    "import_pytorch.md", "loggers.md", "extending.md", "dense_features.md", "finetuning.md", "data.md", "training.md"
)  # fmt: skip
WHOLE_PAGES = [
    pytest.param(page, marks=[pytest.mark.long] * (page.name in LONG_PAGES)) for page in filter(runs_commands, PAGES)
]


@pytest.mark.slow
@pytest.mark.parametrize("page", WHOLE_PAGES, ids=identify)
def test_whole_pages_run_in_their_order(page, checkout):
    scope = {"__name__": "__main__"}
    PREPARE.get(page.name, lambda directory: None)(checkout)
    for block in read_blocks(page):
        if not is_run(block):
            continue
        if block.language == "python":
            run_python(block, scope)
            if "file" in block.marks:
                (checkout / block.marks["file"]).write_text(block.text)
        elif block.language in SHELLS:
            run_shell(block, checkout)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks_have_a_language_and_a_reason(block: Block):
    assert block.language in ("python", *SHELLS, *TEXTS)
    if "not run" in block.marks:
        assert REASONS.search(block.marks["not run"]), "the reason must say what is missing to run the block"
    if "as in" in block.marks:
        same = [other for other in read_blocks(ROOT / block.marks["as in"]) if other.text == block.text]
        assert any(is_run(other) for other in same), "the other page must run the same block"
    if block.language == "python":
        compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in SHELLS], ids=str)
def test_commands_are_valid(block, tmp_path):
    """Also those that are not run: the shell's syntax, files, modules, extras, and the fields of train.py."""
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for line in block.text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|\||;|\|", line):
            words = shlex.split(command, comments=True) if command.count("'") % 2 == 0 == command.count('"') % 2 else []
            if "train.py" in words and "${" not in command:
                check_train(words[words.index("train.py") :], block)
            if "-m" in words and words[0] == "python" and words[1] == "-m" and words[2] != "venv":
                module = ROOT / words[2].replace(".", "/")
                assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), words[2]
            for word in words:
                if re.fullmatch(r"(configs|scripts|benchmarks|tests|docs)/[\w/.-]+", word):
                    assert (ROOT / word).exists(), word


def check_train(words, block):
    """The fields that ``train.py`` gets, with the config file if the project has it."""
    given = [word for word in words if not word.startswith("--config=")]
    (*files,) = (word for word in words if word.startswith("--config="))
    for file in files:
        name = file.removeprefix("--config=").split(":")[0]
        if name.startswith("configs/"):
            assert (ROOT / name).exists(), name
            given.append(file.replace("configs/", f"{ROOT}/configs/"))
        else:
            return  # A config file of the reader's, which the page itself makes.
    if not {"--help"} & set(given):
        command_line.parse(given, ROOT / "configs" / "quickstart.py")
