"""Training and evaluation steps of detectors on the device at hand, on noise, with each norm: times and their ratios.

    python -m benchmarks.detection_step [--json] [--small] [--network=faster_r50] [--norms=gw,gn,bn] [--images=N]
                                        [--canvas=800x1344] [--dtype=auto] [--rounds=20] [--jobs=1] [--no_eval]

The steps are the trainer's own, of ``configs/coco_NETWORK_NORM.py``, with the batch on the device already: nothing waits
for data, and nothing is computed on the host. ``--images`` are per device, in training and in evaluation. Steps of the
norms take turns; medians; compilation is apart. ``ratio_bn``: a norm's time over that of frozen BatchNorm. Peak memory is
the compiler's figure for the whole step. ``--norms=gw,gw:plain``: after the colon stands a forced implementation of Group
Whitening.
"""

import argparse
import concurrent.futures
import functools
import json
import os
import pathlib
import time
from typing import Any

# Before JAX starts: the state of three detectors shares a GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks import machine
from benchmarks.detection_steps import EVAL_FIELDS, example_batch, make_detection_steps
from benchmarks.steps import describe
from benchmarks.timing import interleaved_medians
from gw_jax.detection.config import DetectionConfig
from gw_jax.train.command_line import load_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
NETWORKS = ("faster_r50", "faster_r50_4conv", "mask_x101")
NORMS = ("gw", "gn", "bn")


def make_config(network: str, norm: str, images: int, canvas: str, dtype: str, *, small: bool) -> DetectionConfig:
    """The recipe for ``images`` per step; ``small``: its norms and heads with few channels, regions and objects."""
    norm, _, implementation = norm.partition(":")
    config = load_config(str(CONFIGS / f"coco_{network}_{norm}.py"))
    assert isinstance(config, DetectionConfig)
    config.batch_size, config.eval_batch_size, config.dtype, config.canvases = images, images, dtype, (canvas,)
    if implementation:
        config.model.norm_options.implementation = implementation
    if images // jax.device_count() % config.sampling.pool_images:
        config.sampling.pool_images = 1
    if small:
        model, sampling = config.model, config.sampling
        model.backbone, model.width, model.fpn_features, model.head_features = "resnet18", 32, 32, 32
        model.norm_options.num_groups = None if norm == "bn" else 16
        # Another kind of norm in the pyramid has 32 groups, as many as there are channels.
        sampling.pre_nms_top_n, sampling.post_nms_top_n, sampling.proposals, sampling.box_batch = 64, 64, 32, 16
        config.max_objects, config.max_edges = 4, 16
    return config


class Run:
    """The compiled steps of a config with their state and a batch of noise."""

    def __init__(self, config: DetectionConfig, *, evaluate: bool):
        canvas = config.canvases[0]
        steps = make_detection_steps(config, jax.devices(), canvas=canvas)
        self.compiled, self.programs = {}, {}
        for name in ("train", "eval") if evaluate else ("train",):
            began = time.perf_counter()
            self.compiled[name] = steps.lower[name]().compile()
            self.programs[name] = describe(self.compiled[name], time.perf_counter() - began)
        shapes, batch_shapes = steps.arguments["train"]
        self.state = jax.device_put(steps.initialise(), jax.tree.map(lambda leaf: leaf.sharding, shapes))
        values = example_batch(config, config.canvas_sizes()[0], config.batch_size)
        self.batch = {name: jax.device_put(values[name], leaf.sharding) for name, leaf in batch_shapes.items()}

    def train(self) -> None:
        """Runs a training step and waits for it."""
        self.state, metrics = self.compiled["train"](self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def eval(self) -> None:
        """Runs an evaluation step and waits for it."""
        batch = {name: self.batch[name] for name in EVAL_FIELDS}
        jax.block_until_ready(self.compiled["eval"](*self.state.eval_weights, batch))


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a line per norm and step, and one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--small", action="store_true", help="few channels, 64 x 96 pixels and 2 rounds, to see that it runs"
    )
    parser.add_argument("--network", default="faster_r50", choices=NETWORKS)
    parser.add_argument("--norms", default="gw,gn,bn", help=f"of {', '.join(NORMS)}")
    parser.add_argument("--images", type=int, help="per device; default: 1 on a CPU, else 2, and 1 of mask_x101")
    parser.add_argument("--canvas", default="800x1344")
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="norms that are compiled at a time")
    parser.add_argument("--no_eval", action="store_true", help="training steps only")
    args = parser.parse_args(arguments)
    norms = args.norms.split(",")
    if unknown := {norm.partition(":")[0] for norm in norms} - set(NORMS):
        parser.error(f"--norms={args.norms}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(NORMS)}")
    on_cpu, count = jax.default_backend() == "cpu", jax.device_count()
    images = count * (args.images or (1 if on_cpu or args.network == "mask_x101" else 2))
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    canvas, rounds = ("64x96", 2) if args.small else (args.canvas, args.rounds)

    def make(norm: str) -> Run:
        config = make_config(args.network, norm, images, canvas, dtype, small=args.small)
        return Run(config, evaluate=not args.no_eval)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        runs = dict(zip(norms, pool.map(make, norms), strict=True))
    cases: list[dict[str, Any]] = []
    for step in ("train",) if args.no_eval else ("train", "eval"):
        medians, _ = interleaved_medians(
            {norm: functools.partial(getattr(run, step)) for norm, run in runs.items()}, rounds
        )
        for norm, run in runs.items():
            case = {
                "norm": norm,
                "step": step,
                "ms": medians[norm],
                "images_per_sec": images / medians[norm] * 1e3,
                "ratio_bn": medians[norm] / medians["bn"] if "bn" in medians else None,
                "peak_memory": run.programs[step].peak,
                "bytes": run.programs[step].bytes,
                "compile_seconds": run.programs[step].seconds,
            }
            cases.append(case)
            ratio = "" if case["ratio_bn"] is None else f"{case['ratio_bn']:.2f} of frozen BatchNorm's time, "
            print(
                f"{args.network} {norm} {step}: {case['ms']:.1f} ms, {case['images_per_sec']:,.2f} images/s, {ratio}"
                f"{case['peak_memory'] / 1e9:.2f} GB, compiled in {case['compile_seconds']:.0f} s",
                flush=True,
            )
    if args.json:
        result = {
            **machine.describe("flax", "optax"),
            "devices": count,
            "network": args.network,
            "small": args.small,
            "images": images,
            "canvas": canvas,
            "dtype": dtype,
            "rounds": rounds,
            "cases": cases,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
