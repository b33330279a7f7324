"""How the kernels of :mod:`gpu_split_kernels` run: by jax_triton on a card, or by Triton's interpreter on NumPy arrays.

The interpreter has to be chosen before Triton is imported (``TRITON_INTERPRET=1``).
The extra ``jax-triton`` installs what is needed. jax_triton is made for one version of JAX or a few, so where its import
fails, there are no kernels, and a warning says why. The import of Triton 3.9 after TensorFlow 2.21 aborts the process.
"""

import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gw_jax.errors import one_line
from gw_jax.ops.kernels.spec import KernelSpec


@functools.cache
def is_installed() -> bool:
    """Whether jax_triton and Triton can be imported. A failure other than their absence is a warning."""
    if importlib.util.find_spec("jax_triton") is None or importlib.util.find_spec("triton") is None:
        return False
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        logging.getLogger(__name__).warning(
            "Group Whitening does not use jax_triton here: TensorFlow was imported before Triton, whose import would then "
            "abort the process, since both register the options of LLVM. Import triton before tensorflow."
        )
        return False
    try:
        import jax_triton  # noqa: F401
        import triton

        from gw_jax.ops.kernels import gpu_split_kernels  # noqa: F401

        if triton.knobs.runtime.interpret:
            raise ValueError("TRITON_INTERPRET is set, so that Triton compiles nothing")
    except Exception as error:  # Of another version of JAX: whatever its internals raise.
        logging.getLogger(__name__).warning(
            "jax_triton does not work here, with JAX %s (%s: %s), so Group Whitening does not use it. Install versions "
            "that work together, see docs/performance.md, or uninstall jax_triton.",
            jax.__version__,
            type(error).__name__,
            one_line(str(error), 200),
        )
        return False
    return True


def call(
    name: str,
    arrays: Sequence[jax.Array],
    numbers: Sequence[float],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, int],
    warps: int,
    stages: int,
    spec: KernelSpec,
    sizes: dict[str, Any],
) -> list[jax.Array]:
    """Runs a kernel.

    Args:
        name: of the kernel; its arguments are the arrays, the numbers, the outputs, and the sizes by name.
        arrays: what it reads.
        numbers: int, or float for float32.
        outputs: types of what it writes.
        grid: numbers of programs.
        warps: of a program.
        stages: tiles that a program loads ahead.
        spec: says the card, and whether it is interpreted.
        sizes: what it is compiled for.
    """
    if spec.interpret:
        run = functools.partial(_interpreted, name, tuple(numbers), tuple(outputs), grid, sizes)
        return list(jax.pure_callback(run, tuple(outputs), *arrays))
    import jax_triton

    from gw_jax.ops.kernels import gpu_split_kernels

    results = jax_triton.triton_call(
        *arrays,
        *(np.float32(number) if isinstance(number, float) else number for number in numbers),
        kernel=getattr(gpu_split_kernels, name),
        out_shape=list(outputs),
        grid=grid,
        name=f"group_whitening_{name}",
        num_warps=warps,
        num_stages=stages,
        compute_capability=spec.capability,
        **sizes,
    )
    return [_as_varying(result, output) for result, output in zip(results, outputs, strict=True)]


def _as_varying(result: jax.Array, output: jax.ShapeDtypeStruct) -> jax.Array:
    """``result``, which varies over the devices of ``jax.shard_map`` as its type says: jax_triton drops that."""
    missing = tuple(output.manual_axis_type.varying - jax.typeof(result).manual_axis_type.varying)
    return jax.lax.pcast(result, missing, to="varying") if missing else result


# It changes Triton's functions while it runs, and JAX calls back from one thread per device.
_INTERPRETER = threading.Lock()


class _Tensor:
    """A NumPy array as what Triton's interpreter takes for a tensor in host memory."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, array.dtype.name

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Tensor":
        return self

    def new_empty(self, *_: Any, **__: Any) -> "_Tensor":
        return _Tensor(self.array)

    def cpu(self) -> "_Tensor":
        return self

    def set_(self, storage: "_Tensor", *_: Any) -> None:
        self.array = storage.array

    def copy_(self, other: "_Tensor") -> None:
        """Both are the same memory."""

    def storage_offset(self) -> int:
        return 0

    size = stride = storage_offset


def _interpreted(
    name: str,
    numbers: tuple[float, ...],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    grid: tuple[int, int],
    sizes: dict[str, Any],
    *arrays: Any,
) -> tuple[np.ndarray, ...]:
    # Not zeros: a kernel writes all of its outputs.
    results = tuple(np.full(output.shape, np.nan, output.dtype) for output in outputs)
    tensors = [_Tensor(np.ascontiguousarray(array)) for array in (*arrays, *results)]
    from gw_jax.ops.kernels import gpu_split_kernels

    with _INTERPRETER:
        getattr(gpu_split_kernels, name)[grid](*tensors[: len(arrays)], *numbers, *tensors[len(arrays) :], **sizes)
    return results
