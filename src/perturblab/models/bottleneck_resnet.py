"""The pre-activation bottleneck ResNet on which BatchOut was tried at the last features.

The trial names nine bottlenecks in each of three stages, "(16, 32, 64)" and a last layer of 4096 inputs, but left no
code. Two readings of the net that it points to give 4096, so there is an option.

Reference: A. Rosebrock, "Deep Learning for Computer Vision with Python", practitioner bundle, ResNet.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perturblab.models.batchout_nets import pooled
from perturblab.models.skeleton import Task, down
from perturblab.records.choices import Reading, check_choice


@dataclass(frozen=True)
class BottleneckOptions:
    """Options of the net.

    Args:
        nfilters: the first of the three widths (16, 32, 64), each of them twice the one before.
        reading: "A", the widths are those of a block's output, a quarter of it inside, and the last map is not
            pooled; "B", they are those inside a block, its output is four times as wide, and the last map is pooled
            2x2. Only B reaches the accuracy of the trial.
        blocks: bottlenecks in each stage.
    """

    nfilters: int = 16
    reading: str = "B"
    blocks: int = 9


class Bottleneck(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, and the sum with the shortcut; (N, C, H, W) to (N, O, H', W').

    The shortcut is x itself, or in the first block of a stage a 1x1 convolution of the first activation.

    Args:
        in_channels: C.
        inner: channels of the 3x3 convolution.
        out_channels: O.
        stride: of the 3x3 convolution and of the shortcut.
        first: whether the block is the first of its stage.
    """

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, first: bool) -> None:
        super().__init__()
        self.act = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out_channels, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if first else None

    def forward(self, x: Tensor) -> Tensor:
        act = self.act(x)
        out: Tensor = self.body(act) + (x if self.shortcut is None else self.shortcut(act))
        return out


def bottleneck_resnet(task: Task, options: BottleneckOptions, masks: torch.Generator) -> nn.Sequential:
    """Build the net; `flatten` gives the last features, 4096 at the published sizes.

    Raises:
        ValueError: no such reading, no block in a stage, or a width that reading A cannot divide by 4.
    """
    inner, outer = _widths(options)
    size, width = task.size, options.nfilters
    parts = OrderedDict[str, nn.Module](
        norm=nn.BatchNorm2d(task.channels), stem=nn.Conv2d(task.channels, width, 3, padding=1, bias=False)
    )
    for stage in range(3):
        blocks = []
        for block in range(options.blocks):
            stride, planes = 2 if stage and not block else 1, outer * 2**stage
            blocks.append(Bottleneck(width, inner * 2**stage, planes, stride, first=not block))
            width, size = planes, down(size, stride)
        parts[f"stage{stage + 1}"] = nn.Sequential(*blocks)
    parts["last"] = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
    if options.reading == "B":
        parts["pool"], size = pooled(size, nn.AvgPool2d)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(width * size[0] * size[1], task.nclasses)
    return nn.Sequential(parts)


def _widths(options: BottleneckOptions) -> tuple[int, int]:
    """Channels inside and after the blocks of the first stage."""
    check_choice("reading", options.reading, Reading)
    if options.blocks < 1:
        raise ValueError(f"blocks is {options.blocks}; every stage needs at least 1")
    if options.reading == "B":
        return options.nfilters, 4 * options.nfilters
    if options.nfilters % 4:
        raise ValueError(f"nfilters is {options.nfilters}; reading A needs a multiple of 4, or use reading B")
    return options.nfilters // 4, options.nfilters
