"""Nets to attack: trained ones, ones whose robustness is known in closed form, and ones that mask their gradient."""

from functools import cache

import torch
from torch import Tensor, nn

from perturblab.attacks import PixelModel, to_pixels
from perturblab.data.digits import read_digits

Images = tuple[Tensor, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def digits(*, train: bool = False, classes: int = 10) -> Images:
    """Pixels and labels of the bundled digits, of the first classes only."""
    decoded = read_digits()
    split = decoded.train if train else decoded.test
    rows = split.labels < classes
    return to_pixels(split.images[rows]), split.labels[rows]


def _drawn(net: nn.Module, seed: int) -> nn.Module:
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
    model = PixelModel(_drawn(nn.Sequential(*layers), seed), [0.3], [0.35]).train()
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

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


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
