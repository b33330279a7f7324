"""Group Whitening in PyTorch, written from the paper's formula: what this project's layers and steps are timed beside."""

from collections.abc import Callable
from typing import Any

import torch


class GroupWhitening(torch.nn.Module):
    """Whitens ``x`` ``[n, c, *spatial]`` in ``num_groups`` groups of channels of every sample, as users of PyTorch would.

    Statistics are in float32, also under autocast. There is one batched product for the covariance, three per iteration and
    one for the result.

    Source: Huang et al., Group Whitening, CVPR 2021, section 3.1.
    """

    def __init__(self, num_features: int, num_groups: int = 64, num_iterations: int = 5):
        super().__init__()
        self.num_groups, self.num_iterations = min(num_groups, num_features), num_iterations
        self.weight = torch.nn.Parameter(torch.ones(num_features))
        self.bias = torch.nn.Parameter(torch.zeros(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The whitened values, scaled and shifted."""
        with torch.autocast(x.device.type, enabled=False):
            values = x.float().reshape(x.shape[0], self.num_groups, -1)
            centred = values - values.mean(-1, keepdim=True)
            covariance = centred @ centred.transpose(1, 2) / centred.shape[-1]
            trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
            normalised = covariance / trace
            p = torch.eye(self.num_groups, device=x.device).expand_as(covariance)
            for _ in range(self.num_iterations):
                p = torch.baddbmm(p, p @ p @ p, normalised, beta=1.5, alpha=-0.5)
            y = (p * trace.rsqrt() @ centred).reshape(x.shape)
            per_channel = (1, -1) + (1,) * (x.ndim - 2)
            return (y * self.weight.view(per_channel) + self.bias.view(per_channel)).to(x.dtype)


def device() -> str:
    """The device on which this module runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronise(started: object = None) -> None:
    """Waits for what was started on a GPU."""
    del started
    if device() == "cuda":
        torch.cuda.synchronize()


def layer_steps(shape: tuple[int, ...], dtype: str, *, compiled: bool) -> dict[str, Any]:
    """Functions that start the layer once, "forward" and "forward+backward", on an input ``[n, h, w, c]`` of JAX's order.

    The input is channels first and contiguous, the layout in which PyTorch's batched products need no copy.
    """
    place = device()
    n, h, w, c = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((n, c, h, w), generator=generator).to(place, getattr(torch, dtype)).requires_grad_()
    cotangent = torch.randn((n, c, h, w), generator=generator).to(place, getattr(torch, dtype))
    layer = GroupWhitening(c).to(place)
    run = torch.compile(layer) if compiled else layer

    def forward() -> None:
        with torch.no_grad():
            run(x)

    def both() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        run(x).backward(cotangent)

    return {"forward": forward, "forward+backward": both}


class Bottleneck(torch.nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution with norms, and a shortcut; the second norm is ``second_norm(features)``."""

    def __init__(self, inputs: int, width: int, stride: int, second_norm: Callable[[int], torch.nn.Module]):
        super().__init__()

        def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> torch.nn.Module:
            return torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

        relu = torch.nn.ReLU(inplace=True)
        self.residual = torch.nn.Sequential(
            *(conv(inputs, width, 1), torch.nn.BatchNorm2d(width), relu),
            *(conv(width, width, 3, stride), second_norm(width), relu),
            *(conv(width, 4 * width, 1), torch.nn.BatchNorm2d(4 * width)),
        )
        self.shortcut = torch.nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = torch.nn.Sequential(conv(inputs, 4 * width, 1, stride), torch.nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The rectified sum of both ways."""
        return torch.relu(self.residual(x) + self.shortcut(x))


def resnet50(norm: str, stage_sizes: tuple[int, ...] = (3, 4, 6, 3)) -> torch.nn.Module:
    """ResNet-50 with ``norm``, "gw" or "bn", after the first convolution and as second norm of the blocks (S1-B2)."""
    make_norm: Callable[[int], torch.nn.Module] = GroupWhitening if norm == "gw" else torch.nn.BatchNorm2d
    stem = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), make_norm(64), torch.nn.ReLU(inplace=True)
    layers = [*stem, torch.nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, blocks in enumerate(stage_sizes):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage > 0 and block == 0 else 1, make_norm))
            inputs = 4 * width
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(inputs, 1000))


def training_step(norm: str, batch: int, image_size: int, dtype: str) -> Callable[[], None]:
    """A function that runs one eager step of :func:`resnet50` with SGD on noise, channels last; bfloat16 by autocast."""
    place = device()
    torch.backends.cudnn.benchmark = True
    network = resnet50(norm).to(place, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=False)
    images = torch.randn((batch, 3, image_size, image_size), device=place).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=place)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        synchronise()

    return step
