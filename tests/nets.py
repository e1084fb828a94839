"""Nets to attack: trained ones, ones whose robustness is known in closed form, and ones that mask their gradient."""

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perturblab.attacks import PixelModel, still_right, to_pixels
from perturblab.data.digits import read_digits

Images = tuple[Tensor, Tensor]
NORMS = ("linf", "l2")
SMALL = 0.02
CLASSES = 4  # of the net that every attack meets: as few as APGD's targeted loss allows


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def digits(*, train: bool = False, classes: int = 10) -> Images:
    """Pixels and labels of the bundled digits, of the first classes only."""
    decoded = read_digits()
    split = decoded.train if train else decoded.test
    rows = split.labels < classes
    return to_pixels(split.images[rows]), split.labels[rows]


def drawn(net: nn.Module, seed: int) -> nn.Module:
    """Give a net weights that depend on the seed only, not on what ran before."""
    generator = seeded(seed)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                bound = part.weight[0].numel() ** -0.5
                part.weight.uniform_(-bound, bound, generator=generator)
                part.bias.uniform_(-bound, bound, generator=generator)
    return net


@cache
def trained(seed: int = 0, classes: int = 10, epochs: int = 12) -> PixelModel:
    """A small convolutional net, about 95 % right on the digits, in eval mode; its normalisation is inside."""
    x, y = digits(train=True, classes=classes)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, classes)]
    model = PixelModel(drawn(nn.Sequential(*layers), seed), [0.3], [0.35]).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = seeded(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    optimiser.zero_grad()
    return model.eval()


def right_ones(model: nn.Module, count: int, classes: int = 10) -> Images:
    """Test images that a model classifies right."""
    x, y = digits(classes=classes)
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero().flatten()[:count]
    assert len(rows) == count
    return x[rows], y[rows]


class Linear(nn.Module):
    """Logits W x + b, over all pixels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(*reversed(weight.shape))
        self.linear.weight.data, self.linear.bias.data = weight, bias
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def linear(classes: int, *, pixels: int = 24, seed: int = 0) -> Linear:
    generator = seeded(seed)
    weight = torch.randn(classes, pixels, generator=generator)
    return Linear(weight, torch.randn(classes, generator=generator) * 0.1 - weight.sum(1) / 2)


def grey(images: int = 300, *, pixels: int = 24, spread: float = 0.05) -> Tensor:
    """Images so near to the middle that the bounds do not matter."""
    height = 8 if pixels == 64 else 4
    return 0.5 + spread * (2 * torch.rand(images, 1, height, pixels // height, generator=seeded(9)) - 1)


class Planted(nn.Module):
    """Right (class 0) everywhere but within a small distance of planted points, to which the gradient leads.

    Args:
        points: (P, C, H, W).
        reach: distance from a point, in l2, up to which the answer is wrong.
    """

    def __init__(self, points: Tensor, reach: float) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.cdist(x.flatten(1), self.points.flatten(1)).amin(1)
        return torch.stack([torch.zeros_like(distance), self.reach - distance], 1)


class Wrapped(nn.Module):
    """A net behind something, as the ones below."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training


class Quantised(Wrapped):
    """Pixels are rounded to a few levels: the answers change in steps, and the gradient is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 4).round() / 4)


class Softmaxed(Wrapped):
    """Probabilities instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


class Scaled(Wrapped):
    """Logits times a thousand: the loss is 0, and so is its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


class NotANumber(Wrapped):
    """No logit is finite."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * torch.nan


class NotANumberBehind(Wrapped):
    """Finite logits with a gradient that is not: 0 times the infinite slope of a root at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (x.flatten(1)[:, :1] * 0).sqrt()


class Noisy(Wrapped):
    """Gaussian noise on every image at every pass, drawn from the global random state."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn(x.shape))


# --- how to look at an attack ---------------------------------------------------------------------------------------


def lengths(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Size of every image's perturbation, in double precision."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.square().sum(1).sqrt()


def count(model: nn.Module, x: Tensor, y: Tensor) -> int:
    return int(still_right(model, x, y).sum())


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Compare everything that an attack could leave behind with what was there before."""

    def look() -> dict[str, Any]:
        loggers = {"root": logging.getLogger(), "auto-attack": logging.getLogger("auto-attack")}
        return {
            "modes": [(name, module.training) for name, module in model.named_modules()],
            "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            "tracer": sys.gettrace(),
            "python's random state": random.getstate(),
            "logging": [(k, v.level, v.disabled, v.propagate, [*v.handlers]) for k, v in loggers.items()],
            "logging switched off": logging.root.manager.disable,
            "filters of warnings": [*warnings.filters],
            "gradients on": torch.is_grad_enabled(),
            "default dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
        }

    def tensors() -> dict[str, Tensor]:
        numpy_state = np.random.get_state(legacy=True)
        state = {f"state of {name}": value.clone() for name, value in model.state_dict(keep_vars=False).items()}
        grads = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        numbers = {"numpy's state": torch.tensor(numpy_state[1].astype(np.int64)), "at": torch.tensor(numpy_state[2])}
        buffers = {f"buffer {name}": value.clone() for name, value in model.named_buffers()}
        return {**state, **grads, **numbers, **buffers, "torch's state": torch.get_rng_state()}

    before, values = look(), tensors()
    yield
    after, now = look(), tensors()
    for name, value in before.items():
        assert after[name] == value, name
    assert now.keys() == values.keys()
    for name, tensor in values.items():
        assert torch.equal(now[name], tensor), name
