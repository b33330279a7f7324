"""A stack machine for the programs that pickles are, which calls no function and imports nothing.

Numbers, strings, tuples, lists and dicts are built as Python's unpickler builds them. What names, calls and states stand
for is left to a subclass. Time and memory are bounded: an instruction makes no more than the bytes that it consumes, and
the number of instructions is limited.
"""

import abc
import codecs
import struct
from collections.abc import Callable
from typing import Any

from gw_jax.errors import CheckpointError, shown

# ResNeXt-101 with its momentum needs some 20,000.
MAX_INSTRUCTIONS = 200_000
# Digits of a number that is written as text.
_MAX_DIGITS = 32

# Instructions with a number or a string behind them: the struct format of the number, or of the string's length.
_NUMBERS = {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}
_BYTES = {"U": "<B", "T": "<i", "C": "<B", "B": "<I", "\x8e": "<Q", "\x96": "<Q"}
_TEXTS = {"\x8c": "<B", "X": "<I", "\x8d": "<Q"}
_PUTS, _GETS = {"q": "<B", "r": "<I"}, {"h": "<B", "j": "<I"}
_CONSTANTS: dict[str, Any] = {"N": None, "\x88": True, "\x89": False}
_EMPTY: dict[str, Callable[[], Any]] = {")": tuple, "]": list, "}": dict}
_TUPLES = {"\x85": 1, "\x86": 2, "\x87": 3}
# Instructions without meaning here and the bytes behind them: the protocol, the size of a frame.
_IGNORED = {"\x80": 1, "\x95": 8}
# Instructions that make other objects.
_OTHERS = {
    "o": "an instance of a class", "\x81": "an instance of a class", "\x92": "an instance of a class",
    "P": "an object outside the file", "Q": "an object outside the file", "\x97": "a buffer outside the file",
    "\x82": "a registered object", "\x83": "a registered object", "\x84": "a registered object",
    "\x8f": "a set", "\x90": "a set", "\x91": "a set",
}  # fmt: skip
_MARK = object()


