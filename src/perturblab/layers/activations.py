"""The activation functions that the published commands can name."""

from collections.abc import Callable

from torch import nn

from perturblab.records.choices import Act, check_choice

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "lrelu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "rrelu": nn.RReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
"""Constructors of activations, by the names that the published codes give them."""


def activation(name: str) -> nn.Module:
    """Make a new activation module, never in place.

    Every place of a net gets its own: the published code shared one module, so that a single PReLU slope
    served three places and stood under three names in the state dict.

    Args:
        name: a key of `ACTIVATIONS`.

    Raises:
        ValueError: the name is not one of them.
    """
    check_choice("act", name, Act)
    return ACTIVATIONS[name]()
