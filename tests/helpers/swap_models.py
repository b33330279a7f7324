"""Models of a user's own, as public code writes them, for tests of ``swap_norms``."""

from flax import nnx

import gw_jax

CHANNELS = 8


class CNN(nnx.Module):
    def __init__(self, norm, rngs):
        self.conv1 = nnx.Conv(3, CHANNELS, (3, 3), rngs=rngs)
        self.norm1 = norm(CHANNELS, rngs=rngs)
        self.conv2 = nnx.Conv(CHANNELS, CHANNELS, (3, 3), rngs=rngs)
        self.norm2 = norm(CHANNELS, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=nnx.Rngs(3))
        self.head = nnx.Linear(CHANNELS, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.head(self.dropout(x.mean((1, 2))))


class ResidualBlock(nnx.Module):
    """As in public ResNets for NNX: BatchNorm, projection in an ``nnx.Sequential``, statistics chosen in the call."""

    def __init__(self, in_features, features, stride, rngs):
        self.conv1 = nnx.Conv(in_features, features, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(features, momentum=0.9, scale_init=nnx.initializers.zeros, rngs=rngs)
        projection = nnx.Sequential(
            nnx.Conv(in_features, features, (1, 1), strides=stride, use_bias=False, rngs=rngs),
            nnx.BatchNorm(features, momentum=0.9, rngs=rngs),
        )
        self.projection = None if in_features == features else projection

    def __call__(self, x, train):
        y = nnx.relu(self.bn1(self.conv1(x), use_running_average=not train))
        y = self.bn2(self.conv2(y), not train)
        return nnx.relu(y + (x if self.projection is None else self.projection(x)))


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = nnx.data([ResidualBlock(8, 8, 1, rngs), ResidualBlock(8, 16, 2, rngs)])
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x, train=True):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, train)
        return self.head(x.mean((1, 2)))


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 16, (4, 4), strides=4, rngs=rngs)
        self.layers = nnx.Dict(
            norm1=nnx.LayerNorm(16, rngs=rngs),
            attention=nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs),
            norm2=nnx.RMSNorm(16, rngs=rngs),
            mlp=nnx.Linear(16, 16, rngs=rngs),
        ) if hasattr(nnx, "Dict") else {
            "norm1": nnx.LayerNorm(16, rngs=rngs),
            "attention": nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs),
            "norm2": nnx.RMSNorm(16, rngs=rngs),
            "mlp": nnx.Linear(16, 16, rngs=rngs),
        }  # fmt: skip
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(x.shape[0], -1, 16)
        x = x + self.layers["attention"](self.layers["norm1"](x))
        x = x + nnx.gelu(self.layers["mlp"](self.layers["norm2"](x)))
        return self.head(x.mean(1))


def sequential(rngs):
    return nnx.Sequential(
        nnx.Conv(3, CHANNELS, (3, 3), rngs=rngs),
        nnx.BatchNorm(CHANNELS, rngs=rngs),
        nnx.relu,
        nnx.Sequential(nnx.Conv(CHANNELS, CHANNELS, (3, 3), rngs=rngs), nnx.GroupNorm(CHANNELS, 4, rngs=rngs)),
        lambda x: x.mean((1, 2)),
        nnx.Linear(CHANNELS, 5, rngs=rngs),
    )


class Containers(nnx.Module):
    """Norms in a dict of a list, a tuple, a named attribute, and one that is held twice."""

    def __init__(self, rngs):
        shared = nnx.LayerNorm(CHANNELS, rngs=rngs)
        self.conv = nnx.Conv(3, CHANNELS, (3, 3), rngs=rngs)
        self.first = nnx.data({"list": [nnx.BatchNorm(CHANNELS, rngs=rngs), nnx.relu], "shared": shared})
        self.second = nnx.data((nnx.GroupNorm(CHANNELS, 2, rngs=rngs), [nnx.RMSNorm(CHANNELS, rngs=rngs)]))
        self.shared = shared
        self.ours = gw_jax.InstanceNorm(CHANNELS, rngs=rngs)
        self.head = nnx.Linear(CHANNELS, 5, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        for layer in (*self.first["list"], self.first["shared"], self.second[0], *self.second[1], self.shared):
            x = layer(x)
        return self.head(self.ours(x, relu=True).mean((1, 2)))


MODELS = {
    "cnn": (lambda: CNN(nnx.BatchNorm, nnx.Rngs(0)), ["norm1", "norm2"]),
    "resnet": (
        lambda: ResNet(nnx.Rngs(0)),
        ["blocks/0/bn1", "blocks/0/bn2", "blocks/1/bn1", "blocks/1/bn2", "blocks/1/projection/layers/1"],
    ),
    "vit": (lambda: ViT(nnx.Rngs(0)), ["layers/norm1", "layers/norm2"]),
    "sequential": (lambda: sequential(nnx.Rngs(0)), ["layers/1", "layers/3/layers/1"]),
    "containers": (
        lambda: Containers(nnx.Rngs(0)),
        ["first/list/0", "first/shared", "ours", "second/0", "second/1/0"],
    ),
    "ours": (
        lambda: gw_jax.create_model("resnet18", width=8, num_classes=5, norm="bn", stem="small", rngs=nnx.Rngs(0)),
        None,
    ),
}  # fmt: skip
