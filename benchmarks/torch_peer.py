"""Group Whitening in PyTorch, written from the paper's formula: what the layers of this project are timed beside."""

from typing import Any

import torch


class GroupWhitening(torch.nn.Module):
    """Whitens ``x`` ``[n, c, *spatial]`` in ``num_groups`` groups of channels of every sample, as users of PyTorch would.

    Statistics are in float32, also under autocast. There is one batched product for the covariance, three an iteration and
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


def synchronise(device: str) -> None:
    """Waits for what was started on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def layer_steps(shape: tuple[int, ...], dtype: str, *, compiled: bool) -> dict[str, Any]:
    """Functions that run the layer once, "forward" and "forward+backward", on an input ``[n, h, w, c]`` of JAX's order.

    The input is channels first and contiguous, the layout in which PyTorch's batched products need no copy.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, h, w, c = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((n, c, h, w), generator=generator).to(device, getattr(torch, dtype)).requires_grad_()
    cotangent = torch.randn((n, c, h, w), generator=generator).to(device, getattr(torch, dtype))
    layer = GroupWhitening(c).to(device)
    run = torch.compile(layer) if compiled else layer

    def forward() -> None:
        with torch.no_grad():
            run(x)
        synchronise(device)

    def both() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        run(x).backward(cotangent)
        synchronise(device)

    return {"forward": forward, "forward+backward": both}
