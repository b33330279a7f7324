"""Every public name has a docstring with an example that runs, and the sections of the project's conventions."""

import builtins
import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re

import pytest

import gw_jax

PACKAGES = [f"gw_jax.{name}" for _, name, is_package in pkgutil.iter_modules(gw_jax.__path__) if is_package]
MODULES = ["gw_jax", "gw_jax.serving", *PACKAGES, "gw_jax.detection.ops"]


def public_names():
    """``{"gw_jax.nn.GroupWhitening": object}`` of each ``__all__``, each object once, by its shortest name."""
    found, seen = {}, set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            # A decorated function is none for inspect.
            is_code = inspect.isclass(value) or inspect.isfunction(value) or hasattr(value, "__wrapped__")
            if is_code and id(value) not in seen:
                seen.add(id(value))
                found[f"{module_name}.{name}"] = value
    return found


NAMES = public_names()


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_examples(name):
    text = inspect.getdoc(NAMES[name])
    assert text, "no docstring"
    assert re.search(r"^Example:\n +>>> ", text, re.MULTILINE), "no section Example: with >>>"


@pytest.mark.parametrize("name", NAMES)
def test_errors_that_are_raised_are_named(name):
    """Those that stand in the function or the constructor itself, or a base of them."""
    value = NAMES[name]
    function = inspect.getattr_static(value, "__init__") if inspect.isclass(value) else inspect.unwrap(value)
    if not inspect.isfunction(function) or function.__module__.partition(".")[0] != "gw_jax":
        return
    try:
        source = inspect.getsource(function)
    except OSError:
        return  # The constructor of a dataclass is generated.
    section = re.search(r"^Raises:\n((?: .*\n|\n)+)", inspect.getdoc(value) + "\n", re.MULTILINE)
    named = set(re.findall(r"(?m)^ {4}(\w+):", section[1])) if section else set()
    for error in set(re.findall(r"^ +raise (\w+Error)\b", source, re.MULTILINE)):
        kind = function.__globals__.get(error) or getattr(builtins, error)
        assert {base.__name__ for base in kind.__mro__} & named, error


@pytest.mark.slow  # A minute in all; most names have tests of their own in the default run.
@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, tmp_path, monkeypatch, data_dir, quick_compilation):
    value = NAMES[name]
    monkeypatch.chdir(tmp_path)
    # TFDS reads the environment when it is imported.
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", data_dir)
    if "needs PyTorch" in inspect.getdoc(value):
        pytest.importorskip("torch", reason="reading and writing .pth files needs PyTorch, an optional extra")
    if "needs TensorFlow" in inspect.getdoc(value):
        pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow, an optional extra")
    if value in (gw_jax.serving.save, gw_jax.serving.load):
        pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers, an optional extra")
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(value), {}, name, name, 0)
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with quick_compilation(), contextlib.redirect_stderr(io.StringIO()):
        result = runner.run(example, out=output.write, clear_globs=True)
    assert result.attempted or not example.examples
    assert not result.failed, output.getvalue()
