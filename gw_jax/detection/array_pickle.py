"""Pickles of NumPy arrays, such as Caffe2's, read without Python's unpickler, which runs whatever code a file names."""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np

from gw_jax.convert.file_errors import file_errors
from gw_jax.convert.file_kinds import refuse_other_kinds
from gw_jax.detection.pickle_machine import PickleMachine
from gw_jax.errors import CheckpointError, shown

MAX_AXES = 8

# Types of numbers that an array may have, and byte orders.
_TYPES = re.compile(r"f[248]|[iu][1248]|b1")
_ORDERS = ("<", ">", "=", "|")

# The names that NumPy writes for an array, under Python 2 and 3, before and since NumPy 2.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_ARRAY, _TYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
_NAMES = (*_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER, _ARRAY, _TYPE, _ENCODE)


@dataclasses.dataclass(frozen=True)
class _Name:
    """An allowed name; nothing is imported for it."""

    name: str


@dataclasses.dataclass
class _Type:
    """A type of numbers; a later instruction gives its byte order."""

    code: str
    order: str = "="


@dataclasses.dataclass
class _Array:
    """Stands for an array; a later instruction gives its values."""

    values: np.ndarray | None = None


def read_array_pickle(path: pathlib.Path) -> dict[str, Any]:
    """The dict in a pickle whose values are arrays, or dicts of arrays.

    Returns:
        The dict: names are text, arrays are NumPy's and cannot be written to, strings of Python 2 are bytes.

    Raises:
        CheckpointError: there is no such file; it is damaged, truncated or no pickle of a dict; or it asks for anything but
            arrays, by which a pickle could run code. Nothing of it is run.
    """
    with file_errors(str(path)):
        if not path.is_file():
            what = f"{path} is a directory, not a .pkl file." if path.is_dir() else f"There is no file {path}."
            raise CheckpointError(what)
        refuse_other_kinds(path)
        data = path.read_bytes()
        content = _ArrayMachine(str(path), data).run()
        if not isinstance(content, dict):
            hint = " If PyTorch wrote it, give it a name that ends in .pth." if isinstance(content, int) else ""
            raise CheckpointError(f"{path} holds a {_kind(content)}, and a dict of names and arrays is needed.{hint}")
        arrays: list[np.ndarray] = []
        result = _with_arrays(content, str(path), arrays, depth=0)
        if (total := sum(array.nbytes for array in arrays)) > len(data):
            raise CheckpointError(
                f"The arrays of {path} are {total} bytes, but the file has only {len(data)}: several of them share their "
                "values, which no network here does."
            )
        return result


def _kind(value: Any) -> str:
    return "name of a function" if isinstance(value, _Name) else type(value).__name__.lstrip("_").lower()


def _with_arrays(content: dict[str, Any], path: str, arrays: list[np.ndarray], depth: int) -> dict[str, Any]:
    """``content`` with arrays for what stands for them, also in its dicts; they are added to ``arrays``, too."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, _Array):
            if value.values is None:
                raise CheckpointError(f"The array {shown(name)} of {path} has no values: the file is damaged.")
            arrays.append(value.values)
            result[name] = value.values
        elif isinstance(value, dict) and depth == 0:
            result[name] = _with_arrays(value, path, arrays, depth + 1)
        else:
            result[name] = value
    return result


class _ArrayMachine(PickleMachine):
    """The machine in which names, calls and states are those of arrays."""

    def find(self, name: str) -> Any:
        if name not in _NAMES:
            raise self.refuse(f"the Python object {shown(name)[1:-1]}")
        return _Name(name)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        name = function.name if isinstance(function, _Name) else ""
        if name in _RECONSTRUCT and arguments and arguments[0] == _Name(_ARRAY):
            return _Array()
        if name == _TYPE and arguments and isinstance(arguments[0], (str, bytes)):
            code = self.text(arguments[0])
            if not _TYPES.fullmatch(code):
                raise self.refuse(f"an array of the type {shown(code)}")
            return _Type(code)
        if name == _ENCODE and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
            return self.spend(arguments[0]).encode("latin-1")
        if name in _SCALAR and len(arguments) == 2:
            return _Array(self._values(arguments[1], arguments[0], (), fortran=False))
        if name in _FROM_BUFFER and len(arguments) == 4:
            content, kind, shape, order = arguments
            return _Array(self._values(content, kind, shape, fortran=order == "F"))
        raise self.refuse(f"a call of {name or 'what is no function'} as NumPy does not write it")

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, _Type) and isinstance(state, tuple) and len(state) >= 5:
            order, *fields = state[1:5]
            order = self.text(order) if isinstance(order, (str, bytes)) else ""
            if order not in _ORDERS or any(field is not None for field in fields):
                raise self.refuse("an array of structures")
            target.order = order
        elif isinstance(target, _Array) and target.values is None and isinstance(state, tuple) and len(state) == 5:
            _, shape, kind, fortran, content = state
            target.values = self._values(content, kind, shape, fortran=fortran in (True, 1))
        else:
            raise self.refuse("an object with a state that NumPy does not write")

    def _values(self, content: Any, kind: Any, shape: Any, *, fortran: bool) -> np.ndarray:
        """The array of ``shape`` whose bytes are ``content``."""
        if not isinstance(kind, _Type) or not isinstance(content, (str, bytes)):
            raise self.refuse("an array of Python objects")
        if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(_is_size(size) for size in shape):
            raise self.damaged("the shape of an array is none")
        if isinstance(content, str):
            content = self.spend(content).encode("latin-1")
        dtype = np.dtype(kind.order + kind.code)
        needed = dtype.itemsize
        for size in shape:
            needed *= size
        if needed != len(content):
            raise self.damaged(f"an array of shape {shown(list(shape))} needs {needed} bytes and has {len(content)}")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48
