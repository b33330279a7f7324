"""Names and shapes of a state dict as a tree."""

import collections
from collections.abc import Mapping

from gw_jax.errors import CheckpointError, shown


class Keys:
    """Names and shapes of a state dict, and the tree that the dots in its names make."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes
        self._children: dict[str, set[str]] = collections.defaultdict(set)
        for key in shapes:
            parts = key.split(".")
            for index, part in enumerate(parts):
                self._children[".".join(parts[:index])].add(part)

    def children(self, prefix: str) -> set[str]:
        """The names directly below ``prefix``."""
        return self._children.get(prefix, set())

    def numbers(self, prefix: str) -> list[int]:
        """The numbers directly below ``prefix``, sorted; as PyTorch writes them, without leading zeros."""
        names = (name for name in self.children(prefix) if name.isascii() and name.isdigit() and len(name) < 10)
        return sorted(int(name) for name in names if name == str(int(name)))

    def need(self, key: str, ndim: int) -> tuple[int, ...]:
        """The shape of the entry ``key``.

        Raises:
            CheckpointError: it is missing, or has another number of axes, or no values.
        """
        shape = self.shapes.get(key)
        if shape is None or len(shape) != ndim or 0 in shape:
            found = "is missing" if shape is None else f"is of shape {shown(list(shape))}"
            raise CheckpointError(f"The entry {shown(key)}, which a network with such keys has with {ndim} axes, {found}.")
        return shape
