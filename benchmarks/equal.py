"""Training by the fast path and by the published computation: losses step by step, counts at the end.

Training magnifies rounding: in a deep net with batch norms over few values, weights that differ by one part in ten
million drift apart within a few steps. A third training measures this drift: the published computation, from such
weights.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from perturblab import data
from perturblab.layers.kernels import published
from perturblab.models import Task, build
from perturblab.training import evaluate, loop

_MASKED = {"nfilters": 12, "first_filter_size": 3, "nmasks": 8, "level": 0.5}
NETS: dict[str, dict[str, Any]] = {
    "lenet": {**_MASKED, "dropout": 0.0},
    "perturb_resnet18": {**_MASKED, "mix_maps": True},
}
STEPS, SEEDS = 50, (1, 2, 3)


def equal(nepochs: int = 4, seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    """Train both nets on the digits in both ways.

    Returns:
        For every net and seed: "gap", the largest difference of two losses in the first 50 steps; "drift", the same
        of the published computation and itself from weights changed by 1e-7; the correct test images after the last
        epoch, "fast", "published" and "changed".
    """
    digits = data.load("digits")
    return [_compare(digits, net, seed, nepochs) for net in NETS for seed in seeds]


def _compare(digits: data.ImageData, net: str, seed: int, nepochs: int) -> dict[str, Any]:
    fast, plain, changed = (
        _train(digits, net, seed, nepochs, fast=fast, change=change)
        for fast, change in ((True, 0.0), (False, 0.0), (False, 1e-7))
    )
    gap, drift = (
        max(abs(a - b) for a, b in zip(other[0][:STEPS], plain[0][:STEPS], strict=True)) for other in (fast, changed)
    )
    counts = {"fast": fast[1], "published": plain[1], "changed": changed[1], "total": len(digits.test)}
    return {"net": net, "seed": seed, "gap": gap, "drift": drift, **counts}


def _train(
    digits: data.ImageData, name: str, seed: int, nepochs: int, *, fast: bool, change: float
) -> tuple[list[float], int]:
    preparation = data.preparation(digits)
    recipe = loop.Recipe(nepochs=nepochs, batch_size=32, learning_rate=1e-3, dataset="digits", seed=seed)
    net = build(name, task=Task(10, 1, (8, 8)), seed=seed, **NETS[name])
    net = convert_conv2d_weight_memory_format(net, torch.channels_last)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + change * torch.randn(parameter.shape, generator=noise))
    totals: list[float] = []

    def prepare(images: Tensor, _generator: torch.Generator | None = None) -> Tensor:
        return data.normalise(images, preparation).contiguous(memory_format=torch.channels_last)

    def note(state: loop.State) -> bool:
        totals.append(state.reached.loss / recipe.batch_size)
        return True

    losses: list[float] = []
    with nullcontext() if fast else published():
        state = loop.start(net, recipe)
        images, labels = digits.train.images, digits.train.labels
        for _ in loop.train(net, images, labels, recipe, state, loop.Hooks(prepare, after_step=note)):
            losses += [b - a for a, b in zip([0.0, *totals], totals, strict=False)]
            totals.clear()
        answers = evaluate.answers(net.eval(), digits.test.images, digits.test.labels, prepare=prepare)
    return losses, answers.counts.correct
