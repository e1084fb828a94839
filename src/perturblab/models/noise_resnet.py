"""The authors' first net: a ResNet whose 3x3 convolutions are `NoiseLayer`s, or have another operator for the masks.

Reference: github.com/juefeix/pnn.pytorch, models/naiveresnet.py; the first convolution frozen at random is from
github.com/juefeix/pnn.pytorch.update, models.py:513.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import nn

from perturblab.layers.lbc import AnchorConv2d
from perturblab.layers.masks import MaskOptions, Masks
from perturblab.layers.perturb import NoiseLayer
from perturblab.layers.pooling import pool
from perturblab.layers.shift import Shift
from perturblab.models.skeleton import Blocks, ResNet, Size, Task, conv_norm, conv_stem, down, halved
from perturblab.records.choices import Operator, check_choice

# (channels, the masks' stream) -> what stands in the place of the masks, (N, C, H, W) to (N, C, H, W)
_OTHERS: dict[str, Callable[[int, torch.Generator], nn.Module]] = {
    "shift": lambda channels, masks: Shift(),
    "depthwise": lambda channels, masks: nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
    "anchors": lambda channels, masks: AnchorConv2d(channels, channels, generator=masks),
    "anchors-depthwise": lambda channels, masks: AnchorConv2d(channels, channels, groups=channels, generator=masks),
}


@dataclass(frozen=True)
class NoiseResNetOptions(MaskOptions):
    """Options of the noise ResNets: those of masks, which are uniform in [-1, 1), one a channel and pixel; and these.

    Args:
        nfilters: width of the first stage.
        first_filter_size: 7 (stride 2, then a max-pool), or 3.
        operator: "noise" for the masks; in their place, with all else alike (controls): "shift", see
            `perturblab.layers.Shift`; "depthwise", a learned 3x3 convolution of each channel; "anchors", fixed random
            3x3 filters, as many as channels, see `perturblab.layers.AnchorConv2d`; "anchors-depthwise", one of them a
            channel. None but "noise" reads an option of masks.
        code: "up" freezes the first convolution at its random values; "or" and "kl" learn it.

    Raises:
        ValueError: a first filter size that is neither 3 nor 7, an unknown operator, an option of masks that it does
            not read, or masks that cannot be.
    """

    level: float = 0.5
    nfilters: int = 64
    first_filter_size: int = 7
    operator: str = "noise"
    code: str = "kl"

    def __post_init__(self) -> None:
        if self.first_filter_size not in (3, 7):
            got = self.first_filter_size
            raise ValueError(f"first_filter_size is {got}; this net has 3 or 7 (for masks first: perturb_resnet18)")
        check_choice("operator", self.operator, Operator)
        super().__post_init__()
        self._refuse_masks()

    def _refuse_masks(self) -> None:
        if self.operator == "noise":
            return
        masks = {field.name for field in fields(MaskOptions)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in masks and value != field.default:
                raise ValueError(
                    f"operator {self.operator} has no masks, and {field.name} is {value}; drop one of them"
                )

    def layer(self, masks: torch.Generator, in_channels: int, out_channels: int, *, size: Size) -> nn.Module:
        """One layer: masks or what stands in their place, ReLU, batch norm, 1x1; (N, C, *size) to (N, O, *size)."""
        if self.operator == "noise":
            return NoiseLayer(Masks(in_channels, size, self.noise(), generator=masks), out_channels)
        parts = {
            "operator": _OTHERS[self.operator](in_channels, masks),
            "act": nn.ReLU(),
            "norm": nn.BatchNorm2d(in_channels),
            "conv": nn.Conv2d(in_channels, out_channels, 1),
        }
        return nn.Sequential(OrderedDict(parts))


def _basic(
    options: NoiseResNetOptions, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        options.layer(masks, in_channels, planes, size=size),
        pool("max", stride),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        options.layer(masks, planes, planes, size=down(size, stride)),
        nn.BatchNorm2d(planes),
    )


def _bottleneck(
    options: NoiseResNetOptions, masks: torch.Generator, in_channels: int, planes: int, stride: int, size: Size
) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_channels, planes),
        nn.ReLU(),
        options.layer(masks, planes, planes, size=size),
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
    body = partial(_bottleneck if bottleneck else _basic, options, masks)
    blocks = Blocks(nblocks, body, expansion=4 if bottleneck else 1)
    return ResNet(stem, size, blocks, options.nfilters, task.nclasses)
