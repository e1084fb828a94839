"""The reproduction's net: a ResNet of `PerturbLayer`s with every option, and the authors' reply to it.

Reference: github.com/michaelklachko/pnn.pytorch, models.py; with code "up",
github.com/juefeix/pnn.pytorch.update, models.py. The bottleneck form is what users of the latter asked for
(issue 6): the authors' NoiseBottleneck with this layer in place of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from perturblab.layers.activations import activation
from perturblab.layers.masks import Masks, Noise
from perturblab.layers.perturb import PerturbLayer, PerturbLayerFirst, plain_layer
from perturblab.layers.pooling import pool
from perturblab.models.skeleton import Blocks, ResNet, Size, Task, conv_norm, down, halved


@dataclass(frozen=True)
class PerturbOptions(Noise):
    """Options of the nets made of `PerturbLayer`s: those of their masks, see `perturblab.layers.Noise`, and these.

    Args:
        nfilters: width of the first stage.
        scale_noise: factor on the level of the first layer.
        filter_size: 0 for perturbation layers; 1, 3, 5 or 7 for plain convolutions.
        first_filter_size: the same for the first layer.
        mix_maps: a second 1x1 convolution in every perturbation layer.
        act: activation function.
        use_act: activation after the mask of the first layer too.
        pool_type: "max", "avg", "stride" or "overlap", see `perturblab.layers.pooling.pool`.
        code: "up" takes the authors' reply variant of the first layer of a ResNet.

    Raises:
        ValueError: masks that cannot be.
    """

    level: float = 0.5
    nfilters: int = 64
    scale_noise: float = 1.0
    filter_size: int = 0
    first_filter_size: int = 0
    mix_maps: bool = False
    act: str = "relu"
    use_act: bool = False
    pool_type: str = "max"
    code: str = "kl"

    def layer(self, masks: torch.Generator, in_channels: int, out_channels: int, *, size: Size) -> nn.Module:
        """Make a layer after the first, from (N, C, *size) to (N, O, *size)."""
        if self.filter_size:
            return plain_layer(in_channels, out_channels, self.filter_size, act=self.act)
        drawn = Masks(in_channels, size, self.noise(), generator=masks)
        return PerturbLayer(drawn, out_channels, act=self.act, mix_maps=self.mix_maps)

    def first_noise(self) -> Noise:
        """Return the options of the first layer's masks."""
        return replace(self.noise(), level=self.level * self.scale_noise)

    def first_layer(self, masks: torch.Generator, channels: int, size: Size) -> nn.Module:
        """Make the first layer, from the image to ``nfilters`` channels; a 7x7 convolution has stride 2."""
        if self.first_filter_size:
            return plain_layer(channels, self.nfilters, self.first_filter_size, act=self.act, first=True)
        drawn = Masks(channels, size, self.first_noise(), generator=masks)
        return PerturbLayer(drawn, self.nfilters, act=self.act, use_act=self.use_act, mix_maps=self.mix_maps)


@dataclass(frozen=True)
class PerturbResNetOptions(PerturbOptions):
    """Options of the perturbative ResNets: those above, and what the reply changed in the first layer, one by one.

    Args:
        first_masks: masks a channel in the first layer as a multiple of ``nfilters``; 0 for ``nmasks`` of them.
        first_sigmoid: batch norm and sigmoid around the first layer: mask, batch norm, sigmoid, 1x1, batch norm,
            sigmoid. With a ``first_filter_size`` there is convolution, batch norm, sigmoid.
        first_mix: the first layer has ``nfilters`` maps for each channel of the image, and a second 1x1 convolution,
            batch norm and activation make ``nfilters`` of them all. Without it a 1x1 convolution of several
            ``first_masks`` is not grouped, since nothing behind it would mix the channels.

    With code "up" the first layer is the reply's: ``first_masks`` is 5, the other two are on, ``scale_noise`` is 20
    times as much, and ``use_act`` is not read.

    Raises:
        ValueError: masks that cannot be, or options that exclude each other.
    """

    first_masks: int = 0
    first_sigmoid: bool = False
    first_mix: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_masks < 0:
            raise ValueError(f"first_masks is {self.first_masks}; choose 0, or a multiple of nfilters of at least 1")
        if self.first_masks and self.first_filter_size:
            size = self.first_filter_size
            raise ValueError(
                f"first_masks is {self.first_masks}, and a first layer of {size}x{size} has none; drop one"
            )
        if self.first_sigmoid and self.use_act and self.code != "up":
            raise ValueError(
                "first_sigmoid puts the one activation behind the first mask, and use_act another; drop one"
            )

    def first(self) -> "PerturbResNetOptions":
        """Return the same options with the reply's first layer written option by option."""
        if self.code != "up":
            return self
        many = 0 if self.first_filter_size else self.first_masks or 5
        reply: dict[str, Any] = {"first_masks": many, "first_sigmoid": True, "first_mix": True, "use_act": False}
        return replace(self, code="kl", scale_noise=20 * self.scale_noise, **reply)


def _first(options: PerturbResNetOptions, masks: torch.Generator, task: Task) -> nn.Module:
    """Make the first layer, from the image to ``nfilters`` maps, or with ``first_mix`` as many for each channel."""
    width = options.nfilters * (task.channels if options.first_mix else 1)
    act = "sigmoid" if options.first_sigmoid else options.act
    if options.first_filter_size:
        return plain_layer(task.channels, width, options.first_filter_size, act=act, first=True)
    noise, groups = options.first_noise(), None
    if options.first_masks:
        noise = replace(noise, nmasks=options.first_masks * options.nfilters)
        groups = None if options.first_mix else 1
    drawn = Masks(task.channels, task.size, noise, generator=masks)
    if options.first_sigmoid:
        return PerturbLayerFirst(drawn, width, mix_maps=options.mix_maps, groups=groups)
    return PerturbLayer(drawn, width, act=act, use_act=options.use_act, mix_maps=options.mix_maps, groups=groups)


def _stem(options: PerturbResNetOptions, masks: torch.Generator, task: Task) -> nn.Sequential:
    options = options.first()
    layers = [_first(options, masks, task)]
    if options.first_filter_size == 7:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    if options.first_mix:
        layers += [*conv_norm(task.channels * options.nfilters, options.nfilters), activation(options.act)]
    return nn.Sequential(*layers)


def _basic(
    options: PerturbResNetOptions, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        options.layer(masks, in_channels, planes, size=size),
        pool(options.pool_type, stride),
        options.layer(masks, planes, planes, size=down(size, stride)),
    )


def _bottleneck(
    options: PerturbResNetOptions, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_channels, planes),
        activation(options.act),
        options.layer(masks, planes, planes, size=size),
        pool(options.pool_type, stride),
        *conv_norm(planes, 4 * planes),
    )


def perturb_resnet(
    task: Task,
    options: PerturbResNetOptions,
    masks: torch.Generator,
    *,
    nblocks: Sequence[int],
    bottleneck: bool = False,
) -> ResNet:
    """Build a perturbative ResNet.

    Raises:
        ValueError: an option is out of range, or groups cannot divide the channels.
    """
    size = halved(task.size, 2) if options.first_filter_size == 7 else task.size
    body = partial(_bottleneck if bottleneck else _basic, options, masks)
    stem = _stem(options, masks, task)
    blocks = Blocks(nblocks, body, expansion=4 if bottleneck else 1)
    return ResNet(stem, size, blocks, options.nfilters, task.nclasses)
