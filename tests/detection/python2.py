"""Pickles as Python 2 and the NumPy of its time wrote them: strings are bytes, and NumPy's modules have their old names."""

import io
import pickle
import struct
from typing import ClassVar

import numpy as np

PROTOCOLS = (0, 1, 2)


class _Pickler(pickle._Pickler):
    """Python's pickler in Python, with the strings and names of Python 2."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, obj):
        data = obj.encode("latin-1") if isinstance(obj, str) else obj
        if self.proto == 0:
            escaped = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\x{b:02x}" for b in data)
            self.write(b"S'" + escaped.encode() + b"'\n")
        elif len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(obj)

    def save_global(self, obj, name=None):
        module = {"numpy._core.multiarray": "numpy.core.multiarray"}.get(obj.__module__, obj.__module__)
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_string
    dispatch[type] = dispatch[type(np._core.multiarray._reconstruct)] = save_global

    def reducer_override(self, obj):
        if isinstance(obj, np.ndarray):
            return obj.__reduce__()
        return NotImplemented


def dumps(value, protocol=2):
    """``value`` as Python 2 pickled it."""
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()
