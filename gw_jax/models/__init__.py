"""Networks whose norms can be chosen."""

from gw_jax.models.create_model import arguments_of, create_model, list_models, portable_arguments
from gw_jax.models.mnist import MLP, AutoEncoder, LeNet
from gw_jax.models.resnet import Architecture, ResNet

__all__ = [
    "MLP",
    "Architecture",
    "AutoEncoder",
    "LeNet",
    "ResNet",
    "arguments_of",
    "create_model",
    "list_models",
    "portable_arguments",
]