class PickleMachine(abc.ABC):
    """The machine of one file."""

    def __init__(self, path: str, data: bytes):
        self.path = path
        self._data = data
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        # Bytes that conversions of strings may still make: a string can be used any number of times.
        self._budget = 2 * len(data)

    @abc.abstractmethod
    def find(self, name: str) -> Any:
        """What the name ``name``, such as "numpy.dtype", stands for."""

    @abc.abstractmethod
    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What a call stands for."""

    @abc.abstractmethod
    def build(self, target: Any, state: Any) -> None:
        """Gives ``target`` its state."""

    def run(self) -> Any:
        """Executes the program, and returns what it leaves.

        Raises:
            CheckpointError: it is damaged, truncated or too long, or asks for another object.
        """
        for _ in range(MAX_INSTRUCTIONS):
            code = chr(self._take(1)[0])
            if code == ".":
                return self._pop()
            self._step(code)
        raise CheckpointError(f"{self.path} has more than {MAX_INSTRUCTIONS} instructions; a file of arrays needs fewer.")

    def damaged(self, why: str) -> CheckpointError:
        """The error for a program that no pickler writes."""
        return CheckpointError(
            f"{self.path} cannot be read: it is truncated, damaged, or no pickle ({why}). Download or copy it again and "
            "compare its size with the original's."
        )

    def refuse(self, what: str) -> CheckpointError:
        """The error for a program that asks for an object beside arrays."""
        return CheckpointError(
            f"{self.path} asks for {what}, not only for arrays; building it could run code of the file's author. It was "
            "not run. Use the file from where it was published, or one with its arrays alone."
        )

    def text(self, value: str | bytes) -> str:
        """A string as text; those of Python 2 are bytes."""
        return value if isinstance(value, str) else str(self.spend(value), "latin-1")

    def spend(self, value: Any) -> Any:
        """``value``, a string to convert, if the file may still convert as much."""
        self._budget -= len(value)
        if self._budget < 0:
            raise CheckpointError(f"{self.path} uses the same strings again and again; a file of arrays does not.")
        return value

    def _step(self, code: str) -> None:
        stack = self._stack
        if code in _NUMBERS:
            stack.append(self._number(_NUMBERS[code]))
        elif code in _BYTES:
            stack.append(bytes(self._take(self._number(_BYTES[code]))))
        elif code in _TEXTS:
            stack.append(str(self._take(self._number(_TEXTS[code])), "utf-8", "surrogatepass"))
        elif code in _PUTS:
            self._memo[self._number(_PUTS[code])] = self._top()
        elif code in _GETS:
            stack.append(self._memo[self._number(_GETS[code])])
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            stack.append(tuple(self._pop() for _ in range(_TUPLES[code]))[::-1])
        elif code in _IGNORED:
            self._take(_IGNORED[code])
        elif code in _OTHERS:
            raise self.refuse(_OTHERS[code])
        elif code in _INSTRUCTIONS:
            _INSTRUCTIONS[code](self)
        else:
            raise self.damaged(f"it has the byte {ord(code):#04x} where an instruction is needed")

    def _take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self._data) - self._position:
            raise self.damaged("it ends in the middle")
        view = memoryview(self._data)[self._position : self._position + count]
        self._position += count
        return view

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self, limit: int | None = None) -> bytes:
        end = self._data.find(b"\n", self._position)
        if end < 0:
            raise self.damaged("it ends in the middle")
        line = bytes(self._take(end + 1 - self._position))[:-1]
        if limit is not None and len(line) > limit:
            raise self.damaged(f"a number has {len(line)} digits")
        return line

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self.damaged("its stack is empty")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _items(self) -> list[Any]:
        """The values above the last mark, which are taken off with it."""
        items: list[Any] = []
        while self._stack:
            item = self._stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise self.damaged("its stack has no mark")

    def _integer_line(self) -> None:
        line = self._line(_MAX_DIGITS)
        truths: dict[bytes, Any] = {b"00": False, b"01": True}
        self._stack.append(truths[line] if line in truths else int(line.removesuffix(b"L")))

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _quoted_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise self.damaged("a string has no quotes")
        self._stack.append(codecs.escape_decode(line[1:-1])[0])

    def _name_lines(self) -> None:
        self._stack.append(self.find(f"{self.text(self._line())}.{self.text(self._line())}"))

    def _name_from_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.damaged("a name is no string")
        self._stack.append(self.find(f"{self.spend(module)}.{self.spend(name)}"))

    def _instance(self) -> None:
        name = f"{self.text(self._line())}.{self.text(self._line())}"
        raise self.refuse(f"the Python object {shown(name)[1:-1]}")

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self.damaged("it appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise self.damaged("it assigns to what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nothing else is hashed: the hash of nested tuples takes time exponential in their depth.
            if not isinstance(key, (str, bytes)):
                raise CheckpointError(f"A key of a dict in {self.path} is a {type(key).__name__}; names are needed.")
            target[self.text(key)] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _dict_of_items(self) -> None:
        items = self._items()
        self._stack.append({})
        self._set_items(items)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(self.call(function, arguments if isinstance(arguments, tuple) else ()))

    def _build(self) -> None:
        state = self._pop()
        self.build(self._top(), state)

    def _put(self, place: int) -> None:
        self._memo[place] = self._top()


# The remaining instructions.
_INSTRUCTIONS: dict[str, Callable[[PickleMachine], Any]] = {
    "I": PickleMachine._integer_line,
    "L": PickleMachine._integer_line,
    "F": lambda machine: machine._stack.append(float(machine._line(_MAX_DIGITS))),
    "\x8a": PickleMachine._long,
    "S": PickleMachine._quoted_line,
    "V": lambda machine: machine._stack.append(str(machine._line(), "raw-unicode-escape")),
    "c": PickleMachine._name_lines,
    "\x93": PickleMachine._name_from_stack,
    "i": PickleMachine._instance,
    "(": lambda machine: machine._stack.append(_MARK),
    "t": lambda machine: machine._stack.append(tuple(machine._items())),
    "l": lambda machine: machine._stack.append(machine._items()),
    "d": PickleMachine._dict_of_items,
    "a": lambda machine: machine._extend([machine._pop()]),
    "e": lambda machine: machine._extend(machine._items()),
    "s": PickleMachine._set_item,
    "u": lambda machine: machine._set_items(machine._items()),
    "p": lambda machine: machine._put(int(machine._line(_MAX_DIGITS))),
    "g": lambda machine: machine._stack.append(machine._memo[int(machine._line(_MAX_DIGITS))]),
    "\x94": lambda machine: machine._put(len(machine._memo)),
    "0": lambda machine: machine._pop(),
    "1": lambda machine: machine._items(),
    "2": lambda machine: machine._stack.append(machine._top()),
    "R": PickleMachine._reduce,
    "b": PickleMachine._build,
}
