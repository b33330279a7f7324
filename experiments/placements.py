"""Accuracy of a small ResNet with GW in place of BatchNorm at each placement of the paper.

    python -m experiments.placements [--quick] [--seeds=5] [--out=DIRECTORY]

Two bottleneck blocks with 8 and 16 inner channels, a "small" stem of 8 channels, on digits of 14x14 pixels (averages of
2x2). GW has 8 groups. "S1" is the norm of the stem, "B1" to "B3" are those of each block, "all" adds the shortcuts; the
other norms are BatchNorm. "none" is the network with BatchNorm only.
"""

import dataclasses
from collections.abc import Sequence

from flax import nnx

from experiments.command_line import parse
from experiments.digits import Digits, load_digits
from experiments.settings import NUM_CLASSES
from experiments.study import run_case
from experiments.training import Runs
from gw_jax import create_model
from gw_jax.models import Architecture
from gw_jax.models.resnet import PLACEMENTS

STEPS, BATCH_SIZE, WIDTH, GROUPS = 150, 16, 8, 8
NETWORK = Architecture(bottleneck=True, stage_sizes=(1, 1, 0, 0))


def small_digits() -> Digits:
    """The digits, with 14x14 pixels."""
    digits = load_digits()
    images = digits.images.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
    return digits._replace(images=images)


def make_model(placement: str, rngs: nnx.Rngs) -> nnx.Module:
    """The network with GW at ``placement``."""
    return create_model(
        NETWORK,
        norm="gw",
        norm_options={"num_groups": GROUPS},
        whiten=placement,
        stem="small",
        width=WIDTH,
        in_channels=1,
        num_classes=NUM_CLASSES,
        rngs=rngs,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    sizes = {"batch_size": BATCH_SIZE, "width": WIDTH, "groups": GROUPS, "network": dataclasses.asdict(NETWORK)}
    options = parse("placements", __doc__, arguments, steps=STEPS, **sizes)
    digits = small_digits()
    for placement in ("none", "S1-B2") if options.quick else PLACEMENTS:
        runs = Runs(lambda rngs, placement=placement: make_model(placement, rngs), digits)
        options.recorder.add(
            placement=placement, **run_case(runs, digits, BATCH_SIZE, options.length, train_members=digits.train_sample)
        )


if __name__ == "__main__":
    main()
