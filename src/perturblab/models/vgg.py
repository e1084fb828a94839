"""VGG19 for small images, and the net that the reproduction of BatchOut trained under that name.

That code put the same module into its list several times, so all 256 to 256 convolutions are one, and all 512 to 512
ones another: 8 convolutions instead of 16, each with a single batch norm. Here it is a net of its own, `vgg19_tied`.

Reference: github.com/Hrushikesh-github/Batchout-Robustness-method, vgg_change.py (ReLU before batch norm) and vgg.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perturblab.models.batchout_nets import pooled
from perturblab.models.skeleton import Task
from perturblab.records.choices import NormOrder, check_choice

# Width of each position as a multiple of the first; 0 is a pooling, which counts as a position too.
_POSITIONS = (1, 1, 0, 2, 2, 0, 4, 4, 4, 4, 0, 8, 8, 8, 8, 0, 8, 8, 8, 8, 0)


@dataclass(frozen=True)
class VGGOptions:
    """Options of both nets.

    Args:
        nfilters: filters of the first convolution; the others are 2, 4 and 8 times as wide.
        norm_order: "relu-bn" or "bn-relu", what follows a convolution.
    """

    nfilters: int = 64
    norm_order: str = "relu-bn"


class Block(nn.Module):
    """3x3 convolution, then ReLU and batch norm or the other way round; (N, C, H, W) to (N, O, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, norm_order: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm2d(out_channels)
        self.norm_order = norm_order

    def forward(self, x: Tensor, relu: nn.Module | None = None) -> Tensor:
        x, relu = self.conv(x), relu or self.relu
        out: Tensor = self.norm(relu(x)) if self.norm_order == "relu-bn" else relu(self.norm(x))
        return out


class Tied(nn.Module):
    """A position that calls a block held elsewhere, (N, C, H, W) to (N, C, H, W).

    It has a name and a ReLU of its own for hooks, but no parameters: the block is registered in `VGG.shared` alone.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self._held = (block,)  # in a tuple it is not registered: no file holds a tensor under two names

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._held[0](x, self.relu)
        return out


class VGG(nn.Module):
    """Positions `features.0` to `features.20`, `flatten` and `linear`: images (N, C, H, W) to logits (N, classes).

    Args:
        task: images and classes.
        options: see `VGGOptions`.
        tied: one block, held in `shared`, for all positions of a width that are as wide as the one before.
    """

    def __init__(self, task: Task, options: VGGOptions, *, tied: bool) -> None:
        super().__init__()
        features, shared = list[nn.Module](), dict[str, Block]()
        before, channels, size = 0, task.channels, task.size
        for multiple in _POSITIONS:
            width, name = multiple * options.nfilters, f"width{multiple}"
            if not multiple:
                layer, size = pooled(size)
            elif tied and multiple == before:
                shared[name] = shared.get(name) or Block(width, width, options.norm_order)
                layer = Tied(shared[name])
            else:
                layer = Block(channels, width, options.norm_order)
            features.append(layer)
            before, channels = multiple or before, width or channels
        self.features = nn.Sequential(*features)
        if tied:
            self.shared = nn.ModuleDict(shared)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels * size[0] * size[1], task.nclasses)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flatten(self.features(x)))
        return logits


def vgg19(task: Task, options: VGGOptions, masks: torch.Generator, *, tied: bool = False) -> VGG:
    """Build VGG19, or with ``tied`` the net of 8 convolutions that the reproduction called so.

    Raises:
        ValueError: no such order of norm and activation.
    """
    check_choice("norm_order", options.norm_order, NormOrder)
    return VGG(task, options, tied=tied)


@torch.no_grad()
def init_vgg(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights as the reproduction did, from one stream.

    Convolutions: N(0, sqrt(2 / (k * k * out_channels))), Kaiming's for fan-out. Linear: N(0, 0.01). All biases: 0.

    Args:
        net: any module; modified in place, except on the meta device.
        generator: the stream that decides the values.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            deviation = 0.01 if isinstance(module, nn.Linear) else math.sqrt(2 / module.weight[:, 0].numel())
            module.weight.normal_(0.0, deviation, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
