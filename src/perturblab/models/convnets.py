"""LeNet and CifarNet of the reproduction: perturbation layers with pooling between, two linear layers.

Reference: github.com/michaelklachko/pnn.pytorch, models.py, LeNet and CifarNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from perturblab.layers.activations import activation
from perturblab.layers.pooling import pool
from perturblab.models.perturb_resnet import PerturbOptions
from perturblab.models.skeleton import Task, halved


@dataclass(frozen=True)
class ConvNetOptions(PerturbOptions):
    """Options of LeNet and CifarNet: those of the perturbative ResNets, and dropout.

    Args:
        dropout: share of the values dropped before each linear layer.
    """

    dropout: float = 0.5


def convnet(
    task: Task, options: ConvNetOptions, masks: torch.Generator, *, layers: Sequence[int], hidden: int
) -> nn.Sequential:
    """Build LeNet or CifarNet.

    Args:
        task: images and classes.
        options: see `ConvNetOptions`.
        masks: the stream that decides the masks.
        layers: how many layers stand before each pooling.
        hidden: width of the hidden linear layer.
    """
    size = halved(task.size) if options.first_filter_size == 7 else task.size
    features: list[nn.Module] = []
    for depth in layers:
        for _ in range(depth):
            first = not features
            features.append(
                options.first_layer(masks, task.channels, task.size)
                if first
                else options.layer(masks, options.nfilters, options.nfilters, size=size)
            )
        features.append(pool(options.pool_type, 2, overlapping=True))
        size = halved(size)
    inputs = options.nfilters * size[0] * size[1]
    return nn.Sequential(*features, nn.Flatten(), *_classifier(inputs, hidden, task.nclasses, options))


def _classifier(inputs: int, hidden: int, nclasses: int, options: ConvNetOptions) -> list[nn.Module]:
    return [
        nn.Dropout(options.dropout),
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        activation(options.act),
        nn.Dropout(options.dropout),
        nn.Linear(hidden, nclasses),
    ]
