"""The architecture names of the reference and their counterparts here."""

from gw_jax.models.resnet import Placement

_PLACEMENTS: dict[str, Placement] = {"001n": "S1-B3", "010n": "S1-B2", "100n": "S1-B1", "110n": "S1-B12"}
_RESNEXTS = ("50_32x4d", "101_32x8d")

# name in the reference: (our network, placement of the norm)
REFERENCE_RESNETS: dict[str, tuple[str, Placement]] = {
    **{f"resnet{depth}": (f"resnet{depth}", "S1") for depth in (18, 34, 50, 101, 152)},
    **{
        f"resnet_whiten_{code}{depth}": (f"resnet{depth}", placement)
        for code, placement in _PLACEMENTS.items()
        for depth in (18, 34, 50, 101, 152)
    },
    **{f"resnext{kind}": (f"resnext{kind}", "S1") for kind in _RESNEXTS},
    **{f"resnext_whiten_010n{kind}": (f"resnext{kind}", "S1-B2") for kind in _RESNEXTS},
    **{f"resnext_forGN{kind}": (f"resnext{kind}", "all") for kind in _RESNEXTS},
    # Three files of the reference define these; the last one wins, where every norm is the chosen one.
    "wide_resnet50_2": ("wide_resnet50_2", "all"),
    "wide_resnet101_2": ("wide_resnet101_2", "all"),
}

REFERENCE_MNIST: dict[str, str] = {
    "MLP": "mlp",
    "MLP_NormAFLinear": "mlp_norm_linear",
    "LeNet": "lenet",
    "AE": "autoencoder",
}
