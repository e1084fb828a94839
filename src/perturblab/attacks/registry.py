"""The attacks by name, as the command line and the records call them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from perturblab.attacks.autoattack import autoattack, square
from perturblab.attacks.deepfool import deepfool
from perturblab.attacks.gradient import fgsm, fgsm_normalised, pgd
from perturblab.attacks.noise import gaussian_noise, uniform_noise, universal
from perturblab.attacks.threat import Threat
from perturblab.records.attack_names import Effort

Attack = Callable[[nn.Module, Tensor, Tensor, Threat, Effort, torch.Generator], Tensor]


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


def _deepfool(*, clip: bool) -> Attack:
    """Make DeepFool, whose radius is the cap on its iterations."""

    def run(m: nn.Module, x: Tensor, y: Tensor, threat: Threat, effort: Effort, g: torch.Generator) -> Tensor:
        free = Threat("l2", math.inf if threat.eps else 0.0, threat.bounds)
        return deepfool(m, x, y, free, iterations=max(1, int(threat.eps)), clip=clip)

    return run


# What each of them is, and which settings it reads, is in `perturblab.records.attack_names.ATTACK_KINDS`.
ATTACKS: dict[str, Attack] = {
    "fgsm": lambda m, x, y, t, e, g: fgsm(m, x, y, t, draws=e.draws),
    "pgd": _pgd,
    "deepfool": _deepfool(clip=True),
    "autoattack": lambda m, x, y, t, e, g: autoattack(m, x, y, t, queries=e.queries, generator=g),
    "square": lambda m, x, y, t, e, g: square(m, x, y, t, queries=e.queries, generator=g),
    "uniform": lambda m, x, y, t, e, g: uniform_noise(m, x, y, t, generator=g),
    "gaussian": lambda m, x, y, t, e, g: gaussian_noise(m, x, y, t, generator=g),
    "universal": lambda m, x, y, t, e, g: universal(m, x, y, t, generator=g),
    "fgsm-unclipped": lambda m, x, y, t, e, g: fgsm(m, x, y, t, clip=False),
    "deepfool-unclipped": _deepfool(clip=False),
    "fgsm-normalised": lambda m, x, y, t, e, g: fgsm_normalised(m, x, y, t),
}
