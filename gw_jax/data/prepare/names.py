"""Names of sets that users make of their own files."""

import re
from collections.abc import Container

from gw_jax.errors import DataError, shown

NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_new_name(name: str, own: Container[str]) -> None:
    """Checks that a set of the user's may be called ``name``.

    Args:
        name: as given.
        own: names of the sets that this package defines.

    Raises:
        DataError: a name that TFDS or this package has, or one with other characters than small letters, digits and _.
    """
    import tensorflow_datasets as tfds

    if not NAME.fullmatch(name):
        raise DataError(f"NAME={shown(name)} must be of small letters, digits and _, and begin with a letter: my_flowers.")
    if name not in own:
        try:
            tfds.builder_cls(name)
        except tfds.core.DatasetNotFoundError:
            return
    raise DataError(f"NAME={shown(name)} is a known set, which would hide yours; give another name, such as my_{name}.")
