"""What a compiled program reads and writes, counted from its text.

XLA's GPU compiler gives no cost analysis for a card that is not attached, and none for calls of cuBLAS and cuDNN.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
_BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) .*\{$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
# Names of values and places; nothing is moved.
_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "partition-id", "replica-id"}
# Parts of operations that were started before, and are counted there.
_FREE |= {"async-update", "async-done", "copy-done", "opt-barrier"}
_CALLS = {"call": r"to_apply=%?([\w.-]+)", "while": r"body=%?([\w.-]+)"}
_CALLS["conditional"] = r"(?:branch_computations=\{([^}]*)\}|true_computation=%?([\w.-]+), false_computation=%?([\w.-]+))"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Operands and results of all instructions of a program.

    Attributes:
        bytes: of operands and results, without the scratch space of libraries. An operand counts in full where a part of it
            is read.
        gemms: matrix products, in libraries or compiled.
        kernels: instructions that run something.
    """

    bytes: int = 0
    gemms: int = 0
    kernels: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.bytes + other.bytes, self.gemms + other.gemms, self.kernels + other.kernels)

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(self.bytes * times, self.gemms * times, self.kernels * times)


def traffic(text: str) -> Traffic:
    """The traffic of the program ``text``, an optimised HLO module (``compiled.as_text()``).

    The body of a loop counts as often as the compiler knows that it runs, or once; of branches the most expensive one.

    Raises:
        ValueError: there is no entry computation.
    """
    found = list(_COMPUTATION.finditer(text))
    entry = next((match[2] for match in found if match[1]), None)
    if entry is None:
        raise ValueError("The text has no line that starts with ENTRY; give the text of a compiled program.")
    ends = [match.start() for match in found[1:]] + [len(text)]
    bodies = {match[2]: text[match.end() : end] for match, end in zip(found, ends, strict=True)}
    return _computation(entry, bodies)


def _computation(name: str, bodies: dict[str, str]) -> Traffic:
    sizes: dict[str, int] = {}
    total = Traffic()
    for line in bodies[name].splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        result, kind, operation, rest = match.groups()
        sizes[result] = _size(kind, scratch=operation != "custom-call")
        called = [computation for computation in _called(operation, rest) if computation in bodies]
        if called:
            inner = max((_computation(computation, bodies) for computation in called), key=lambda cost: cost.bytes)
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            total += inner * (int(trips[1]) if trips else 1)
        elif operation not in _FREE:
            read = sum(sizes.get(operand, 0) for operand in _operands(rest))
            total += Traffic(sizes[result] + read, int(_is_gemm(operation, rest)), 1)
    return total


def _size(kind: str, scratch: bool = True) -> int:
    """Bytes of the arrays in a type; without ``scratch``, arrays of bytes in a tuple are the scratch space of a library."""
    arrays = _ARRAY.findall(kind)
    if not scratch and kind.startswith("("):
        arrays = [(name, dims) for name, dims in arrays if name not in ("s8", "u8")]
    return sum(_BYTES.get(name, 4) * math.prod(int(n) for n in dims.split(",") if n) for name, dims in arrays)


def _operands(rest: str) -> Iterator[str]:
    """Names in the list of operands, up to the parenthesis that closes it."""
    depth = 1
    for match in re.finditer(r"[()]|%([\w.-]+)", rest):
        depth += (match[0] == "(") - (match[0] == ")")
        if depth == 0:
            return
        if match[1]:
            yield match[1]


def _called(operation: str, rest: str) -> list[str]:
    match = re.search(_CALLS[operation], rest) if operation in _CALLS else None
    return [] if match is None else re.findall(r"[\w.-]+", " ".join(group for group in match.groups() if group))


def _is_gemm(operation: str, rest: str) -> bool:
    return operation == "dot" or "__cublas" in rest or "__triton_gemm" in rest or "__triton_nested_gemm_fusion" in rest
