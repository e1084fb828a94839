"""Adversarial training: the attack that training images meet."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from perturblab.attacks.gradient import ONE_RESTART, fgsm, pgd
from perturblab.attacks.pixels import untouched
from perturblab.attacks.threat import Threat


@dataclass(frozen=True)
class Adversary:
    """The attack that training images meet.

    Args:
        threat: norm and radius, in pixels of [0, 1].
        share: of every batch that is replaced by adversarial images: 0.5 in the paper; its first rows.
        steps: 1 is FGSM; more is PGD from a random start with steps of 2.5 eps / steps.
        training: the attack is made in training mode, with dropout and batch statistics, instead of eval mode.

    Raises:
        ValueError: a share outside [0, 1], or no step.

    Reference:
        BatchOut, ICVGIP 2018, section 6.2 (half of the batch, FGSM); Madry et al., ICLR 2018 (PGD).
    """

    threat: Threat
    share: float = 1.0
    steps: int = 1
    training: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.steps < 1:
            raise ValueError(f"share is {self.share} and steps {self.steps}; expected a share in [0, 1] and a step")


def adversarial_images(
    model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary, *, generator: torch.Generator
) -> Tensor:
    """Make images that raise the loss of the model as it is.

    Args:
        model: from images in [0, 1] to logits; it is left as it was.
        x: (N, C, H, W), in [0, 1].
        y: int64 (N,).
        adversary: the attack.
        generator: decides random starts and, in training mode, dropout.

    Returns:
        (N, C, H, W).
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with untouched(model, training=adversary.training, seed=seed):
        if adversary.steps == 1:
            return fgsm(model, x, y, adversary.threat)
        return pgd(model, x, y, adversary.threat, replace(ONE_RESTART, steps=adversary.steps), generator=generator)
