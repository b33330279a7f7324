"""Converts checkpoints: ``python -m gw_jax.convert IN.pth OUT_DIR [options]``, and back: ``... OUT_DIR OUT.pth``.

A ``.pth`` file of the reference (or of torchvision's ResNets) becomes a directory for ``gw_jax.load_pretrained``; such a
directory becomes a ``.pth`` file for the reference's ``--load``.
"""

import argparse
import pathlib
import sys

from gw_jax.convert.commands import convert, parse_dict
from gw_jax.convert.entries import to_torch_state
from gw_jax.convert.load import LoadOptions, read
from gw_jax.convert.options import DEFAULT_NORM
from gw_jax.convert.torch_file import CONTAINERS, Container, write_torch_file
from gw_jax.errors import ConfigError
from gw_jax.models.pretrained import load_pretrained, write_directory

# Facts of the report that are kept in config.json.
_KEPT = ("path", "sha256", "container", "kind", "reference_name", "guesses", "notices")
# Options for one direction only.
_IMPORT_OPTIONS = ("arch", "norm", "norm_cfg", "arch_cfg", "apply_last_norm", "ema")
_EXPORT_OPTIONS = ("container",)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=pathlib.Path, help="IN.pth, or a directory that this command or an export wrote")
    parser.add_argument("target", type=pathlib.Path, help="OUT_DIR, or OUT.pth; must not exist")
    parser.add_argument("--arch", help="the reference's name of the network, to insist on it")
    parser.add_argument(
        "--norm", help=f"the reference's name of the norm, to insist on it (where keys fit several: {DEFAULT_NORM})"
    )
    parser.add_argument("--norm_cfg", metavar="K=V,...", help="its options: T=5,num_groups=64")
    parser.add_argument("--arch_cfg", metavar="K=V,...", help="options of the network: last=True")
    parser.add_argument("--apply_last_norm", metavar="BOOL", help="whether last_bn is applied (a ResNeXt's was not)")
    parser.add_argument("--ema", action="store_true", default=None, help="read the averaged weights, if the file has both")
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
    if args.target.suffix in (".pth", ".pt", ".safetensors"):
        raise ConfigError(
            f"OUT_DIR is {args.target}; a .pth file becomes a directory: give a name without {args.target.suffix}."
        )
    if args.source.suffix == ".pkl":
        raise ConfigError(
            f"{args.source} is a .pkl file, and a .pth file is needed. 'python -m gw_jax.detection.convert' converts "
            "backbones of Caffe2."
        )
    if args.apply_last_norm not in (None, "True", "False", "true", "false"):
        raise ConfigError(f"--apply_last_norm={args.apply_last_norm}; True or False is allowed.")
    options = LoadOptions(
        arch=args.arch,
        norm=args.norm,
        norm_cfg=None if args.norm_cfg is None else parse_dict(args.norm_cfg),
        arch_cfg=None if args.arch_cfg is None else parse_dict(args.arch_cfg),
        apply_last_norm=None if args.apply_last_norm is None else args.apply_last_norm.lower() == "true",
        ema=bool(args.ema),
    )
    loaded = read(args.source, options)
    source = {key: getattr(loaded.report, key) for key in _KEPT}
    write_directory(args.target, loaded.arrays, loaded.model_config, source=source, training=loaded.training)
    lines = str(loaded.report).splitlines()
    if loaded.training is not None:
        momentum = "with" if loaded.training.momentum else "without"
        lines.append(f"training      {loaded.training.epochs} epochs done, {momentum} momentum buffers")
    return [*lines, f"written       {args.target}: gw_jax.load_pretrained({str(args.target)!r})"]


def _export(args: argparse.Namespace) -> list[str]:
    model = load_pretrained(args.source)
    container: Container = args.container or "legacy"
    try:
        state = to_torch_state(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    write_torch_file(args.target, state, container=container)
    return [f"written       {args.target}: {len(state)} entries, {container} container"]


if __name__ == "__main__":
    sys.exit(main())
