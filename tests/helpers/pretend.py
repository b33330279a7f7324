"""A pretended GPU whose kernel is a few lines of plain JAX, right or wrong, on the CPU."""

import dataclasses
import threading
from types import SimpleNamespace

import jax

from gw_jax import group_whiten
from gw_jax.ops import kernels
from gw_jax.ops.group_whitening import kernel_definition
from gw_jax.ops.kernels import answers, check_cache, gpu_triton, placement
from gw_jax.ops.kernels.check_cache import Answer
from tests.helpers.kernels import GPU

# Programs in which the kernel was put by a network, not by a check: those run in threads of their own.
USED = []


def install(change=setattr, *, flip=None, backward_flip=None, error=None, device=GPU):
    """Makes the CPU a GPU.

    Args:
        change: replaces attributes.
        flip: index of elements of the output whose sign is wrong.
        backward_flip: likewise of the gradient.
        error: is raised by the kernel.
        device: what the CPU pretends to be.
    """

    def forward(spec, x, scale, bias):
        if error is not None:
            raise error
        if threading.current_thread() is threading.main_thread():
            USED.append(spec)
        y = kernel_definition(spec, x, scale, bias)
        return (y if flip is None else y.at[flip].multiply(-1),)

    def backward(spec, x, dy, scale, *saved):
        dx, *rest = kernels._plain_backward(spec, kernel_definition, x, dy, scale, *saved)
        return dx if backward_flip is None else dx.at[backward_flip].multiply(-1), *rest

    choose = kernels.choose_kernel

    def choose_interpreted(*args, **options):
        spec = choose(*args, **options)
        return None if spec is None else dataclasses.replace(spec, interpret=True)

    USED.clear()
    change(placement, "attached_device_kind", lambda: device)
    change(kernels, "choose_kernel", choose_interpreted)
    change(kernels, "_MODULES", {**kernels._MODULES, "gpu_triton": SimpleNamespace(forward=forward, backward=backward)})
    # A kernel that nothing compiles exists in every version of JAX.
    change(kernels, "no_kernels_because", lambda: None)
    change(gpu_triton, "serves", lambda kind: kind == device.kind)
    change(gpu_triton, "supports", lambda kind, *sizes: kind == device.kind)
    change(gpu_triton, "FEWEST_SAMPLES", 1)
    change(answers, "_decided", {})
    change(answers, "_read", {})
    answers._log_unchecked.cache_clear()


# A call that has a kernel there.
SHAPE = (8, 4, 4, 32)
LABEL = "gpu_triton for 4 x 4 x 32, float32, 16 groups, 5 iterations"


def whiten(x, **options):
    return group_whiten(x, 16, **options)


def images(dtype="float32"):
    return jax.ShapeDtypeStruct(SHAPE, dtype)


def question(dtype="float32", relu=False):
    (found,) = answers.questions_of(lambda x: whiten(x, relu=relu), images(dtype))
    return found


def uses_kernel(**options):
    USED.clear()
    jax.eval_shape(lambda x: whiten(x, **options), images())
    return bool(USED)


def new_process():
    """Forgets what was decided and read in this one."""
    answers._decided.clear()
    answers._read.clear()


def keep(passed=True):
    """Writes what an earlier process has found."""
    check_cache.write(question().key, Answer(passed, "" if passed else "it was wrong", {"output": 1e-6}))


def cache_file():
    return check_cache.path_of(question().key)
