"""Errors whose message is all a user needs: what was given, what is allowed, what to do.

``train.py`` and the command lines print them without a traceback and exit with a code other than 0.
"""


class UserError(Exception):
    """The base of all errors that a user can mend."""


class ConfigError(UserError):
    """A configuration that is not valid, or that does not fit the work directory or the devices."""


class DataError(UserError):
    """A data set that is missing, not prepared, or not an image-classification set."""


class CheckpointError(UserError):
    """A checkpoint that is missing or cannot be read."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose loss is not finite."""


def raise_missing_package(error: ImportError, purpose: str) -> None:
    """Raises a :class:`ConfigError` that names the extra to install for ``purpose``."""
    raise ConfigError(
        f"{purpose} needs the package {error.name!r}, which is not installed. "
        "Install the extra: pip install 'gw_jax[examples]' (or, in a checkout, pip install -e '.[examples]')."
    ) from error
