"""Our training loop compared with a bare one on the same net, and the share of augmentation in a step."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy import stats
from torch.nn.functional import cross_entropy
from torch.nn.utils import convert_conv2d_weight_memory_format

from perturblab import data
from perturblab.data.known import PREPARATIONS
from perturblab.models import build
from perturblab.training import loop

NET = "resnet18"
OPTIONS: dict[str, Any] = {"nfilters": 6}  # the narrowest measured net, where the overhead of a step weighs most
STEPS, BATCH = 10, 64


def overhead(pairs: int, threads: int) -> dict[str, Any]:
    """Compare ten steps of our loop with ten bare ones, pair by pair: the median ratio and its 95 % interval."""
    torch.set_num_threads(threads)
    images = torch.randint(0, 256, (STEPS * BATCH, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (STEPS * BATCH,))
    ours, bare = _ours(images, labels), _bare(images, labels)
    ratios, steps = [], []
    for _ in range(pairs + 1):
        first, second = _seconds(ours), _seconds(bare)
        ratios.append(first / second)
        steps.append(second / STEPS)
    ratios, steps = ratios[1:], steps[1:]
    rows = images[:BATCH]
    prepare = statistics.median(_seconds(lambda: _prepare(rows, torch.Generator())) for _ in range(50))
    interval = _median_interval(ratios)
    return {
        "net": f"{NET}, {OPTIONS['nfilters']} filters, batch {BATCH}",
        "pairs": pairs,
        "median": statistics.median(ratios),
        "interval": interval,
        "augmentation share": prepare / statistics.median(steps),
    }


def _ours(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    recipe = loop.Recipe(nepochs=10**6, batch_size=BATCH)
    model = _net()
    state = loop.start(model, recipe)
    epochs = loop.train(model, images, labels, recipe, state, loop.Hooks(_prepare))
    return lambda: discard(next(epochs))


def discard(_value: object) -> None:
    """Discard a value."""


def _bare(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    model, generator = _net(), torch.Generator()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)

    def epoch() -> None:
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(BATCH):
            loss = cross_entropy(model(_prepare(images[rows], generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def _net() -> torch.nn.Module:
    return convert_conv2d_weight_memory_format(build(NET, seed=1, **OPTIONS), torch.channels_last).train()


def _prepare(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    preparation = PREPARATIONS["CIFAR10"]
    x = data.normalise(data.augment(images, preparation, generator), preparation)
    return x.contiguous(memory_format=torch.channels_last)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median_interval(values: list[float]) -> tuple[float, float]:
    """Give order statistics that enclose the median with at least 95 %."""
    ordered, n = sorted(values), len(values)
    low = max(0, int(stats.binom.ppf(0.025, n, 0.5)) - 1)
    return ordered[low], ordered[n - 1 - low]
