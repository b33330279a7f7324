"""Checks the installation, the devices, and Group Whitening on them.

    python -m gw_jax.doctor [--model=resnet50] [--norm=gw] [--num-groups=32] [--batch=32]
                            [--image-size=224] [--dtype=float32] [--recheck] [--json]
                            [--plain]

Prints versions and packages that do not fit each other; devices; the kernels that fit the network, checked on this machine,
after which implementation="auto" uses those that are right; what it takes for each Group Whitening layer, and why; their
errors beside float64; their time beside BatchNorm; a small training step; and directories that have to be writable. The
exit code is 1 where anything is wrong.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from gw_jax.doctor.environment import check_imports, check_versions
from gw_jax.doctor.report import Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all checks and prints the report. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50", help="name of gw_jax.create_model (default: resnet50)")
    parser.add_argument("--norm", default="gw", help="its norm (default: gw)")
    parser.add_argument("--num-groups", type=_positive, metavar="N", help="groups of the norm (default: the norm's own)")
    parser.add_argument("--batch", type=_positive, default=32, metavar="N", help="images on all devices (default: 32)")
    parser.add_argument(
        "--image-size", type=_positive, metavar="N", help="edge in pixels (default: 224, or 28 for the MNIST networks)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="type of activations (default: float32 on a CPU, else bfloat16)"
    )
    parser.add_argument("--recheck", action="store_true", help="check kernels again that were right before")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--plain", action="store_true", help="no bold headings, also on a terminal")
    args = parser.parse_args(arguments)
    report = Report(as_json=args.json, plain=args.plain)
    report.run("Versions", check_versions)
    if report.run("Imports", check_imports).problems:
        return report.finish()

    # JAX can be imported from here on.
    from gw_jax.doctor import devices

    if report.run("Devices", devices.check_devices).problems and not report.sections[-1].data:
        return report.finish()
    import jax

    from gw_jax.doctor import kernels, layers, numerics, timing
    from gw_jax.models.create_model import MNIST_NETWORKS, resolve_name

    try:
        small = resolve_name(args.model, None)[0] in MNIST_NETWORKS
    except ValueError as error:
        parser.error(str(error))
    network = layers.Network(
        name=args.model,
        norm=args.norm,
        batch_size=args.batch,
        image_size=args.image_size or (28 if small else 224),
        num_groups=args.num_groups,
        dtype=args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"),
    )
    report.run("Kernels", functools.partial(kernels.check_network_kernels, network, repeat=args.recheck))
    if not report.run("Group Whitening", functools.partial(layers.check_layers, network)).problems:
        report.run("Errors beside float64", functools.partial(numerics.check_numerics, network))
        report.run("Time, forward and backward", functools.partial(timing.check_speed, network))
    report.run("Training", timing.check_training)
    report.run("Directories", devices.check_directories)
    return report.finish()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
