"""Networks whose norms can be chosen."""

from gw_jax.models.create_model import create_model, list_models
from gw_jax.models.mnist import MLP, AutoEncoder, LeNet
from gw_jax.models.pretrained import load_pretrained, save_pretrained
from gw_jax.models.resnet import Architecture, ResNet

__all__ = [
    "MLP",
    "Architecture",
    "AutoEncoder",
    "LeNet",
    "ResNet",
    "create_model",
    "list_models",
    "load_pretrained",
    "save_pretrained",
]
