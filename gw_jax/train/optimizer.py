"""The optimiser of a run, from its configuration."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gw_jax.errors import ConfigError
from gw_jax.train.config import OptimizerConfig
from gw_jax.train.distributed import is_main


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum, LARS or AdamW, as :class:`OptimizerConfig` defines them.

    L2 weight decay of SGD and LARS is added to the gradient before the momentum, as in PyTorch. LARS differs from
    ``optax.lars`` under a schedule: the learning rate is applied after the momentum.
    """

    def mask(params: Any) -> Any:
        return jax.tree.map(lambda matches: not matches, matching(params, config.no_decay))

    momentum = config.momentum or None
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule,
            b1=config.momentum,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=mask,
            nesterov=config.nesterov,
        )
    elif config.name == "lars":
        optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=mask),
            optax.masked(_scale_by_trust_ratio(config.trust_coefficient), mask),
            optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov),
        )
    else:
        optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=mask),
            optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov),
        )
    if not config.learning_rate_factors and not config.frozen:
        return optimizer
    return optax.chain(optimizer, _scale_by_factor(config))


def matching(params: Any, patterns: Sequence[str]) -> Any:
    """True for every parameter in whose path, such as "stage1/0/norm1/scale", one of ``patterns`` is found."""
    compiled = [re.compile(pattern) for pattern in patterns]

    def matches(path: tuple[Any, ...], _: Any) -> bool:
        return any(pattern.search(_name(path)) for pattern in compiled)

    return jax.tree_util.tree_map_with_path(matches, params)


def check_patterns(config: OptimizerConfig, params: Any) -> None:
    """Checks that each pattern of ``learning_rate_factors`` and ``frozen`` matches a parameter, and that some are trained.

    One of ``no_decay`` that matches nothing is a warning: recipes exempt scales also of networks that have none.

    Raises:
        ConfigError: a pattern that matches nothing, which is a spelling mistake, or everything is frozen.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    factors = [entry.rpartition("=")[0] for entry in config.learning_rate_factors]
    for field, patterns in (("frozen", config.frozen), ("learning_rate_factors", factors)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise ConfigError(
                    f"config.optimizer.{field} names {pattern!r}, which no parameter's path matches. Paths look like "
                    f"{', '.join(names[:3])}."
                )
    for pattern in config.no_decay:
        if is_main() and not any(re.search(pattern, name) for name in names):
            print(
                f"warning: config.optimizer.no_decay names {pattern!r}, which no parameter's path matches.", file=sys.stderr
            )
    if config.frozen and all(any(re.search(pattern, name) for pattern in config.frozen) for name in names):
        raise ConfigError(f"config.optimizer.frozen={config.frozen} freezes every parameter; nothing would be trained.")


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _scale_by_factor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by its learning-rate factor; a frozen one gets zero."""
    entries = [(pattern, float(factor)) for pattern, _, factor in (e.rpartition("=") for e in config.learning_rate_factors)]

    def factor(path: tuple[Any, ...]) -> float:
        name = _name(path)
        if any(re.search(pattern, name) for pattern in config.frozen):
            return 0.0
        return next((factor for pattern, factor in entries if re.search(pattern, name)), 1.0)

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        multiple = factor(path)
        # Not a product with zero, which keeps NaN.
        return jnp.zeros_like(update) if multiple == 0 else update if multiple == 1 else multiple * update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _scale_by_trust_ratio(coefficient: float) -> optax.GradientTransformation:
    """Multiplies each update ``u`` of a parameter ``p`` by ``coefficient ||p|| / ||u||``, or by ``coefficient`` if p = 0.

    ``optax.scale_by_trust_ratio`` multiplies by 1 there: a bias that starts at zero moves 1 / coefficient times as fast.
    """
    ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled, state = ratio.update(updates, state, params)

        def at_zero(p: jax.Array, u: jax.Array, s: jax.Array) -> jax.Array:
            return jnp.where(jnp.any(p != 0), s, jnp.asarray(coefficient, u.dtype) * u)

        return jax.tree.map(at_zero, params, updates, scaled), state

    return optax.GradientTransformation(ratio.init, update)
