"""``python -m gw_jax.data.prepare NAME [--data_dir=DIR]``: download and prepare a TFDS image data set, once."""

import argparse
import pathlib
import sys

from gw_jax.data.datasets import load_builder, open_dataset, prepare
from gw_jax.errors import UserError


def main() -> None:
    """Prepares the set that the command line names and says what to do next."""
    parser = argparse.ArgumentParser(prog="python -m gw_jax.data.prepare", description="Prepare a TFDS image data set.")
    parser.add_argument("name", help="TFDS name, such as mnist5k, mnist or cifar10")
    parser.add_argument("--data_dir", type=pathlib.Path, default=None, help="default: the TFDS default directory")
    args = parser.parse_args()
    data_dir = None if args.data_dir is None else str(args.data_dir.expanduser())
    try:
        builder = load_builder(args.name, data_dir)
        if not builder.is_prepared():
            prepare(builder)
        spec = open_dataset(args.name, data_dir).spec
    except UserError as error:
        sys.exit(f"error: {error}")
    print(
        f"{spec.name} is ready in {builder.data_path}: {spec.num_train} examples to train on, {spec.num_eval} to evaluate "
        f"on, {spec.num_classes} classes. Train with: python train.py --config.data.name={spec.name}"
        + (f" --config.data.data_dir={data_dir}" if data_dir else "")
    )


if __name__ == "__main__":
    main()
