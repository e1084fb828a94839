"""Parts that the nets share: the task, the residual skeleton with its layers from a factory, the published init."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Size = tuple[int, int]
# body(in_channels, planes, stride, size of the input) -> the residual branch of one block
Body = Callable[[int, int, int, Size], nn.Module]


@dataclass(frozen=True)
class Task:
    """The task that a net is built for.

    Args:
        nclasses: number of classes.
        channels: channels of an image.
        size: (H, W) of an image, in pixels.

    Raises:
        ValueError: one of them is below 1.
    """

    nclasses: int = 10
    channels: int = 3
    size: Size = (32, 32)

    def __post_init__(self) -> None:
        if min(self.nclasses, self.channels, *self.size) < 1:
            raise ValueError(f"{self} cannot be: classes, channels, height and width must all be at least 1")


def halved(size: Size, times: int = 1) -> Size:
    """Compute the size of a map after layers of stride 2; odd sizes round up, as strided convolutions do."""
    for _ in range(times):
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return size


def down(size: Size, stride: int) -> Size:
    """Compute the size of a map after a layer of stride 1 or 2."""
    return halved(size) if stride == 2 else size


def conv_norm(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> list[nn.Module]:
    """Make a convolution without bias, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def conv_stem(channels: int, width: int, filter_size: int) -> nn.Sequential:
    """Make the first layers of a net without masks in front: 3x3, or 7x7 of stride 2 and a max-pool of stride 2."""
    stem = [*conv_norm(channels, width, filter_size, 2 if filter_size == 7 else 1), nn.ReLU()]
    if filter_size == 7:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*stem)


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), (N, C, H, W) to (N, O, H', W').

    The published sum was in place on the output of a ReLU, which today's autograd refuses.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class Blocks:
    """The residual blocks of a net.

    Args:
        counts: blocks in each stage.
        body: makes the residual branch of one block.
        expansion: a block's output channels over its planes (4 for a bottleneck).
    """

    counts: Sequence[int]
    body: Body
    expansion: int = 1


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, mean over the final map, linear layer: (N, C, H, W) to (N, classes).

    Args:
        stem: first layers, from the image to ``nfilters`` channels.
        size: (H, W) after the stem.
        blocks: of the stages.
        nfilters: width of the first stage; it doubles from stage to stage.
        nclasses: number of classes.
    """

    def __init__(self, stem: nn.Module, size: Size, blocks: Blocks, nfilters: int, nclasses: int) -> None:
        super().__init__()
        self.stem = stem
        width = nfilters
        for stage, depth in enumerate(blocks.counts):
            made = []
            for block in range(depth):
                planes, stride = nfilters * 2**stage, 2 if stage and not block else 1
                outputs = planes * blocks.expansion
                made.append(Residual(blocks.body(width, planes, stride, size), _shortcut(width, outputs, stride)))
                width, size = outputs, down(size, stride)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.linear = nn.Linear(width, nclasses)

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            if name != "linear":
                x = part(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))


@torch.no_grad()
def init_weights(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights as the published codes did, from one stream.

    Every convolution (also 1x1, grouped, shortcut and frozen): N(0, sqrt(2 / (k * k * out_channels))), which is
    fan-out without regard to groups. Batch norm: 1 and 0. Linear weights and all biases: PyTorch's defaults,
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Masks and anchors are not touched.

    Args:
        net: any module; modified in place, except on the meta device, where there is nothing to draw.
        generator: the stream that decides the values.

    Reference:
        github.com/michaelklachko/pnn.pytorch, utils.py, weights_init.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module.weight.is_meta:
            continue
        fan_in = module.weight[0].numel()
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            module.weight.normal_(0.0, math.sqrt(2.0 / (area * module.out_channels)), generator=generator)
        else:
            module.weight.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
        if module.bias is not None:
            module.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
