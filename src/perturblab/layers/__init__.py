"""Layers that perturb their features: pure function first, module second."""

from perturblab.layers.activations import ACTIVATIONS, activation
from perturblab.layers.lbc import LocalBinaryConv2d, draw_anchors, local_binary_conv2d
from perturblab.layers.masks import Masks, Noise, draw_masks
from perturblab.layers.perturb import (
    NoiseLayer,
    PerturbConv2d,
    PerturbLayer,
    PerturbLayerFirst,
    perturb,
    perturb_conv2d,
)

__all__ = [
    "ACTIVATIONS",
    "LocalBinaryConv2d",
    "Masks",
    "Noise",
    "NoiseLayer",
    "PerturbConv2d",
    "PerturbLayer",
    "PerturbLayerFirst",
    "activation",
    "draw_anchors",
    "draw_masks",
    "local_binary_conv2d",
    "perturb",
    "perturb_conv2d",
]
