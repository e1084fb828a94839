"""The authors' first net: a ResNet whose 3x3 convolutions are `NoiseLayer`s.

Reference: github.com/juefeix/pnn.pytorch, models/naiveresnet.py; the first convolution frozen at random is from
github.com/juefeix/pnn.pytorch.update, models.py:513.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from perturblab.layers import Noise, NoiseLayer
from perturblab.layers.pooling import pool
from perturblab.models.skeleton import ResNet, Size, Task, conv_norm, conv_stem, down, halved


@dataclass(frozen=True)
class NoiseResNetOptions:
    """Options of the noise ResNets.

    Args:
        nfilters: width of the first stage.
        level: factor on the masks, which are uniform in [-1, 1).
        first_filter_size: 7 (stride 2, then a max-pool), or 3.
        constant_masks, redraw_masks, untied_bias: controls, see `perturblab.layers.Noise`.
        mask_memory: "fp32", "bf16" or "seed", see `perturblab.layers.Noise`.
        code: "up" freezes the first convolution at its random values; "or" and "kl" learn it.

    Raises:
        ValueError: a first filter size that is neither 3 nor 7, or masks that cannot be.
    """

    nfilters: int = 64
    level: float = 0.5
    first_filter_size: int = 7
    constant_masks: bool = False
    redraw_masks: str = "never"
    untied_bias: bool = False
    mask_memory: str = "fp32"
    code: str = "kl"

    def __post_init__(self) -> None:
        if self.first_filter_size not in (3, 7):
            got = self.first_filter_size
            raise ValueError(f"first_filter_size is {got}; this net has 3 or 7 (for masks first: perturb_resnet18)")
        self.noise()

    def noise(self) -> Noise:
        """The masks of every layer: one a channel and pixel."""
        return Noise(
            level=self.level,
            constant=self.constant_masks,
            redraw=self.redraw_masks,
            outside=self.untied_bias,
            memory=self.mask_memory,
        )


def _basic(noise: Noise, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size) -> nn.Module:
    return nn.Sequential(
        NoiseLayer(in_channels, planes, size=size, noise=noise, generator=masks),
        pool("max", stride),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        NoiseLayer(planes, planes, size=down(size, stride), noise=noise, generator=masks),
        nn.BatchNorm2d(planes),
    )


def _bottleneck(
    noise: Noise, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_channels, planes),
        nn.ReLU(),
        NoiseLayer(planes, planes, size=size, noise=noise, generator=masks),
        pool("max", stride),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        *conv_norm(planes, 4 * planes),
    )


def noise_resnet(
    task: Task, options: NoiseResNetOptions, masks: torch.Generator, *, nblocks: Sequence[int], bottleneck: bool = False
) -> ResNet:
    """Build a noise ResNet."""
    stem = conv_stem(task.channels, options.nfilters, options.first_filter_size)
    if options.code == "up":
        stem[0].requires_grad_(False)
    size = halved(task.size, 2) if options.first_filter_size == 7 else task.size
    body = partial(_bottleneck if bottleneck else _basic, options.noise(), masks)
    return ResNet(stem, size, body, nblocks, options.nfilters, task.nclasses, 4 if bottleneck else 1)
