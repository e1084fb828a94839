"""The attacks by name, as the command line and the records call them."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from perturblab.attacks.autoattack import Ensemble, autoattack, square
from perturblab.attacks.deepfool import deepfool
from perturblab.attacks.gradient import fgsm, fgsm_normalised, pgd
from perturblab.attacks.noise import gaussian_noise, uniform_noise, universal
from perturblab.attacks.threat import Threat, check_images
from perturblab.records.attack_names import Effort

Attack = Callable[[nn.Module, Tensor, Tensor, Threat, Effort, torch.Generator], Tensor]


def _deepfool(m: nn.Module, x: Tensor, y: Tensor, threat: Threat, effort: Effort, g: torch.Generator) -> Tensor:
    """Run DeepFool, whose radius is the cap on its iterations."""
    free = replace(threat, norm="l2", eps=math.inf if threat.eps else 0.0)
    return deepfool(m, x, y, free, iterations=max(1, int(threat.eps)))


def unclipped(attack: Attack) -> Attack:
    """Make a published mistake: the attack on images within the bounds, with a result that may leave them."""

    def run(m: nn.Module, x: Tensor, y: Tensor, threat: Threat, effort: Effort, g: torch.Generator) -> Tensor:
        check_images(x, threat)
        return attack(m, x, y, threat.without_bounds(), effort, g)

    return run


# What each of them is, and which settings it reads, is in `perturblab.records.attack_names.ATTACK_KINDS`.
ATTACKS: dict[str, Attack] = {
    "fgsm": lambda m, x, y, t, e, g: fgsm(m, x, y, t, draws=e.draws),
    "pgd": lambda m, x, y, t, e, g: pgd(m, x, y, t, e, generator=g),
    "deepfool": _deepfool,
    "autoattack": lambda m, x, y, t, e, g: autoattack(m, x, y, t, Ensemble(queries=e.queries), generator=g),
    "square": lambda m, x, y, t, e, g: square(m, x, y, t, queries=e.queries, generator=g),
    "uniform": lambda m, x, y, t, e, g: uniform_noise(m, x, y, t, generator=g),
    "gaussian": lambda m, x, y, t, e, g: gaussian_noise(m, x, y, t, generator=g),
    "universal": lambda m, x, y, t, e, g: universal(m, x, y, t, generator=g),
    "fgsm-unclipped": unclipped(lambda m, x, y, t, e, g: fgsm(m, x, y, t)),
    "deepfool-unclipped": unclipped(_deepfool),
    "fgsm-normalised": lambda m, x, y, t, e, g: fgsm_normalised(m, x, y, t),
}
