"""Options of whitening: their closed choices, defaults and checks."""

import warnings
from typing import Literal, get_args

from gw_jax.errors import unknown_name
from gw_jax.ops.checks import require_epsilon, require_integer

Method = Literal["newton", "zca"]
Implementation = Literal["auto", "plain", "matmul", "kernel", "prefer_kernel"]

# The reference's IGWItN adds nothing to the covariance, its IGWSVD adds 1e-5 to the eigenvalues.
DEFAULT_EPSILON: dict[str, float] = {"newton": 0.0, "zca": 1e-5}


def resolve_num_groups(num_features: int, num_groups: int) -> int:
    """The number of groups into which ``num_features`` channels are divided when ``num_groups`` are requested.

    More groups than channels become one group per channel, with a warning, as in the reference.

    Raises:
        ValueError: ``num_groups`` is no integer of at least 1, or does not divide ``num_features``.
    """
    num_features = require_integer("num_features", num_features, 1)
    num_groups = require_integer("num_groups", num_groups, 1)
    if num_groups > num_features:
        warnings.warn(
            f"num_groups={num_groups} exceeds the {num_features} channels: {num_features} groups of one channel "
            "are used, as in the reference. Give a num_groups of at most the number of channels to silence this.",
            stacklevel=3,
        )
        return num_features
    if num_features % num_groups:
        divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
        raise ValueError(
            f"{num_features} channels cannot be cut into num_groups={num_groups} groups of equal size. "
            f"Choose one of {divisors}."
        )
    return num_groups


def groups_of(num_features: int, channels_per_group: int) -> int:
    """The number of groups of ``channels_per_group`` channels each, rounded down as in the reference.

    Raises:
        ValueError: ``channels_per_group`` is no integer, below 1 or above ``num_features``.
    """
    if require_integer("channels_per_group", channels_per_group, 1) > num_features:
        raise ValueError(
            f"channels_per_group={channels_per_group} of {num_features} channels; 1 to {num_features} are allowed."
        )
    return num_features // channels_per_group


def check_whitening_options(method: str, num_iterations: int, epsilon: float | None, implementation: str = "auto") -> float:
    """Checks the options that do not depend on the input and returns the epsilon to use.

    Raises:
        ValueError: an unknown ``method`` or ``implementation``, a ``num_iterations`` that is no integer of at least 0, an
            ``epsilon`` that is negative, NaN or infinite, or one of zero with "zca".
    """
    for what, value, known in (
        ("implementation", implementation, get_args(Implementation)),
        ("method", method, get_args(Method)),
    ):
        if value not in known:
            raise ValueError(unknown_name(what, value, known))
    require_integer("num_iterations", num_iterations, 0)
    if epsilon is None:
        return DEFAULT_EPSILON[method]
    return require_epsilon(epsilon, positive=method == "zca", of=f" with method={method!r}")
