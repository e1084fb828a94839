"""Attacks: plain functions ``(model, x, y, threat, *, generator) -> x_adv`` on images in [0, 1].

* `threat`: norm, radius and bounds, projection, and the check of a result.
* `pixels`: the model with its normalisation inside, and attacks that leave no trace in it.
* `gradient`: FGSM, FGM, PGD. `deepfool`: DeepFool. `universal`: one perturbation for all. `noise`: random ones.
* `autoattack`: AutoAttack and Square, through pyautoattack.
"""

from perturblab.attacks.gradient import fgsm, input_gradient, pgd, random_start, still_right
from perturblab.attacks.pixels import PixelModel, to_pixels, untouched
from perturblab.attacks.threat import Threat, project, violations

__all__ = [
    "PixelModel",
    "Threat",
    "fgsm",
    "input_gradient",
    "pgd",
    "project",
    "random_start",
    "still_right",
    "to_pixels",
    "untouched",
    "violations",
]
