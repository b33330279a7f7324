"""Converts detectors: ``python -m gw_jax.detection.convert IN OUT [options]``.

IN.pth, a checkpoint of the reference's detectors, becomes a directory for ``gw_jax.detection.load_detector``; such a
directory becomes a ``.pth`` file. IN.pkl, an ImageNet model of Caffe2, becomes a directory with the backbone of a detector.
"""

import argparse
import math
import pathlib
import sys

from flax import nnx

from gw_jax.convert.commands import convert, parse_dict, refuse_options
from gw_jax.convert.fill import listed
from gw_jax.convert.torch_file import CONTAINERS, Container, read_torch_file, write_torch_file
from gw_jax.detection.caffe2 import read_caffe2, write_backbone
from gw_jax.detection.detector import Detector
from gw_jax.detection.pixels import PIXELS
from gw_jax.detection.saved import load_detector
from gw_jax.detection.torch_state import read_state, to_torch_state
from gw_jax.errors import ConfigError
from gw_jax.models.pretrained import write_directory
from gw_jax.models.saved_files import DETECTOR
from gw_jax.tree import by_path

# Options for one direction only.
_IMPORT_OPTIONS = ("conv_relu", "norm_options", "epsilon", "pixels")
_EXPORT_OPTIONS = ("container",)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.detection.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=pathlib.Path, help="IN.pth, IN.pkl, or the directory of a detector")
    parser.add_argument("target", type=pathlib.Path, help="OUT_DIR, or OUT.pth; must not exist")
    parser.add_argument(
        "--conv_relu", choices=("last", "each"), help="ReLUs of the box head '4conv1fc': one after all convolutions "
        "(last, the default, as in the published code), or one after each"
    )  # fmt: skip
    parser.add_argument("--norm_options", metavar="K=V,...", help="options of the backbone's norm: num_groups=64")
    parser.add_argument("--epsilon", type=float, help="of the frozen batch norms (0, as in the reference)")
    parser.add_argument(
        "--pixels", choices=tuple(PIXELS), help="pixel values of its images: rgb (the default) for a backbone of PyTorch, "
        "bgr for one of Caffe2"
    )  # fmt: skip
    parser.add_argument(
        "--container", choices=CONTAINERS, help="of OUT.pth: legacy (the default, for every PyTorch) or zip"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Converts what the command line says. Returns the exit code."""
    return convert(
        _parser().parse_args(arguments), read=_import, write=_export, reading=_IMPORT_OPTIONS, writing=_EXPORT_OPTIONS
    )


def _import(args: argparse.Namespace) -> list[str]:
    if args.target.suffix in (".pth", ".pt", ".pkl", ".safetensors"):
        raise ConfigError(f"OUT is {args.target}; a file becomes a directory: give a name without {args.target.suffix}.")
    return _import_backbone(args) if args.source.suffix == ".pkl" else _import_detector(args)


def _export(args: argparse.Namespace) -> list[str]:
    detector = load_detector(args.source)
    container: Container = args.container or "legacy"
    state = to_torch_state(detector)
    write_torch_file(args.target, state, container=container)
    lines = [f"written       {args.target}: {len(state)} entries, {container} container"]
    for name, usual, what in (
        ("conv_relu", "last", "has one ReLU after the four convolutions of the box head"),
        ("frozen_bn_epsilon", 0.0, "adds no epsilon in frozen batch norms"),
    ):
        if (value := detector.arguments[name]) != usual:
            lines.append(f"notice        {name}={value!r} is not in the file; the published code {what}")
    if detector.arguments["norm"] == "bn":
        lines.append("notice        norm='bn' is written as frozen batch norms; their epsilon, 1e-5, is not in the file")
    return lines


def _import_backbone(args: argparse.Namespace) -> list[str]:
    refuse_options(args, _IMPORT_OPTIONS, "is for a detector's .pth file, and the source is a .pkl file")
    backbone = read_caffe2(args.source)
    write_backbone(args.target, backbone, args.source)
    return [
        f"file          {args.source}: Caffe2",
        *str(backbone).splitlines(),
        f"written       {args.target}: a backbone; gw_jax.load_pretrained({str(args.target)!r})",
    ]


def _import_detector(args: argparse.Namespace) -> list[str]:
    file = read_torch_file(args.source.expanduser())
    found = read_state(
        file.weights.state,
        str(args.source),
        conv_relu=args.conv_relu or "last",
        norm_options=None if args.norm_options is None else parse_dict(args.norm_options),
        epsilon=args.epsilon or 0.0,
    )
    pixels = PIXELS[args.pixels or "rgb"]
    notices = [*file.weights.notices, *found.notices]
    if file.training:
        notices.append(f"the state of the training was left out: {listed(list(file.training))}")
    source = {
        "path": str(args.source),
        "sha256": file.sha256,
        "container": file.container,
        "kind": file.kind,
        "notices": notices,
        "pixels": pixels.to_json(),
    }
    guessed = "" if args.pixels else " (the file does not determine it; --pixels=bgr is for backbones of Caffe2)"
    write_directory(args.target, found.arrays, found.detector.arguments, source=source, training=None, kind=DETECTOR)
    return [
        f"file          {args.source}: {file.kind}, {file.container} container",
        f"sha256        {file.sha256}",
        f"arguments     {_described(found.detector)}",
        f"parameters    {_count(found.detector):,}, those of the frozen stem and first stage too",
        f"pixels        {pixels}{guessed}",
        f"keys          {len(found.used)} used",
        *(f"notice        {notice}" for notice in notices),
        f"written       {args.target}: gw_jax.detection.load_detector({str(args.target)!r})",
    ]


def _described(detector: Detector) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in detector.arguments.items() if value is not None)


def _count(detector: Detector) -> int:
    return sum(math.prod(leaf.shape) for leaf in by_path(nnx.to_pure_dict(nnx.state(detector, nnx.Param))).values())


if __name__ == "__main__":
    sys.exit(main())
