"""The attacks by name, as the command line and the records call them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from perturblab.attacks.autoattack import autoattack, square
from perturblab.attacks.deepfool import deepfool
from perturblab.attacks.gradient import fgsm, fgsm_normalised, pgd
from perturblab.attacks.noise import gaussian_noise, uniform_noise, universal
from perturblab.attacks.threat import Threat


@dataclass(frozen=True)
class Effort:
    """How hard the attacks try.

    Args:
        steps: of PGD.
        step_size: of PGD, in pixels; 2.5 eps / steps by default.
        restarts: of PGD.
        queries: of Square.
        draws: forward passes a gradient; more than 1 for a net whose forward is random.
        early_stop: PGD leaves an image alone as soon as it fools the net; not for transfers and random nets.
    """

    steps: int = 50
    step_size: float | None = None
    restarts: int = 5
    queries: int = 5000
    draws: int = 1
    early_stop: bool = False


Run = Callable[[nn.Module, Tensor, Tensor, Threat, Effort, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attack:
    """An attack by name.

    Args:
        run: makes the images.
        about: one line.
        norms: the norms that it knows.
        looks: follows the gradient of the net that it attacks (white box).
        settings: what of `Effort` it reads.
        outside: a published mistake: its images may leave the ball or the bounds.
        by_iterations: its axis is a cap on iterations instead of a radius.
        fixed: needs a net with one answer for one image.
    """

    run: Run
    about: str
    norms: tuple[str, ...] = ("linf", "l2")
    looks: bool = True
    settings: tuple[str, ...] = ()
    outside: bool = False
    by_iterations: bool = False
    fixed: bool = False


def _pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, effort: Effort, generator: torch.Generator) -> Tensor:
    return pgd(
        model,
        x,
        y,
        threat,
        steps=effort.steps,
        step_size=effort.step_size,
        restarts=effort.restarts,
        draws=effort.draws,
        early_stop=effort.early_stop,
        generator=generator,
    )


def _deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    effort: Effort,
    generator: torch.Generator,
    *,
    clip: bool = True,
) -> Tensor:
    free = Threat("l2", math.inf if threat.eps else 0.0, threat.bounds)
    return deepfool(model, x, y, free, iterations=max(1, int(threat.eps)), clip=clip)


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(
        lambda m, x, y, t, e, g: fgsm(m, x, y, t, draws=e.draws),
        "one step along the gradient (l2: the fast gradient method)",
        settings=("draws",),
    ),
    "pgd": Attack(
        _pgd,
        "projected gradient ascent with restarts",
        settings=("steps", "step_size", "restarts", "draws", "early_stop"),
    ),
    "deepfool": Attack(
        _deepfool, "nearest boundary, l2, by the cap on its iterations", norms=("l2",), by_iterations=True, fixed=True
    ),
    "autoattack": Attack(
        lambda m, x, y, t, e, g: autoattack(m, x, y, t, queries=e.queries, generator=g),
        "AutoAttack, standard: APGD-CE, APGD-T, FAB-T, Square",
        settings=("queries",),
        fixed=True,
    ),
    "square": Attack(
        lambda m, x, y, t, e, g: square(m, x, y, t, queries=e.queries, generator=g),
        "random search without gradients",
        looks=False,
        settings=("queries",),
        fixed=True,
    ),
    "uniform": Attack(lambda m, x, y, t, e, g: uniform_noise(m, x, y, t, generator=g), "uniform noise", looks=False),
    "gaussian": Attack(lambda m, x, y, t, e, g: gaussian_noise(m, x, y, t, generator=g), "Gaussian noise", looks=False),
    "universal": Attack(lambda m, x, y, t, e, g: universal(m, x, y, t, generator=g), "one perturbation for all images"),
    "fgsm-unclipped": Attack(
        lambda m, x, y, t, e, g: fgsm(m, x, y, t, clip=False),
        "as the paper writes it: pixels may leave [0, 1]",
        outside=True,
    ),
    "deepfool-unclipped": Attack(
        partial(_deepfool, clip=False),
        "as DeepFool's authors write it: pixels may leave [0, 1]",
        norms=("l2",),
        outside=True,
        by_iterations=True,
        fixed=True,
    ),
    "fgsm-normalised": Attack(
        lambda m, x, y, t, e, g: fgsm_normalised(m, x, y, t),
        "a published mistake: the step added after the normalisation, unclipped",
        norms=("linf",),
        outside=True,
    ),
}
