"""Attacks: plain functions ``(model, x, y, threat, *, generator) -> x_adv`` on images in [0, 1].

* `threat`: norm, radius and bounds, projection, and the check of a result.
* `pixels`: the model with its normalisation inside, and attacks that leave no trace in it.
* `gradient`: FGSM, FGM, PGD. `deepfool`: DeepFool. `noise`: random ones, and one perturbation for all images.
* `autoattack`: AutoAttack and Square, through pyautoattack.
* `registry`: all of them by name. `masking`: checks that a masked gradient cannot pass for a defence.
"""

from perturblab.attacks.autoattack import Ensemble, attack_in_turn, autoattack, square
from perturblab.attacks.deepfool import deepfool, deepfool_path
from perturblab.attacks.gradient import fgsm, fgsm_normalised, input_gradient, pgd, random_start, still_right
from perturblab.attacks.masking import examine, is_random, is_softmax, margin_loss
from perturblab.attacks.noise import gaussian_noise, uniform_noise, universal, universal_perturbation
from perturblab.attacks.pixels import Frozen, PixelModel, to_pixels, untouched
from perturblab.attacks.registry import ATTACKS, Attack
from perturblab.attacks.threat import Threat, project, violations
from perturblab.records.attack_names import Effort

__all__ = [
    "ATTACKS",
    "Attack",
    "Effort",
    "Ensemble",
    "Frozen",
    "PixelModel",
    "Threat",
    "attack_in_turn",
    "autoattack",
    "deepfool",
    "deepfool_path",
    "examine",
    "fgsm",
    "fgsm_normalised",
    "gaussian_noise",
    "input_gradient",
    "is_random",
    "is_softmax",
    "margin_loss",
    "pgd",
    "project",
    "random_start",
    "square",
    "still_right",
    "to_pixels",
    "uniform_noise",
    "universal",
    "universal_perturbation",
    "untouched",
    "violations",
]
