"""The residual net of local binary convolutions.

Reference: github.com/juefeix/lbcnn.torch, models/resnet-binary-felix.lua and resnet-dense-felix.lua (the learned
twin, anchors "dense").
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perturblab.layers.lbc import LocalBinaryConv2d
from perturblab.models.skeleton import Task


@dataclass(frozen=True)
class LBCOptions:
    """Options of the net; the defaults are its MNIST recipe.

    Args:
        nfilters: channels between the blocks.
        nweights: anchors in each block.
        depth: number of blocks.
        full: width of the hidden linear layer.
        anchors: "binary" or "gaussian" (fixed), or "dense": a learned 3x3 convolution with bias.
        sparsity: draws as a share of the anchors' values.
        dropout: share of the values dropped before each linear layer.
    """

    nfilters: int = 16
    nweights: int = 512
    depth: int = 75
    full: int = 128
    anchors: str = "binary"
    sparsity: float = 0.5
    dropout: float = 0.5


class Identity(nn.Module):
    """body(x) + x, (N, C, H, W), with no activation after the sum."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + x
        return out


def _filters(options: LBCOptions, masks: torch.Generator) -> list[nn.Module]:
    width, nweights = options.nfilters, options.nweights
    if options.anchors == "dense":
        return [nn.Conv2d(width, nweights, 3, padding=1), nn.ReLU(), nn.Conv2d(nweights, width, 1)]
    return [
        LocalBinaryConv2d(width, width, nweights, anchors=options.anchors, sparsity=options.sparsity, generator=masks)
    ]


def lbcnet(task: Task, options: LBCOptions, masks: torch.Generator) -> nn.Sequential:
    """Build the net.

    Raises:
        ValueError: the image is smaller than the 5x5 pooling at the end.
    """
    if min(task.size) < 5:
        raise ValueError(f"images are {task.size}; lbcnet ends in a 5x5 pooling and needs at least 5x5")
    width = options.nfilters
    blocks = [Identity(nn.Sequential(nn.BatchNorm2d(width), *_filters(options, masks))) for _ in range(options.depth)]
    inputs = width * (task.size[0] // 5) * (task.size[1] // 5)
    parts = {
        "stem": nn.Sequential(nn.Conv2d(task.channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        "blocks": nn.Sequential(*blocks),
        "pool": nn.AvgPool2d(5),
        "flatten": nn.Flatten(),
        "hidden": nn.Sequential(nn.Dropout(options.dropout), nn.Linear(inputs, options.full), nn.ReLU()),
        "linear": nn.Sequential(nn.Dropout(options.dropout), nn.Linear(options.full, task.nclasses)),
    }
    return nn.Sequential(OrderedDict(parts))
