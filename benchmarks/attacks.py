"""FGSM and PGD evaluations compared with foolbox, ART, and bare forward and backward passes."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from perturblab.attacks import Effort, PixelModel, Threat, fgsm, pgd, to_pixels
from perturblab.data.digits import read_digits
from perturblab.models import Task, build
from perturblab.records.markdown import markdown_table
from perturblab.training.evaluate import answers

EPS, STEPS, BATCH = 0.1, 10, 250
EPOCHS = 2  # enough that some attacked images stay right: two counts of 0 would agree for any attack
Evaluate = Callable[[], int]


def compare(pairs: int, threads: int, images: int = 1000) -> dict[str, Any]:
    """Time one evaluation of the paper's MNIST net, trained on digits of MNIST's size, all ways in turn.

    Args:
        pairs: repetitions of each way.
        threads: compute threads.
        images: number of attacked images, up to 1,797.

    Returns:
        "FGSM" and "PGD": way -> {"times", "correct"}.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, x, y = _trained(images)
        return {name: _in_turn(ways(model, x, y, steps), pairs) for name, steps in (("FGSM", 1), ("PGD", STEPS))}
    finally:
        torch.set_num_threads(before)


def _trained(images: int) -> tuple[PixelModel, Tensor, Tensor]:
    """Train a net; give it with its images (N, 1, 28, 28) and labels (N,)."""
    digits = read_digits()
    pixels = torch.cat([to_pixels(split.images) for split in (digits.train, digits.test)])
    x, y = interpolate(pixels, (28, 28), mode="bilinear"), torch.cat([digits.train.labels, digits.test.labels])
    with torch.random.fork_rng():
        torch.manual_seed(0)  # dropout
        model = PixelModel(build("batchout_mnist", task=Task(10, 1, (28, 28)), seed=1), (0.3,), (0.35,)).train()
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for rows in [rows for _ in range(EPOCHS) for rows in torch.randperm(len(x)).split(64)]:
            optimiser.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval(), x[:images], y[:images]


def _in_turn(ways: dict[str, Evaluate], pairs: int) -> dict[str, Any]:
    measured: dict[str, Any] = {name: {"times": []} for name in ways}
    for repetition in range(pairs + 1):
        for name, evaluate in ways.items():
            began = time.perf_counter()
            measured[name]["correct"] = evaluate()
            if repetition:  # the first one warms up
                measured[name]["times"].append(time.perf_counter() - began)
    return measured


def ways(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Evaluate]:
    """List the ways to attack and count; with one step FGSM, else PGD from a random start.

    Args:
        model: from images in [0, 1] to logits.
        x: (N, C, H, W).
        y: int64 (N,).
        steps: gradient steps.
    """
    threat, size = Threat("linf", EPS), 2.5 * EPS / STEPS
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(action="ignore"):
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier
        from foolbox.attacks import FGSM, LinfPGD
        from foolbox.models.pytorch import PyTorchModel

        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        art = (
            FastGradientMethod(classifier, eps=EPS, batch_size=BATCH)
            if steps == 1
            else ProjectedGradientDescentPyTorch(
                classifier, eps=EPS, eps_step=size, max_iter=steps, num_random_init=1, batch_size=BATCH, verbose=False
            )
        )

        foolbox = PyTorchModel(model, bounds=(0, 1), device="cpu")
        fool = FGSM() if steps == 1 else LinfPGD(abs_stepsize=size, steps=steps)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        if steps == 1:
            return fgsm(model, x, y, threat)
        return pgd(model, x, y, threat, Effort(steps=steps, step_size=size, restarts=1), generator=generator)

    def bare(x: Tensor, y: Tensor) -> Tensor:
        for _ in range(steps):
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)
        return x

    def count_foolbox(x: Tensor, y: Tensor) -> int:
        """Count with foolbox, whose attack already includes the pass that counts."""
        return int((~fool(foolbox, x, y, epsilons=EPS)[2]).sum())

    return {
        "ours": lambda: _count(model, x, y, ours),
        "bare passes": lambda: _count(model, x, y, bare),
        "foolbox": lambda: sum(count_foolbox(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)),
        "ART": lambda: _count(model, x, y, lambda x, y: torch.from_numpy(art.generate(x.numpy(), y.numpy()))),
    }


def _count(model: nn.Module, x: Tensor, y: Tensor, make: Callable[[Tensor, Tensor], Tensor]) -> int:
    attacked = torch.cat([make(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])
    return answers(model, attacked, y, batch_size=BATCH).counts.correct


def table(measured: dict[str, Any]) -> str:
    """Write the times as a Markdown table, and the ratios of alternating runs.

    Args:
        measured: from `compare`.
    """
    rows = []
    for attack, by_way in measured.items():
        ours = by_way["ours"]["times"]
        for way, values in by_way.items():
            times = values["times"]
            ratio = statistics.median(a / b for a, b in zip(ours, times, strict=True))
            spread = f"{statistics.median(times):.4f} ({min(times):.4f} to {max(times):.4f})"
            rows.append([attack, way, spread, f"{ratio:.3f}"])
    header = [f"attack, {BATCH} images a batch", "way", "median, s (range)", "ours / it"]
    return markdown_table(header, rows, "llrr")
