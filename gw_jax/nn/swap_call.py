"""New norms that accept the calls of the norms they replace."""

import copyreg
import functools
from typing import Any

import jax
from flax import nnx

from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.batch_whitening import BatchWhitening
from gw_jax.nn.frozen_batch_norm import FrozenBatchNorm
from gw_jax.nn.group_whitening import GroupWhitening
from gw_jax.nn.make_norm import Identity
from gw_jax.nn.per_sample_norms import GroupNorm, LayerNorm
from gw_jax.norm_calls import arguments_by_name, call_with, parameters_of

# Their calls are norm(x, mask=None, *, relu=False).
OURS = (BatchNorm, BatchWhitening, FrozenBatchNorm, GroupNorm, GroupWhitening, LayerNorm, Identity)


def accept_calls_of(old: type[nnx.Module], new: nnx.Module) -> None:
    """Makes ``new`` accept the calls that ``old`` does: ``use_running_average=``, ``mask=`` as Flax has it, ``relu=``.

    Its class becomes a subclass of its class. A module around it would do the same, but lengthen the paths of its
    parameters.
    """
    kind, old = type(new), getattr(old, "accepts_calls_of", old)
    both_ours = issubclass(kind, OURS) and issubclass(old, OURS)
    if both_ours or issubclass(kind, old):
        return
    # NNX's own __setattr__ would record the class as an attribute of the module.
    object.__setattr__(new, "__class__", _adapted(kind, old))


@functools.cache
def _adapted(new: type[nnx.Module], old: type[nnx.Module]) -> type[nnx.Module]:
    call: Any = new.__call__
    names = parameters_of(call)[1]
    masks_positions = (issubclass(old, OURS), issubclass(new, OURS))

    class Adapted(new):  # type: ignore[misc, valid-type]
        accepts_calls_of = old

        def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
            x, given = arguments_by_name(old.__call__, args, kwargs)
            use_running_average = given.pop("use_running_average", None)
            apply = functools.partial(
                call_with, functools.partial(call, self), call, x, given, masks_positions=masks_positions
            )
            if use_running_average is None:
                return apply()
            if "use_running_average" in names:
                given["use_running_average"] = use_running_average
                return apply()
            if not hasattr(self, "use_running_average"):
                return apply()  # It has no statistics of a batch.
            before = self.use_running_average
            try:
                object.__setattr__(self, "use_running_average", bool(use_running_average))
                return apply()
            finally:
                object.__setattr__(self, "use_running_average", before)

        def __reduce_ex__(self, protocol: Any) -> Any:
            # Pickle finds a class by its name, which this one has nowhere.
            made = super().__reduce_ex__(protocol)
            return (_empty, (new, old), *made[2:]) if made[0] is copyreg.__newobj__ else made  # type: ignore[attr-defined]

    if hasattr(old, "set_view") and not hasattr(new, "set_view"):
        # flax.nnx.view refuses an option that no module accepts.
        Adapted.set_view = GroupWhitening.set_view
    Adapted.__name__ = Adapted.__qualname__ = f"{new.__name__}For{old.__name__}"
    Adapted.__doc__ = f"{new.__name__} that accepts the calls of {old.__name__}, which it replaced."
    return Adapted


def _empty(new: type[nnx.Module], old: type[nnx.Module]) -> nnx.Module:
    kind = _adapted(new, old)
    return kind.__new__(kind)
