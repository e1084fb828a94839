"""The two plain nets of the BatchOut paper: convolutions, poolings, linear layers, nothing else.

Nothing of BatchOut is in them; it is put on the outputs of the modules that `sites.py` names.

Reference: Subramanya, Mopuri and Babu, "BatchOut: Batch-level feature augmentation to improve robustness to
adversarial examples", ICVGIP 2018, tables 1 and 2. The paper says nothing of padding, hence the option.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from perturblab.models.skeleton import Size, Task


@dataclass(frozen=True)
class BatchOutOptions:
    """Options of both nets; the defaults are the published net where the paper says, else its reproduction's.

    Args:
        nfilters: filters of the first convolution; every other width is a published multiple of it.
        padding: pixels around every map before a convolution.
        dropout: share of the values dropped after the last pooling and before the last linear layer.
    """

    nfilters: int = 32
    padding: int = 1
    dropout: float = 0.5


@dataclass(frozen=True)
class _Plan:
    """Differences of the two nets; widths are multiples of ``nfilters``.

    Args:
        name: the net's name, for messages.
        kernel: side of every filter.
        stages: widths of the convolutions before each pooling.
        hidden: widths of the linear layers before the last.
        smallest: the paddings there are, and the smallest image that each leaves a pixel of.
    """

    name: str
    kernel: int
    stages: Sequence[Sequence[int]]
    hidden: Sequence[int]
    smallest: Mapping[int, int]


_MNIST = _Plan("batchout_mnist", 5, ((1,), (1,)), (8,), {0: 14, 1: 8, 2: 1})
_CIFAR = _Plan("batchout_cifar", 3, ((1, 2), (2, 2, 2)), (16, 16), {0: 18, 1: 1})


def batchout_mnist(task: Task, options: BatchOutOptions, masks: torch.Generator) -> nn.Sequential:
    """Build the net of table 1: conv1, pool1, conv2, pool2, fc1, fc2, with 5x5 filters.

    Raises:
        ValueError: the padding is not 0, 1 or 2, or leaves nothing of so small an image.
    """
    return _net(task, options, _MNIST)


def batchout_cifar(task: Task, options: BatchOutOptions, masks: torch.Generator) -> nn.Sequential:
    """Build the net of table 2: conv1, conv2, pool1, conv3, conv4, conv5, pool2, fc1, fc2, fc3, with 3x3 filters.

    Raises:
        ValueError: the padding is not 0 or 1, or leaves nothing of so small an image.
    """
    return _net(task, options, _CIFAR)


def _net(task: Task, options: BatchOutOptions, plan: _Plan) -> nn.Sequential:
    if options.padding not in plan.smallest:
        raise ValueError(f"padding is {options.padding}; {plan.name} has {', '.join(map(str, plan.smallest))}")
    if min(task.size) < (least := plan.smallest[options.padding]):
        needed = f"{plan.name} with padding {options.padding} needs at least {least}x{least}"
        raise ValueError(f"images are {task.size}; {needed}; use padding {max(plan.smallest)} or larger images")
    parts: list[tuple[str, nn.Module]] = []
    inputs, size = task.channels, task.size
    for stage in plan.stages:
        for width in (options.nfilters * multiple for multiple in stage):
            parts += [("conv", nn.Conv2d(inputs, width, plan.kernel, padding=options.padding)), ("relu", nn.ReLU())]
            edge = 2 * options.padding - plan.kernel + 1
            inputs, size = width, (size[0] + edge, size[1] + edge)
        layer, size = pooled(size)
        parts.append(("pool", layer))
    parts += [("dropout", nn.Dropout(options.dropout)), ("flatten", nn.Flatten())]
    inputs *= size[0] * size[1]
    for width in (options.nfilters * multiple for multiple in plan.hidden):
        parts += [("fc", nn.Linear(inputs, width)), ("relu", nn.ReLU())]
        inputs = width
    parts += [("dropout", nn.Dropout(options.dropout)), ("fc", nn.Linear(inputs, task.nclasses))]
    return _numbered(parts)


def _numbered(parts: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """Name the parts by kind and number, conv1, conv2, ...; what there is only one of has no number."""
    total, seen = Counter(kind for kind, _ in parts), Counter[str]()
    named = OrderedDict[str, nn.Module]()
    for kind, part in parts:
        seen[kind] += 1
        named[f"{kind}{seen[kind]}" if total[kind] > 1 else kind] = part
    return nn.Sequential(named)


def pooled(size: Size, kind: type[nn.MaxPool2d] | type[nn.AvgPool2d] = nn.MaxPool2d) -> tuple[nn.Module, Size]:
    """Make a 2x2 pooling that rounds down, and compute (H, W) after it; an edge of one pixel stays."""
    kernel = (min(2, size[0]), min(2, size[1]))
    return kind(kernel), (size[0] // kernel[0], size[1] // kernel[1])


@torch.no_grad()
def init_default(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights as PyTorch does by default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), but from one stream.

    Args:
        net: any module; weights and biases of its convolutions and linear layers are modified in place, except on
            the meta device, where there is nothing to draw.
        generator: the stream that decides the values.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            bound = 1 / math.sqrt(module.weight[0].numel())
            for values in module.parameters(recurse=False):
                values.uniform_(-bound, bound, generator=generator)
