"""Converts checkpoints: ``python -m gw_jax.convert IN.pth OUT_DIR [options]``, and back: ``... OUT_DIR OUT.pth``.

A ``.pth`` file of the reference (or of torchvision's ResNets) becomes a directory for ``gw_jax.load_pretrained``; such a
directory becomes a ``.pth`` file for the reference's ``--load``.
"""

import argparse
import pathlib
import sys
from typing import Any

from gw_jax.convert.decide import DEFAULT_NORM
from gw_jax.convert.layout import to_torch_state
from gw_jax.convert.reading import Request, paused_garbage_collection, read
from gw_jax.convert.torch_file import write_torch_file
from gw_jax.errors import ConfigError, UserError
from gw_jax.models.pretrained import load_pretrained, require_new, write_directory


def parse_dict(text: str) -> dict[str, Any]:
    """The reference's ``key=value,key=value``: numbers, ``True``, ``False``, ``None``, else strings.

    Raises:
        ConfigError: an item is not ``key=value``.
    """
    result: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or "=" in value or not key:
            raise ConfigError(f"{item!r} in {text!r} is not key=value; write T=5,num_groups=64.")
        result[key.strip()] = _parse_value(value.strip())
    return result


def _parse_value(text: str) -> Any:
    words: dict[str, Any] = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main(arguments: list[str] | None = None) -> int:
    """Converts what the command line says. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=pathlib.Path, help="IN.pth, or a directory that this command or an export wrote")
    parser.add_argument("target", type=pathlib.Path, help="OUT_DIR, or OUT.pth; must not exist")
    parser.add_argument("--arch", help="the reference's name of the network, to insist on it")
    parser.add_argument("--norm", default=DEFAULT_NORM, help="the reference's norm, where keys leave a doubt (%(default)s)")
    parser.add_argument("--norm_cfg", metavar="K=V,...", help="its options: T=5,num_groups=64")
    parser.add_argument("--arch_cfg", metavar="K=V,...", help="options of the network: last=True")
    parser.add_argument("--apply_last_norm", metavar="BOOL", help="whether last_bn takes part (a ResNeXt's did not)")
    parser.add_argument("--container", default="legacy", help="of OUT.pth: legacy (read by every PyTorch) or zip")
    args = parser.parse_args(arguments)
    try:
        require_new(args.target)
        if args.source.is_dir():
            _export(args)
        else:
            _import(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _import(args: argparse.Namespace) -> None:
    if args.target.suffix in (".pth", ".pt", ".safetensors"):
        raise ConfigError(
            f"OUT_DIR is {args.target}; a .pth file becomes a directory: give a name without {args.target.suffix}."
        )
    if args.apply_last_norm not in (None, "True", "False", "true", "false"):
        raise ConfigError(f"--apply_last_norm={args.apply_last_norm}; True or False is allowed.")
    request = Request(
        arch=args.arch,
        norm=args.norm,
        norm_cfg=None if args.norm_cfg is None else parse_dict(args.norm_cfg),
        arch_cfg=None if args.arch_cfg is None else parse_dict(args.arch_cfg),
        apply_last_norm=None if args.apply_last_norm is None else args.apply_last_norm.lower() == "true",
    )
    imported = read(args.source, request)
    report = imported.report
    source = {
        key: getattr(report, key) for key in ("path", "sha256", "container", "kind", "reference_name", "guesses", "notices")
    }
    with paused_garbage_collection():
        write_directory(
            args.target,
            imported.shapes,
            imported.stream,
            imported.model_config,
            source=source,
            training=imported.training,
        )
    print(report)
    if imported.training is not None:
        momentum = "with" if imported.training.momentum else "without"
        print(f"training      {imported.training.epochs} epochs done, {momentum} momentum buffers")
    print(f"written       {args.target}: gw_jax.load_pretrained({str(args.target)!r})")


def _export(args: argparse.Namespace) -> None:
    model = load_pretrained(args.source)
    try:
        state = to_torch_state(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    write_torch_file(args.target, state, container=args.container)
    print(f"written       {args.target}: {len(state)} entries, {args.container} container")


if __name__ == "__main__":
    sys.exit(main())
