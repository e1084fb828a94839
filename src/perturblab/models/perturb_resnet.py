"""The reproduction's net: a ResNet of `PerturbLayer`s with every option, and the authors' reply to it.

Reference: github.com/michaelklachko/pnn.pytorch, models.py; with code "up",
github.com/juefeix/pnn.pytorch.update, models.py. The bottleneck form is what users of the latter asked for
(issue 6): the authors' NoiseBottleneck with this layer in place of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from perturblab.layers import Noise, PerturbLayer, PerturbLayerFirst, activation
from perturblab.layers.pooling import pool
from perturblab.models.skeleton import ResNet, Size, Task, conv_norm, down, halved


@dataclass(frozen=True)
class PerturbOptions:
    """Options of the nets made of `PerturbLayer`s.

    Args:
        nfilters: width of the first stage.
        nmasks, unique_masks, train_masks, level, noise_type: the masks, see `perturblab.layers.Noise`.
        constant_masks, redraw_masks, untied_bias: controls, see `perturblab.layers.Noise`.
        mask_memory: "fp32", "bf16" or "seed", see `perturblab.layers.Noise`.
        scale_noise: factor on the level of the first layer.
        filter_size: 0 for perturbation layers; 1, 3, 5 or 7 for plain convolutions.
        first_filter_size: the same for the first layer.
        mix_maps: a second 1x1 convolution in every perturbation layer.
        act: activation function.
        use_act: activation after the mask of the first layer too.
        pool_type: "max" or "avg".
        code: "up" takes the authors' reply variant of the first layer.

    Raises:
        ValueError: masks that cannot be.
    """

    nfilters: int = 64
    nmasks: int = 1
    unique_masks: bool = True
    train_masks: bool = False
    level: float = 0.5
    noise_type: str = "uniform"
    constant_masks: bool = False
    redraw_masks: str = "never"
    untied_bias: bool = False
    mask_memory: str = "fp32"
    scale_noise: float = 1.0
    filter_size: int = 0
    first_filter_size: int = 0
    mix_maps: bool = False
    act: str = "relu"
    use_act: bool = False
    pool_type: str = "max"
    code: str = "kl"

    def __post_init__(self) -> None:
        self.noise()

    def noise(self) -> Noise:
        """The masks of every layer after the first."""
        return Noise(
            nmasks=self.nmasks,
            unique=self.unique_masks,
            level=self.level,
            kind=self.noise_type,
            trained=self.train_masks,
            constant=self.constant_masks,
            redraw=self.redraw_masks,
            outside=self.untied_bias,
            memory=self.mask_memory,
        )

    def layer(self, masks: torch.Generator, *channels: int, size: Size) -> PerturbLayer:
        """One layer after the first, from (N, C, *size) to (N, O, *size)."""
        return PerturbLayer(
            *channels,
            size=size,
            noise=self.noise(),
            filter_size=self.filter_size,
            act=self.act,
            mix_maps=self.mix_maps,
            generator=masks,
        )

    def first_layer(self, masks: torch.Generator, channels: int, size: Size) -> PerturbLayer:
        """The first layer, from the image to ``nfilters`` channels; a 7x7 convolution has stride 2."""
        return PerturbLayer(
            channels,
            self.nfilters,
            size=size,
            noise=replace(self.noise(), level=self.level * self.scale_noise),
            filter_size=self.first_filter_size,
            act=self.act,
            use_act=self.use_act,
            mix_maps=self.mix_maps,
            first=True,
            generator=masks,
        )


def _reply_first(options: PerturbOptions, masks: torch.Generator, task: Task) -> nn.Module:
    """The reply's first layer: 5 * nfilters masks a channel at 20 times the level, or a convolution; sigmoid."""
    width = task.channels * options.nfilters  # 3 * nfilters on colour images, as published
    if options.first_filter_size:
        plain = replace(options, nfilters=width, act="sigmoid")
        return plain.first_layer(masks, task.channels, task.size)
    level = options.level * options.scale_noise * 20
    noise = replace(options.noise(), nmasks=5 * options.nfilters, level=level)
    return PerturbLayerFirst(
        task.channels, width, size=task.size, noise=noise, mix_maps=options.mix_maps, generator=masks
    )


def _stem(options: PerturbOptions, masks: torch.Generator, task: Task) -> nn.Sequential:
    reply = options.code == "up"
    first = _reply_first(options, masks, task) if reply else options.first_layer(masks, task.channels, task.size)
    layers = [first]
    if options.first_filter_size == 7:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    if reply:
        width = task.channels * options.nfilters
        layers += [*conv_norm(width, options.nfilters), activation(options.act)]
    return nn.Sequential(*layers)


def _basic(
    options: PerturbOptions, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        options.layer(masks, in_channels, planes, size=size),
        pool(options.pool_type, stride),
        options.layer(masks, planes, planes, size=down(size, stride)),
    )


def _bottleneck(
    options: PerturbOptions, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_channels, planes),
        activation(options.act),
        options.layer(masks, planes, planes, size=size),
        pool(options.pool_type, stride),
        *conv_norm(planes, 4 * planes),
    )


def perturb_resnet(
    task: Task, options: PerturbOptions, masks: torch.Generator, *, nblocks: Sequence[int], bottleneck: bool = False
) -> ResNet:
    """Build a perturbative ResNet.

    Raises:
        ValueError: an option is out of range, or groups cannot divide the channels.
    """
    size = halved(task.size, 2) if options.first_filter_size == 7 else task.size
    body = partial(_bottleneck if bottleneck else _basic, options, masks)
    stem = _stem(options, masks, task)
    return ResNet(stem, size, body, nblocks, options.nfilters, task.nclasses, 4 if bottleneck else 1)
