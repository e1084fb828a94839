"""Nets that this project did not write, in several styles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import seeded


class Functional(nn.Module):
    """Everything but the layers with weights is a function; odd sizes, a stride, no padding in front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.mix = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(F.relu(self.conv2(x)), 0.5, self.training)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.mix(x), 1), 1))


class Shared(nn.Module):
    """One convolution under three names and called three times, one block in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        block = nn.Sequential(self.again, nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([block, block])
        self.named = nn.ModuleDict({"last": self.again, "head": nn.Linear(4, 5)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.named["head"](self.named["last"](x).mean((2, 3)))


def nested() -> nn.Module:
    """Sequential in Sequential; every way to treat an edge."""
    deep = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"), nn.Sequential(nn.BatchNorm2d(4)))
    ends = [nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2), nn.Conv2d(4, 8, 2, stride=2)]
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    net = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1)), deep), *ends, head)
    net(torch.zeros(2, 3, 12, 8))
    return net


FOREIGN: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "functional": (Functional, (15, 13)),
    "shared": (Shared, (8, 6)),
    "nested": (nested, (12, 8)),
}
foreign = pytest.mark.parametrize("style", FOREIGN)


def new(style: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FOREIGN[style][0]()


def images(style: str, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *FOREIGN[style][1], generator=seeded(5))


def structure(model: nn.Module) -> list[Any]:
    """All that surgery may not change where it fails: the very modules, tensors and their values, modes, hooks."""
    found: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        found.append((name, id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks)))
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.append((name, id(tensor), tensor.requires_grad, tensor.dtype, tensor.detach().clone().tolist()))
    return found
