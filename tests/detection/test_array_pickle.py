"""Pickles of arrays, of Python 2 and 3, and files that ask for anything else."""

import builtins
import contextlib
import io
import os
import pickle
import random
import re
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from gw_jax.detection.array_pickle import read_array_pickle
from gw_jax.errors import CheckpointError
from tests.detection import python2
from tests.helpers.nesting import deep, doubled

ARRAYS = {
    "conv1_w": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "bytes": np.array([0, 10, 13, 39, 92, 128, 255], np.uint8),
    "scalar": np.float32(3),
    "long": np.arange(300, dtype=np.float16),
}


def write(tmp_path, data):
    path = tmp_path / "in.pkl"
    path.write_bytes(data)
    return path


def error_of(tmp_path, data):
    """The message with which ``data`` is refused."""
    with pytest.raises(CheckpointError) as raised:
        read_array_pickle(write(tmp_path, data))
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 1000
    assert "in.pkl" in message
    return message


@pytest.mark.parametrize(
    "dumps",
    [
        *(lambda value, p=p: python2.dumps(value, p) for p in python2.PROTOCOLS),
        *(lambda value, p=p: pickle.dumps(value, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
    ids=[*(f"Python 2, {p}" for p in python2.PROTOCOLS), *(f"Python 3, {p}" for p in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_arrays(tmp_path, dumps):
    content = {"blobs": ARRAYS, "cfg": "a: 1\n", "numbers": [1, -2, 3.5, 2**40, None, True]}
    found = read_array_pickle(write(tmp_path, dumps(content)))
    assert found["blobs"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found["blobs"][name].dtype == array.dtype
        np.testing.assert_array_equal(found["blobs"][name], array, strict=name != "scalar")
    assert found["cfg"] in ("a: 1\n", b"a: 1\n")
    assert found["numbers"] == content["numbers"]


def test_the_python_2_files_are_what_python_reads(tmp_path):
    """The helper's files are judged by Python's own unpickler."""
    for protocol in python2.PROTOCOLS:
        found = pickle.loads(python2.dumps(ARRAYS, protocol), encoding="latin1")
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.result = function, arguments

    def __reduce__(self):
        return self.result


class Instance:
    pass


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda canary: Call(os.mkdir, canary), "posix.mkdir"),
        (lambda canary: Call(eval, f"__import__('os').mkdir({canary!r})"), "builtins.eval"),
        (lambda canary: Call(np.load, canary), "numpy.load"),
        (lambda canary: Instance(), "Instance"),
        (lambda canary: builtins.exec, "builtins.exec"),
        (lambda canary: np.array([1, Call(os.mkdir, canary)], object), "an array of the type 'O8'"),
    ],
    ids=["mkdir", "eval", "numpy.load", "instance", "a name alone", "objects"],
)
def test_code_is_refused_by_name(tmp_path, make, name, protocol):
    canary = str(tmp_path / "canary")
    data = pickle.dumps({"blobs": {"a": np.zeros(3), "b": [{"c": make(canary)}]}}, protocol)
    message = error_of(tmp_path, data)
    # Protocols below 3 have the names of Python 2, and a class needs one of its module's functions.
    assert name in message.replace("__builtin__", "builtins") or "copyreg" in message or "copy_reg" in message
    assert "It was not run" in message
    assert not os.path.exists(canary)


NAME = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
FLOAT = DTYPE + b"U\x02f4K\x00K\x01\x87R"
BYTE = FLOAT.replace(b"f4", b"u1")
BUILT = NAME + NDARRAY + b"K\x00\x85U\x01b\x87R"


def with_array(state):
    """A dict with one array of this state."""
    return b"\x80\x02}U\x01a" + BUILT + state + b"bs."


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"ios\nsystem\n.", "the Python object os.system"),
        (b"(ios\nsystem\n.", "the Python object os.system"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.", "the Python object os.system"),
        (b"cos.path\nsystem\x1b[2J\n.", "the Python object os.path.system\\x1b[2J"),
        (NDARRAY + b")\x81.", "an instance of a class"),
        (b"(" + NDARRAY + b"o.", "an instance of a class"),
        (NDARRAY + b")}\x92.", "an instance of a class"),
        (b"Pname\n.", "an object outside the file"),
        (b"K\x00Q.", "an object outside the file"),
        (b"\x82\x01.", "a registered object"),
        (b"\x8f.", "a set"),
        # Names that are allowed, used in another way.
        (NDARRAY + b"(K\x05t\x85R.", "a call of numpy.ndarray"),
        (NAME + DTYPE + b"K\x00\x85U\x01b\x87R.", "a call of numpy.core.multiarray._reconstruct"),
        (b"K\x00)R.", "a call of what is no function"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "a call of _codecs.encode"),
        (DTYPE + b"U\x03V99K\x00K\x01\x87R.", "an array of the type 'V99'"),
        (DTYPE + b"U\x02O8K\x00K\x01\x87R.", "an array of the type 'O8'"),
        (FLOAT + b"(K\x03U\x01|NX\x01\x00\x00\x00a}NNtb.", "an array of structures"),
        (with_array(b"(K\x01K\x01\x85" + FLOAT + b"\x89]t"), "an array of Python objects"),
        (with_array(b"}"), "an object with a state"),
        (b"}}b.", "an object with a state"),
        # Arrays larger than their bytes, or without any.
        (
            with_array(b"(K\x01(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft" + FLOAT + b"\x89U\x04abcdt"),
            "needs 18446744056529682436",
        ),
        (with_array(b"(K\x01\x8a\x08" + b"\xff" * 7 + b"\x7f\x85" + FLOAT + b"\x89U\x04abcdt"), "the shape of an array"),
        (with_array(b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT + b"\x89U\x04abcdt"), "the shape of an array"),
        (with_array(b"(K\x01" + b"(" + b"K\x01" * 40 + b"t" + FLOAT + b"\x89U\x04abcdt"), "the shape of an array"),
        (b"\x80\x02}U\x01a" + BUILT + b"s.", "'a' of .* has no values"),
        (b"cnumpy.core.multiarray\nscalar\n" + FLOAT + b"U\x02ab\x86R.", "needs 4 bytes and has 2"),
        # Programs that no pickler writes.
        (b"}.", None),
        (b"a.", "its stack is empty"),
        (b"(t.", "holds a tuple"),
        (b"t.", "no mark"),
        (b"(.", "its stack is empty"),
        (b"}K\x01K\x02s.", "A key of a dict in .* is a int"),
        (b"K\x01K\x02a.", "appends to what is no list"),
        (b"K\x01U\x01aK\x02s.", "assigns to what is no dict"),
        (b"h\x05.", "KeyError"),
        (b"S'abc\n.", "a string has no quotes"),
        (b"I" + b"9" * 5000 + b"\n.", "a number has 5000 digits"),
        (b"Iabc\n.", "ValueError"),
        (b"\x00.", "the byte 0x00"),
        (b"\xff\xfe", "the byte 0xff"),
        (b"U\xffabc", "it ends in the middle"),
        (b"\x8e" + b"\xff" * 8, "it ends in the middle"),
        (b"T\xff\xff\xff\xff", "it ends in the middle"),
        (b"X\x01\x00\x00\x00\xff.", "UnicodeDecodeError"),
        (b"K\x01.", "holds a int"),
        (NDARRAY + b".", "holds a name of a function"),
        (BUILT + b".", "holds a array"),
    ],
)
def test_programs(tmp_path, program, message):
    if message is None:
        assert read_array_pickle(write(tmp_path, program)) == {}
    else:
        assert re.search(message.replace("[", r"\[").replace("\\x", r"\\x"), error_of(tmp_path, program))


def bounded(tmp_path, data, message):
    """Refuses ``data`` in bounded time and memory."""
    tracemalloc.start()
    started = time.process_time()
    try:
        found = error_of(tmp_path, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Tracing makes the machine some five times slower.
    assert time.process_time() - started < 20
    # An instruction of one byte makes an object of some 50.
    assert peak < 3 * len(data) + (32 << 20)
    assert message in found


TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"\x94"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # One string that is converted many times, to bytes, to keys, to the values of arrays.
        (TEXT + b"(" + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 1000 + b"l.", "again and again"),
        (TEXT.replace(b"X", b"B", 1) + b"}" + b"h\x00Ns" * 1000 + b".", "again and again"),
        (
            b"(" + BYTE + b"\x94" + TEXT
            + b"cnumpy.core.multiarray\nscalar\n\x94h\x00h\x01\x86R0" * 20 + b"l.",
            "needs 1 bytes",
        ),
        # Arrays that share their values.
        (
            b"}" + TEXT.replace(b"X", b"B", 1) + b"0" + b"".join(
                b"U\x03%03d" % number + BUILT + b"(K\x01J\x00\x00\x10\x00\x85" + BYTE + b"\x89h\x00tbs"
                for number in range(50)
            ) + b".",
            "share their values",
        ),
        (b"N0" * 120_000 + b"}.", "more than 200000 instructions"),
        (b"(" * 200_001 + b".", "more than 200000 instructions"),
        (b"]" + b"r\xff\xff\xff\x7f" * 1000 + b".", "holds a list"),
        # Nested containers: their hash, their text and their end must not take exponential time or recurse.
        (b"}N" + b"\x85" * 1000 + b"Ns.", "is a tuple"),
        (b"})" + b"2\x86" * 100 + b"Ns.", "is a tuple"),
        (b")" + b"2\x86" * 100 + b".", "holds a tuple"),
        (b")" + b"\x85" * 50_000 + b".", "holds a tuple"),
        (pickle.dumps(doubled()), "holds a list"),
        (pickle.dumps(deep()), "holds a list"),
    ],
)  # fmt: skip
def test_time_and_memory_are_bounded(tmp_path, data, message):
    bounded(tmp_path, data, message)


def test_nested_objects_beside_arrays(tmp_path):
    content = {"blobs": {"a": np.zeros(3, np.float32), "b": doubled()}, "c": deep()}
    found = read_array_pickle(write(tmp_path, pickle.dumps(content)))
    assert found["blobs"]["a"].shape == (3,)


def test_truncated_and_damaged_files(tmp_path):
    """Whatever is changed, the result is an error of the project or arrays; no code runs."""
    data = python2.dumps({"blobs": {"a": np.arange(6, dtype=np.float32), "bc": np.zeros((2, 2), np.float32)}})
    for end in range(len(data)):
        error_of(tmp_path, data[:end])
    generator = random.Random(0)
    read = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            changed[generator.randrange(len(data))] = generator.choice((generator.randrange(256), *b"(.0R)tbcsu\x85"))
        with contextlib.suppress(CheckpointError):
            read += isinstance(read_array_pickle(write(tmp_path, bytes(changed))), dict)
    assert 0 < read < 1500


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.txt", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"\x1f\x8b\x08\x00", "is a gzip file"),
        (zipped(), "is a zip file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a name that ends in .pth"),
    ],
)
def test_other_files(tmp_path, data, message):
    assert message in error_of(tmp_path, data)


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        read_array_pickle(tmp_path / "in.pkl")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_array_pickle(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_array_pickle(tmp_path / ("n" * 300))
