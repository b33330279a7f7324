"""The training step on the device at hand, on fake data: images per second with each norm, memory, compile time.

    python -m benchmarks.train_step [--json] [--small] [--model=resnet50] [--norms=gw,bn] [--batch=N] [--image_size=224]
                                    [--dtype=auto] [--steps=20] [--torch] [--jobs=1]

The step is the trainer's own, with the batch on the device already: nothing waits for data. Steps of the norms take turns.
``--norms=gw,gw:plain,bn``: after the colon stands a forced implementation of Group Whitening.
Medians; compilation is apart. ``ratio_bn``: a norm's time over BatchNorm's. MFU is given where the device's peak is known;
peak memory is the compiler's figure for the whole step: state, batch and what it keeps in between. With ``--torch`` an
eager PyTorch ResNet-50 with the same norms is timed in turns, too (``benchmarks/torch_peer.py``: channels last, autocast
for bfloat16, on the same device); ``ratio_torch``: this project's time over its.
"""

import argparse
import concurrent.futures
import json
import os
import time
from typing import Any

# Before JAX starts: on a GPU it would take most of the memory, and PyTorch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from benchmarks import machine
from benchmarks.steps import describe, make_steps
from benchmarks.timing import interleaved_medians
from gw_jax.classification import ClassificationConfig, DataConfig, ModelConfig, NormConfig
from gw_jax.train.chips import CHIPS

NORM_OPTIONS: dict[str, dict[str, Any]] = {"gw": {"num_groups": 64}, "gn": {"num_groups": 32}, "bn": {}}


class Run:
    """A compiled step with its state and a batch of noise."""

    def __init__(self, model: str, norm: str, batch: int, image_size: int, dtype: str):
        norm, _, implementation = norm.partition(":")
        options = NORM_OPTIONS[norm] | ({"implementation": implementation} if implementation else {})
        config = ClassificationConfig(
            dtype=dtype,
            data=DataConfig(name="imagenet2012", image_size=image_size, batch_size=batch, eval_batch_size=batch),
            model=ModelConfig(name=model, norm=norm, norm_options=NormConfig(**options)),
        )
        steps = make_steps(config, jax.devices())
        shapes, batch_shapes = steps.arguments["train"]
        began = time.perf_counter()
        lowered = steps.lower["train"]()
        # Before the compiler hands convolutions to cuDNN, which it does not count.
        self.flops = (lowered.cost_analysis() or {}).get("flops", 0) / jax.device_count()
        self.compiled = lowered.compile()
        self.program = describe(self.compiled, time.perf_counter() - began)
        self.state = jax.device_put(steps.initialise(), jax.tree.map(lambda leaf: leaf.sharding, shapes))
        rng = np.random.default_rng(0)
        values = {"image": rng.integers(0, 256, batch_shapes["image"].shape, np.uint8)}
        values["label"] = rng.integers(0, 1000, batch_shapes["label"].shape, np.int32)
        self.batch = {name: jax.device_put(values[name], leaf.sharding) for name, leaf in batch_shapes.items()}

    def __call__(self) -> None:
        """Runs a step and waits for it."""
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a line per norm, and one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--small", action="store_true", help="2 images of 32 pixels and 2 steps, to see that it runs")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--norms", default="gw,bn", help=f"of {', '.join(NORM_OPTIONS)}")
    parser.add_argument("--batch", type=int, help="images; default: 8 on a CPU, 256 per device elsewhere")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help="beside PyTorch, which has to be installed; ResNet-50 only")
    parser.add_argument("--jobs", type=int, default=1, help="steps that are compiled at a time")
    args = parser.parse_args(arguments)
    norms = args.norms.split(",")
    if unknown := {norm.partition(":")[0] for norm in norms} - set(NORM_OPTIONS):
        parser.error(
            f"--norms={args.norms}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(NORM_OPTIONS)}"
        )
    if args.torch and (args.model != "resnet50" or not {norm.partition(":")[0] for norm in norms} <= {"gw", "bn"}):
        parser.error("--torch compares ResNet-50 with gw and bn only")
    if args.torch and jax.device_count() > 1:
        parser.error(f"--torch compares one device with one device; there are {jax.device_count()} (hide all but one)")
    on_cpu, count = jax.default_backend() == "cpu", jax.device_count()
    batch = args.batch or (2 * count if args.small else 8 if on_cpu else 256 * count)
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    size, steps = (32, 2) if args.small else (args.image_size, args.steps)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        runs = dict(zip(norms, pool.map(lambda norm: Run(args.model, norm, batch, size, dtype), norms), strict=True))
    peers = {}
    if args.torch:
        from benchmarks import torch_peer

        if torch_peer.device() != ("cpu" if on_cpu else "cuda"):
            parser.error(f"--torch: JAX runs on {jax.default_backend()!r}, PyTorch on {torch_peer.device()!r}")
        peers = {
            f"torch {norm}": torch_peer.training_step(norm, batch, size, dtype) for norm in norms if norm in ("gw", "bn")
        }
    medians, _ = interleaved_medians({**runs, **peers}, steps)
    chip = CHIPS.get(jax.devices()[0].device_kind)
    cases = []
    for norm, run in runs.items():
        seconds = medians[norm] / 1e3
        case = {
            "norm": norm,
            "ms": medians[norm],
            "images_per_sec": batch / seconds,
            "mfu": None if chip is None or not run.flops else run.flops / seconds / chip.flops,
            "peak_memory": run.program.peak,
            "bytes": run.program.bytes,
            "compile_seconds": run.program.seconds,
            "ratio_bn": medians[norm] / medians["bn"] if "bn" in medians else None,
            "torch_eager_ms": medians.get(f"torch {norm}"),
            "ratio_torch": medians[norm] / medians[f"torch {norm}"] if f"torch {norm}" in medians else None,
        }
        cases.append(case)
        ratio = "" if case["ratio_bn"] is None else f"{case['ratio_bn']:.2f} of BatchNorm's time, "
        ratio += "" if case["ratio_torch"] is None else f"{case['ratio_torch']:.2f} of PyTorch's, "
        print(
            f"{args.model} {norm}: {case['ms']:.1f} ms, {case['images_per_sec']:,.1f} images/s, {ratio}"
            f"{run.program.peak / 1e9:.2f} GB, compiled in {run.program.seconds:.0f} s",
            flush=True,
        )
    if args.json:
        result = {
            **machine.describe("flax", "optax"),
            "devices": count,
            "model": args.model,
            "batch_size": batch,
            "image_size": size,
            "dtype": dtype,
            "steps": steps,
            "cases": cases,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
