"""Compiles the kernels of gpu_split for a card that is not there, and prints what each needs: one JSON object.

    TRITON_INTERPRET=0 python -m tests.helpers.compile_split CARD DTYPE GROUPS CHANNELS_PER_GROUP

``jax_triton`` is replaced by a few lines that compile what it is called with, since it needs JAX for CUDA.
"""

import json
import sys
from types import SimpleNamespace

import jax
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gw_jax.ops.kernels import choose_kernel, gpu_split, gpu_triton, placement

NAMES = {"bfloat16": "*bf16", "float32": "*fp32"}
found = {}


def triton_call(*arguments, kernel, out_shape, grid, name, num_warps, num_stages, compute_capability, **sizes):
    values = [*arguments, *out_shape]
    types = [NAMES[value.dtype.name] if value.ndim else "fp32" for value in values if not isinstance(value, int)]
    for i, value in enumerate(values):
        if isinstance(value, int):
            types.insert(i, "i32")
    signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(sizes, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.startswith("*")}
    source = ASTSource(kernel, signature=signature, constexprs=sizes, attrs=aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", compute_capability, 32), options=options)
    found[name] = {"shared": compiled.metadata.shared, "size": len(compiled.asm["cubin"])}
    return [jax.numpy.zeros(output.shape, output.dtype) for output in out_shape]


def main(card, dtype, num_groups, channels_per_group):
    sys.modules["jax_triton"] = SimpleNamespace(triton_call=triton_call)
    gpu_split.is_installed = lambda: True
    gpu_triton.serves = lambda kind: False  # Not even for an H100, as without Pallas' Triton.
    shape = (2, 32, 32, num_groups * channels_per_group)
    spec = choose_kernel(shape, dtype, num_groups, 5, 0.0, placement.DeviceKind("gpu", card), relu=True)

    def gradient(x):
        y, *kept = gpu_split.forward(spec, x, *2 * [jax.numpy.ones((shape[0], shape[3]))])
        return gpu_split.backward(spec, x, y, jax.numpy.ones((shape[0], shape[3])), y, *kept)

    jax.eval_shape(gradient, jax.ShapeDtypeStruct(shape, dtype))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
