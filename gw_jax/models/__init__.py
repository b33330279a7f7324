"""Networks whose norms can be chosen."""

from gw_jax.models.create_model import create_model
from gw_jax.models.resnet import ResNet

__all__ = ["ResNet", "create_model"]
