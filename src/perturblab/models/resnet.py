"""ResNet with 3x3 convolutions in the CIFAR form: the baseline of the dispute.

Reference: He et al., Deep Residual Learning, CVPR 2016; github.com/kuangliu/pytorch-cifar.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from perturblab.models.skeleton import Blocks, ResNet, Size, Task, conv_norm, conv_stem


@dataclass(frozen=True)
class ResNetOptions:
    """Options of the plain ResNets.

    Args:
        nfilters: width of the first stage.
    """

    nfilters: int = 64


def _basic(in_channels: int, planes: int, stride: int, size: Size) -> nn.Module:
    return nn.Sequential(*conv_norm(in_channels, planes, 3, stride), nn.ReLU(), *conv_norm(planes, planes, 3))


def _bottleneck(in_channels: int, planes: int, stride: int, size: Size) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_channels, planes),
        nn.ReLU(),
        *conv_norm(planes, planes, 3, stride),
        nn.ReLU(),
        *conv_norm(planes, 4 * planes),
    )


def resnet(
    task: Task, options: ResNetOptions, masks: torch.Generator, *, nblocks: Sequence[int], bottleneck: bool = False
) -> ResNet:
    """Build a ResNet; it has no masks and leaves their stream alone."""
    blocks = Blocks(nblocks, _bottleneck, expansion=4) if bottleneck else Blocks(nblocks, _basic)
    stem = conv_stem(task.channels, options.nfilters, 3)
    return ResNet(stem, task.size, blocks, options.nfilters, task.nclasses)
